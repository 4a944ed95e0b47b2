"""`python -m experiments.explore RUN`."""

from dnnlib.cli import run_command
from experiments.explore import main

if __name__ == "__main__":
    run_command(main)
