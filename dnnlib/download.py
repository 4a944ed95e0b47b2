"""Files by URL or path: a cache on disk with recorded digests, downloads that resume, mirrors, one clear sentence when offline.

`fetch` serves what a user names; `fetch_published` serves files that this project names, from the address they are published at or from the
mirrors of $DNNLIB_MIRRORS. What is in the files is not this module's business.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import sys
import time
import urllib.parse
import uuid
from collections.abc import Iterator, Sequence

import requests
import tqdm

from dnnlib.errors import UserError
from dnnlib.files import atomic_write_text

ATTEMPTS = 3
TIMEOUT = 30.0  # seconds without a byte after which a connection counts as broken
CHUNK_BYTES = 1 << 16  # what a torn transfer loses at most
MIRRORS_VARIABLE = "DNNLIB_MIRRORS"
MAX_BYTES = 1 << 33  # far more than any network or detector has; a server that never ends would fill the disk
RETRIED_STATUS = (408, 429)  # client errors that pass: too slow, too often
# A file that changed this lately may change again without its time of change moving on, so its digest is not remembered.
SETTLED_NS = 2_000_000_000


def cache_dir(*sub: str) -> pathlib.Path:
    """The cache folder $DNNLIB_CACHE_DIR, or else ~/.cache/dnnlib, or a folder in it; made where it is missing.

    Raises:
        UserError: the folder cannot be made.
    """
    return _make_folder(cache_place(*sub))


def cache_place(*sub: str) -> pathlib.Path:
    """Where `cache_dir` is or would be; makes nothing. Raises UserError if there is no home folder to put it in."""
    if chosen := os.environ.get("DNNLIB_CACHE_DIR"):
        return pathlib.Path(chosen, *sub)
    try:
        return pathlib.Path.home().joinpath(".cache", "dnnlib", *sub)
    except RuntimeError as error:
        raise UserError("there is no home folder for the cache; set DNNLIB_CACHE_DIR to a folder of your own") from error


def is_url(text: str | os.PathLike) -> bool:
    """Whether `text` names something by scheme, as in https://host/file, rather than a local path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", os.fspath(text)) is not None


def _is_web(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


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
    timeout: float = TIMEOUT,
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
    if not _is_web(url):
        raise UserError(f"{url} is neither a file nor an http or https URL")
    target = cached_path(url, None if cache_dir is None else _make_folder(pathlib.Path(cache_dir)))
    return _fetch_into(target, _Download(url, [url], target, digest, timeout, verbose))


def fetch_published(name: str, bases: Sequence[str], *, digest: str | None = None) -> pathlib.Path:
    """A local file that is published as `base/name`: from a folder in $DNNLIB_MIRRORS, from the cache, or downloaded.

    Downloads try the URLs of $DNNLIB_MIRRORS first, then `bases` in order. Wherever the file comes from, the cache keeps it under the URL of
    the first base, so that changing mirrors does not download it again.

    Args:
        name: file name, as under every base.
        bases: http(s) addresses at which the file is published, the original one first.
        digest: SHA-256 that the file must have, in hex.

    Raises:
        UserError: as `fetch`, and for a mirror that is neither a folder nor an http(s) URL.
    """
    mirrors = user_mirrors()
    for folder in (pathlib.Path(mirror) for mirror in mirrors if not is_url(mirror)):
        if os.path.isfile(folder / name):
            return _local_file(folder / name, digest)
    published = [f"{base.rstrip('/')}/{name}" for base in bases]
    mirrored = [f"{mirror.rstrip('/')}/{name}" for mirror in mirrors if is_url(mirror)]
    target = cached_path(published[0])
    remedy = f", or set {MIRRORS_VARIABLE} to a folder or URL that has {name}"
    return _fetch_into(target, _Download(published[0], mirrored + published, target, digest, TIMEOUT, remedy=remedy))


def user_mirrors() -> list[str]:
    """The user's own mirrors from $DNNLIB_MIRRORS: folders or base URLs, separated by commas, in order of trial.

    Raises:
        UserError: an entry is neither an existing folder nor an http(s) URL.
    """
    mirrors = [entry.strip() for entry in os.environ.get(MIRRORS_VARIABLE, "").split(",") if entry.strip()]
    for mirror in mirrors:
        if not (_is_web(mirror) if is_url(mirror) else os.path.isdir(mirror)):
            raise UserError(f"{MIRRORS_VARIABLE} holds {mirror}, which is neither an existing folder nor an http or https URL")
    return mirrors


def discard(path: pathlib.Path) -> bool:
    """Removes a file that turned out to be useless from the downloads, with its record; returns False for one that is none of them or must stay."""
    if path.parent != cache_place("downloads"):
        return False
    try:
        with _exclusive(path):
            path.unlink(missing_ok=True)
            _record(path).unlink(missing_ok=True)
    except (OSError, UserError):  # of a cache that is somebody else's
        return False
    return True


def file_digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hex. A file that stays as it is (size, times, inode) is read only once per process."""
    status = os.stat(path)
    identity = (os.path.abspath(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    settled = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_NS
    return _remembered_digest(*identity) if settled else _read_digest(path)


@functools.lru_cache(maxsize=64)
def _remembered_digest(path: str, *identity: int) -> str:
    return _read_digest(path)


def _read_digest(path: str | os.PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _fetch_into(target: pathlib.Path, download: _Download) -> pathlib.Path:
    """The cached file `target`, downloaded where it is missing or damaged."""
    with _exclusive(target) as locked:
        if not _cached_file_is_good(target, download.digest):
            partial = _partial(target, shared=locked)
            try:
                _keep(target, partial, download.run(partial))
            finally:
                if not locked:  # nobody else would go on with it
                    with contextlib.suppress(OSError):
                        partial.unlink(missing_ok=True)
                        _origin_file(partial).unlink(missing_ok=True)
    return target


class _Broken(Exception):
    """The transfer failed; `final` says that trying again is pointless."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


@dataclasses.dataclass
class _Download:
    """One file on its way into a partial file beside `target`, from the first of `sources` that gives it."""

    url: str
    sources: Sequence[str]
    target: pathlib.Path
    digest: str | None
    timeout: float
    verbose: bool = True
    remedy: str = ""

    def run(self, partial: pathlib.Path) -> str:
        """Returns the SHA-256 of the complete partial file."""
        reasons = []
        for source in self.sources:
            try:
                return self._from(source, partial)
            except _Broken as error:
                reasons.append(str(error) if source == self.url else f"{source}: {error}")
        remedy = f"go online, or save the file by hand as {self.target}, or give a local path instead{self.remedy}"
        raise UserError(f"cannot download {self.url} ({'; '.join(reasons)}): {remedy}")

    def _from(self, source: str, partial: pathlib.Path) -> str:
        """Downloads from one source with a few attempts; raises _Broken with the last one's reason."""
        attempt = 0
        while True:
            attempt += 1
            try:
                self._attempt(source, partial)
                return self._checked_digest(partial)
            except requests.RequestException as error:
                broken = _Broken(_short_reason(error), final=isinstance(error, requests.exceptions.InvalidURL))
            except _Broken as error:
                broken = error
            except OSError as error:
                raise UserError(f"cannot write {partial}: {error.strerror or error}") from error
            if broken.final or attempt == ATTEMPTS:
                raise broken
            time.sleep(0.05 * 4**attempt)

    def _checked_digest(self, partial: pathlib.Path) -> str:
        """SHA-256 of the complete partial file, which is removed where another one is wanted."""
        found = file_digest(partial)
        if self.digest is not None and found != self.digest.lower():
            partial.unlink()
            raise _Broken(f"the file there has SHA-256 {found} instead of {self.digest.lower()}", final=True)
        return found

    def _attempt(self, source: str, partial: pathlib.Path) -> None:
        """One request, for the rest of the file where a part of it came from this source before."""
        origin_file = _origin_file(partial)
        start, validator = 0, ""
        if partial.exists() and origin_file.exists():
            origin, _, validator = origin_file.read_text().partition("\n")
            start = partial.stat().st_size if origin == source else 0
        headers = {"Accept-Encoding": "identity"}
        if start and validator:
            headers |= {"Range": f"bytes={start}-", "If-Range": validator}
        with _request(source, headers, self.timeout) as response:
            if response.status_code == 416:
                partial.unlink()
                raise _Broken("the partial file did not fit the one on the server")
            if response.status_code not in (200, 206):
                final = response.status_code < 500 and response.status_code not in RETRIED_STATUS
                raise _Broken(f"the server answers {response.status_code} {response.reason}", final)
            resumed = response.status_code == 206
            if resumed and (_is_encoded(response) or not response.headers.get("Content-Range", "").startswith(f"bytes {start}-")):
                partial.unlink(missing_ok=True)
                raise _Broken("the server sent another part than was asked for")
            atomic_write_text(origin_file, f"{source}\n{_validator(response)}")
            self._save(response, partial, start if resumed else 0)

    def _save(self, response: requests.Response, partial: pathlib.Path, start: int) -> None:
        """Writes the body behind the first `start` bytes of the partial file; raises _Broken where it ends too early."""
        length = response.headers.get("Content-Length")
        expected = start + int(length) if length is not None and length.isdecimal() else None
        bar = tqdm.tqdm(
            total=None if _is_encoded(response) else expected,
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
                if handle.tell() + len(chunk) > MAX_BYTES:
                    raise _Broken(f"it is longer than {MAX_BYTES:,} bytes", final=True)
                handle.write(chunk)
                bar.update(len(chunk))
            handle.flush()
            os.fsync(handle.fileno())
        received = start + response.raw.tell()  # as sent, which is what the length is of
        if expected is not None and received != expected:
            raise _Broken(f"the transfer ended after {received:,} of {expected:,} bytes")


def _local_file(path: pathlib.Path, digest: str | None) -> pathlib.Path:
    if not os.path.isfile(path):  # not Path.is_file: it raises where a folder may not be searched
        raise UserError(f"{path} {'is a folder' if os.path.isdir(path) else 'does not exist'}; an existing file or a URL is expected")
    try:
        found = None if digest is None else file_digest(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if digest is not None and found != digest.lower():
        raise UserError(f"{path} has SHA-256 {found} instead of {digest.lower()}; it is damaged or another file")
    return path


def _cached_file_is_good(target: pathlib.Path, digest: str | None) -> bool:
    """Whether the cached file is there and matches both its record and the digest asked for."""
    if not os.path.isfile(target):
        return False
    record = _record(target)
    try:
        found = file_digest(target)
        recorded = record.read_text().strip() if record.is_file() else None
    except OSError as error:  # of somebody else's cache
        raise UserError(f"cannot read {target}: {error.strerror or error}; make it readable, or use another cache folder") from error
    if found != (recorded or found) or found != (digest or found).lower():
        print(f"{target} is damaged or out of date and is downloaded again", file=sys.stderr)
        return False
    if recorded is None:
        with contextlib.suppress(UserError):  # somebody else's cache, or one on a disk that is read only
            atomic_write_text(record, found + "\n")
    return True


def _keep(target: pathlib.Path, partial: pathlib.Path, digest: str) -> None:
    """Turns the complete partial file into the cached one. The record goes first: a stop in between leaves a file that is fetched anew.

    An old file stays until it is replaced: without locks, another process may just have been given its path.
    """
    try:
        atomic_write_text(_record(target), digest + "\n")
        os.replace(partial, target)
        _origin_file(partial).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error


def _request(source: str, headers: dict[str, str], timeout: float) -> requests.Response:
    """Asks for a file. What requests itself cannot read is no fault of the partial file's, although both are OSErrors."""
    try:
        return requests.get(source, headers=headers, stream=True, timeout=timeout)
    except requests.RequestException:  # an OSError, too
        raise
    except OSError as error:
        raise _Broken(f"no request can be made ({error}), check REQUESTS_CA_BUNDLE", final=True) from error


def _is_encoded(response: requests.Response) -> bool:
    """Whether the server has compressed the body, although it was asked not to: lengths and parts are then none of the file's."""
    return response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")


def _validator(response: requests.Response) -> str:
    """What lets the server recognise this very version of the file later: a strong ETag, else the date of its last change, else "".

    Also "" for a body that is encoded, so that its transfer is not resumed.
    """
    if _is_encoded(response):
        return ""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


@contextlib.contextmanager
def _exclusive(target: pathlib.Path) -> Iterator[bool]:
    """Lets one process at a time work on `target`, where there are file locks; the others wait and then find the file. Yields whether there are.

    A file that is there already may be looked at without a lock, where none can be made: in somebody else's cache, or on a disk that is read only.
    """
    try:
        import fcntl
    except ImportError:  # Windows: two processes may both download, each into a partial file of its own
        yield False
        return
    lock = target.with_name(f".{target.name}.lock")
    try:
        handle = open(lock, "a")  # noqa: SIM115 (closed by the with statement below)
    except OSError as error:
        if not os.path.isfile(target):  # not Path.is_file, as in _local_file
            raise UserError(f"cannot write into {target.parent}: {error.strerror or error}") from error
        handle = None
    with handle or contextlib.nullcontext():
        locked = False
        if handle is not None:
            with contextlib.suppress(OSError):  # a file system without locks, as Windows above
                fcntl.flock(handle, fcntl.LOCK_EX)
                locked = True
        yield locked


def _partial(target: pathlib.Path, shared: bool) -> pathlib.Path:
    """Where a download goes: one place for all processes, where they take turns and go on from there; else one of its own for this call."""
    return target.with_name(f"{target.name}.part" if shared else f"{target.name}.{uuid.uuid4().hex[:8]}.part")


def _origin_file(partial: pathlib.Path) -> pathlib.Path:
    """Where the partial file comes from: its URL, and on the next line what `_validator` says."""
    return partial.with_name(f"{partial.name}.origin")


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
    if isinstance(error, requests.exceptions.SSLError):  # this and the next are ConnectionErrors, too
        found = re.search(r"\[SSL: \w+\] (.+?) \(_ssl", str(error))
        return f"no secure connection: {found[1]}" if found else "no secure connection"
    if isinstance(error, requests.exceptions.ProxyError):
        return "no connection through the proxy, check HTTP_PROXY and HTTPS_PROXY"
    if isinstance(error, requests.exceptions.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the transfer broke off"
    if isinstance(error, requests.exceptions.ConnectionError):
        return "no connection"
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
