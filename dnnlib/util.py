"""Where scripts and notebooks written for StyleGAN2-ADA look for what they take from dnnlib: `dnnlib.util.open_url` and `dnnlib.util.EasyDict`."""

from __future__ import annotations

import os
import urllib.parse
import urllib.request
from typing import BinaryIO

from dnnlib.easydict import EasyDict

__all__ = ["EasyDict", "open_url"]


def open_url(
    url_or_path: str | os.PathLike, cache_dir: str | os.PathLike | None = None, *, verbose: bool = True, return_filename: bool = False
) -> BinaryIO | str:
    """A file by URL or path, opened for reading bytes; URLs are downloaded once and kept, as `dnnlib.download.fetch` does.

    Args:
        url_or_path: http(s) URL, or a local path, also as file:// URL.
        cache_dir: folder for downloads; default: downloads/ in the cache.
        verbose: show a progress bar on stderr where that is a terminal.
        return_filename: give the path of the local file instead.

    Raises:
        UserError: the path does not exist, or the URL cannot be downloaded.
    """
    from dnnlib.download import fetch  # here, because it loads requests, which most users of dnnlib do without

    given = os.fspath(url_or_path)
    local = urllib.request.url2pathname(urllib.parse.urlparse(given).path) if given.startswith("file://") else given
    path = fetch(local, cache_dir=cache_dir, verbose=verbose)
    return str(path) if return_filename else open(path, "rb")
