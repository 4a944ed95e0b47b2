"""Files by URL or path: a cache on disk with recorded digests, downloads that resume, one clear sentence when offline.

What is in the files is not this module's business.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import sys
import time
import urllib.parse
from collections.abc import Iterator

import requests
import tqdm

from dnnlib.errors import UserError
from dnnlib.files import atomic_write_text

ATTEMPTS = 3
CHUNK_BYTES = 1 << 16  # what a torn transfer loses at most


def cache_dir(*sub: str) -> pathlib.Path:
    """The cache folder $DNNLIB_CACHE_DIR, or else ~/.cache/dnnlib, or a folder in it; made where it is missing.

    Raises:
        UserError: the folder cannot be made.
    """
    return _make_folder(pathlib.Path(os.environ.get("DNNLIB_CACHE_DIR") or pathlib.Path.home() / ".cache" / "dnnlib", *sub))


def is_url(text: str | os.PathLike) -> bool:
    """Whether `text` names something by scheme, as in https://host/file, rather than a local path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", os.fspath(text)) is not None


def cached_path(url: str, folder: str | os.PathLike | None = None) -> pathlib.Path:
    """Where `fetch` keeps the file of `url`: `<md5 of the URL>_<file name>` in `folder` (default: downloads/ in the cache)."""
    name = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rsplit("/", 1)[-1]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", name)[-100:] or "file"
    folder = cache_dir("downloads") if folder is None else pathlib.Path(folder)
    return folder / f"{hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()}_{name}"


def fetch(
    url_or_path: str | os.PathLike,
    *,
    cache_dir: str | os.PathLike | None = None,
    digest: str | None = None,
    timeout: float = 30.0,
    verbose: bool = True,
) -> pathlib.Path:
    """A local file for a URL or a path; URLs are downloaded once and verified whenever they come from the cache.

    A download that breaks off is resumed, at once or by the next call, where the server can tell that the file is still the
    same. The SHA-256 is recorded beside the file; a cached file that does not match it is downloaded again. A file that the
    user put there by hand is taken as it is, and its digest is recorded.

    Args:
        url_or_path: http(s) URL, or a local path, which is returned as it is.
        cache_dir: folder for downloads; default: downloads/ in the cache.
        digest: SHA-256 that the file must have, in hex.
        timeout: seconds without a byte after which a connection counts as broken.
        verbose: show a progress bar on stderr where that is a terminal.

    Raises:
        UserError: the path does not exist, the digest is another, or the URL cannot be downloaded; then the sentence says where to put
            the file by hand.
    """
    if not is_url(url_or_path):
        return _local_file(pathlib.Path(url_or_path), digest)
    url = os.fspath(url_or_path)
    if not url.lower().startswith(("http://", "https://")):
        raise UserError(f"{url} is neither a file nor an http or https URL")
    target = cached_path(url, None if cache_dir is None else _make_folder(pathlib.Path(cache_dir)))
    with _exclusive(target):
        if _cached_file_is_good(target, digest):
            return target
        found = _Download(url, target, timeout, verbose).run()
        if digest is not None and found != digest.lower():
            _partial(target).unlink(missing_ok=True)
            raise UserError(f"{url} was downloaded but has SHA-256 {found} instead of {digest.lower()}; the file on the server is another one")
        _keep(target, found)
    return target


def file_digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class _Broken(Exception):
    """The transfer failed; `final` says that trying again is pointless."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


@dataclasses.dataclass
class _Download:
    """One file on its way into its partial file beside `target`."""

    url: str
    target: pathlib.Path
    timeout: float
    verbose: bool

    def run(self) -> str:
        """Downloads with a few attempts; returns the SHA-256 of the complete partial file."""
        for attempt in range(ATTEMPTS):
            try:
                self._attempt()
                return file_digest(_partial(self.target))
            except requests.RequestException as error:
                reason, final = _short_reason(error), isinstance(error, requests.exceptions.InvalidURL)
            except _Broken as error:
                reason, final = str(error), error.final
            except OSError as error:
                raise UserError(f"cannot write {_partial(self.target)}: {error.strerror or error}") from error
            if final or attempt == ATTEMPTS - 1:
                break
            time.sleep(0.2 * 4**attempt)
        raise UserError(f"cannot download {self.url} ({reason}): go online, or save the file by hand as {self.target}, or give a local path instead")

    def _attempt(self) -> None:
        """One request, for the rest of the file where a part of it is here already."""
        partial, validator_file = _partial(self.target), _validator_file(self.target)
        start, validator = 0, ""
        if partial.exists() and validator_file.exists():
            start, validator = partial.stat().st_size, validator_file.read_text()
        headers = {"Accept-Encoding": "identity"}
        if start and validator:
            headers |= {"Range": f"bytes={start}-", "If-Range": validator}
        with requests.get(self.url, headers=headers, stream=True, timeout=self.timeout) as response:
            if response.status_code == 416:
                partial.unlink()
                raise _Broken("the partial file did not fit the one on the server")
            if response.status_code not in (200, 206):
                raise _Broken(f"the server answers {response.status_code} {response.reason}", final=response.status_code < 500)
            resumed = response.status_code == 206
            if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                partial.unlink(missing_ok=True)
                raise _Broken("the server sent another part than was asked for")
            atomic_write_text(validator_file, _validator(response))
            self._save(response, partial, start if resumed else 0)

    def _save(self, response: requests.Response, partial: pathlib.Path, start: int) -> None:
        """Writes the body behind the first `start` bytes of the partial file; raises _Broken where it ends too early."""
        length = response.headers.get("Content-Length")
        expected = start + int(length) if length is not None and length.isdecimal() else None
        bar = tqdm.tqdm(
            total=expected,
            initial=start,
            unit="B",
            unit_scale=True,
            desc=self.target.name.split("_", 1)[1],
            disable=not (self.verbose and sys.stderr.isatty()),
        )
        with open(partial, "r+b" if start else "wb") as handle, bar:
            handle.seek(start)
            handle.truncate()
            for chunk in response.iter_content(CHUNK_BYTES):
                handle.write(chunk)
                bar.update(len(chunk))
            handle.flush()
            os.fsync(handle.fileno())
            received = handle.tell()
        if expected is not None and received != expected:
            raise _Broken(f"the transfer ended after {received:,} of {expected:,} bytes")


def _local_file(path: pathlib.Path, digest: str | None) -> pathlib.Path:
    if not path.is_file():
        raise UserError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; an existing file or a URL is expected")
    if digest is not None and (found := file_digest(path)) != digest.lower():
        raise UserError(f"{path} has SHA-256 {found} instead of {digest.lower()}; it is damaged or another file")
    return path


def _cached_file_is_good(target: pathlib.Path, digest: str | None) -> bool:
    """Whether the cached file is there and matches both its record and the digest asked for."""
    if not target.is_file():
        return False
    found, record = file_digest(target), _record(target)
    recorded = record.read_text().strip() if record.is_file() else None
    if found != (recorded or found) or found != (digest or found).lower():
        print(f"{target} is damaged or out of date and is downloaded again", file=sys.stderr)
        return False
    if recorded is None:
        atomic_write_text(record, found + "\n")
    return True


def _keep(target: pathlib.Path, digest: str) -> None:
    """Turns the complete partial file into the cached one. The record goes first: a stop in between leaves a file that is fetched anew."""
    try:
        target.unlink(missing_ok=True)
        atomic_write_text(_record(target), digest + "\n")
        os.replace(_partial(target), target)
        _validator_file(target).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error


def _validator(response: requests.Response) -> str:
    """What lets the server recognise this very version of the file later: a strong ETag, else the date of its last change, else ""."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


@contextlib.contextmanager
def _exclusive(target: pathlib.Path) -> Iterator[None]:
    """Lets one process at a time work on `target`, where the platform has file locks; the others wait and then find the file."""
    try:
        import fcntl
    except ImportError:  # Windows: two processes may both download, each checked by its digest
        yield
        return
    lock = target.with_name(f".{target.name}.lock")
    try:
        handle = open(lock, "a")  # noqa: SIM115 (closed by the with statement below)
    except OSError as error:
        raise UserError(f"cannot write into {target.parent}: {error.strerror or error}") from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _partial(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(f"{target.name}.part")


def _validator_file(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(f"{target.name}.part.version")


def _record(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(f"{target.name}.sha256")


def _make_folder(path: pathlib.Path) -> pathlib.Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the cache folder {path} ({error.strerror or error}); set DNNLIB_CACHE_DIR to a writable folder") from error
    return path


def _short_reason(error: requests.RequestException) -> str:
    """Why a request failed, without the layers of wrappers."""
    if isinstance(error, requests.exceptions.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the transfer broke off"
    if isinstance(error, requests.exceptions.ConnectionError):
        return "no connection"
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
