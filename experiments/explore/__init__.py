"""A page on this machine that shows what a run's generator makes, which real images are near, and where far latents give the same image.

`python -m experiments.explore RUN` starts it (`command.py`). `latents.py` has the arithmetic, `model.py` the pictures and tables, `server.py` what
may be asked over HTTP; page.html, page.js and page.css are the page.
"""

from experiments.explore.command import main

__all__ = ["main"]
