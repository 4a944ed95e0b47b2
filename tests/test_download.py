"""Downloads: whatever the server does, the caller gets the whole right file or one sentence."""

import gzip
import hashlib
import http.server
import multiprocessing
import os
import threading
import time

import pytest

import dnnlib
from dnnlib import UserError, download
from dnnlib.download import cache_dir, cached_path, discard, fetch, fetch_published, file_digest
from training.networks import load_network

CONTENT = bytes(range(256)) * 3000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; the server's `script` says how each request misbehaves, its `requests` lists what was asked."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Silent."""

    def do_GET(self):
        server = self.server
        fault = server.script.pop(0) if server.script else None
        server.requests.append((self.path, self.headers.get("Range")))
        if fault in (404, 429, 500, 503):
            return self._answer(fault, b"no")
        if self.path.startswith("/gone/"):
            return self._answer(404, b"no")
        if fault == "silent":
            return server.released.wait(10)
        if self.path == "/moved/net.pkl":
            return self._answer(302, b"", {"Location": "/real/net.pkl"})
        wanted, start = self.headers.get("Range"), 0
        if wanted and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(server.content):
                return self._answer(416, b"")
        body = server.content[start:]
        headers = {"ETag": server.etag} if server.etag else {}
        if start:
            first = start + 1 if fault == "wrong part" else start
            headers["Content-Range"] = f"bytes {first}-{len(server.content) - 1}/{len(server.content)}"
        if fault in ("gzip", "gzip, cut"):
            body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
        self._answer(206 if start else 200, body, headers, cut=fault in ("cut", "cut, no length", "gzip, cut"), length=fault != "cut, no length")

    def _answer(self, status, body, headers=None, cut=False, length=True):
        self.send_response(status)
        sizes = {"Content-Length": str(len(body))} if length else {}
        for name, value in (sizes | {"Connection": "close"} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    """A server on this machine; waiting between attempts is switched off."""
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.content, httpd.etag, httpd.ranges, httpd.script, httpd.requests = CONTENT, '"v1"', True, [], []
    httpd.released = threading.Event()
    httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield httpd
    httpd.released.set()
    httpd.shutdown()
    httpd.server_close()


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_local_paths_are_returned(tmp_path):
    (tmp_path / "net.pkl").write_bytes(CONTENT)
    assert fetch(tmp_path / "net.pkl") == fetch(str(tmp_path / "net.pkl"), digest=DIGEST) == tmp_path / "net.pkl"
    with pytest.raises(UserError, match="does not exist"):
        fetch(tmp_path / "none.pkl")
    with pytest.raises(UserError, match="folder"):
        fetch(tmp_path)
    with pytest.raises(UserError, match=r"net\.pkl has SHA-256"):
        fetch(tmp_path / "net.pkl", digest="0" * 64)
    with pytest.raises(UserError, match="neither"):
        fetch("ftp://127.0.0.1/net.pkl")


def test_first_call_downloads_and_the_second_does_not(server, tmp_path):
    url = f"{server.url}/a/net.pkl?x=1"
    path = fetch(url, cache_dir=tmp_path)
    assert path.read_bytes() == CONTENT
    assert path.name == f"{hashlib.md5(url.encode()).hexdigest()}_net.pkl" and path == cached_path(url, tmp_path)
    assert (tmp_path / f"{path.name}.sha256").read_text().strip() == DIGEST
    assert fetch(url, cache_dir=tmp_path, digest=DIGEST) == path
    assert len(server.requests) == 1 and names(tmp_path) == [path.name, f"{path.name}.sha256"]


def test_open_url_gives_the_bytes_of_a_url_or_path(server, tmp_path):
    for _ in range(2):
        with dnnlib.util.open_url(f"{server.url}/net.pkl", cache_dir=tmp_path) as handle:
            assert handle.read() == CONTENT
    assert len(server.requests) == 1
    (tmp_path / "mine.pkl").write_bytes(b"mine")
    with dnnlib.util.open_url(tmp_path / "mine.pkl") as handle:
        assert handle.read() == b"mine"
    with dnnlib.util.open_url((tmp_path / "mine.pkl").as_uri()) as handle:
        assert handle.read() == b"mine"
    path = dnnlib.util.open_url(f"{server.url}/net.pkl", str(tmp_path), return_filename=True)
    assert path == str(cached_path(f"{server.url}/net.pkl", tmp_path))
    with pytest.raises(UserError, match="does not exist"):
        dnnlib.util.open_url("none.pkl")


def test_cache_folder_follows_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    assert fetch(f"{server.url}/net.pkl").parent == tmp_path / "cache" / "downloads"
    assert cache_dir("gan-metrics") == tmp_path / "cache" / "gan-metrics" and cache_dir().is_dir()
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match="DNNLIB_CACHE_DIR"):
        cache_dir("downloads")


def test_damaged_cache_entry_is_downloaded_again(server, tmp_path):
    path = fetch(f"{server.url}/net.pkl", cache_dir=tmp_path)
    path.write_bytes(CONTENT[:-1] + b"x")
    assert fetch(f"{server.url}/net.pkl", cache_dir=tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_torn_transfer_is_resumed_at_once(server, tmp_path):
    server.script = ["cut"]
    assert fetch(f"{server.url}/net.pkl", cache_dir=tmp_path).read_bytes() == CONTENT
    first, second = server.requests
    assert first[1] is None and second[1].startswith("bytes=") and int(second[1][6:-1]) > 0


def test_torn_transfer_is_resumed_by_the_next_call(server, tmp_path):
    server.script = ["cut", "cut", "cut"]
    with pytest.raises(UserError, match="cannot download"):
        fetch(f"{server.url}/net.pkl", cache_dir=tmp_path)
    assert not cached_path(f"{server.url}/net.pkl", tmp_path).exists()
    assert fetch(f"{server.url}/net.pkl", cache_dir=tmp_path).read_bytes() == CONTENT
    starts = [int((wanted or "bytes=0-")[6:-1]) for _, wanted in server.requests]
    assert starts == sorted(set(starts)) and len(starts) == 4
    assert len(names(tmp_path)) == 2


def test_another_version_on_the_server_is_never_mixed_in(server, tmp_path):
    server.script = ["cut", 404]
    with pytest.raises(UserError):
        fetch(f"{server.url}/net.pkl", cache_dir=tmp_path)
    server.content, server.etag = CONTENT[::-1], '"v2"'
    assert fetch(f"{server.url}/net.pkl", cache_dir=tmp_path).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("etag", [None, '"v1"'])
def test_servers_without_ranges_or_versions_start_over(server, tmp_path, etag):
    server.etag, server.ranges, server.script = etag, False, ["cut"]
    assert fetch(f"{server.url}/net.pkl", cache_dir=tmp_path).read_bytes() == CONTENT


def test_wrong_part_and_complete_part_start_over(server, tmp_path):
    server.script = ["cut", "wrong part"]
    assert fetch(f"{server.url}/net.pkl", cache_dir=tmp_path).read_bytes() == CONTENT
    target = cached_path(f"{server.url}/other.pkl", tmp_path)
    target.with_name(target.name + ".part").write_bytes(CONTENT)
    target.with_name(target.name + ".part.origin").write_text(f"{server.url}/other.pkl\n{server.etag}")
    assert fetch(f"{server.url}/other.pkl", cache_dir=tmp_path).read_bytes() == CONTENT


def test_redirects_are_followed(server, tmp_path):
    assert fetch(f"{server.url}/moved/net.pkl", cache_dir=tmp_path).read_bytes() == CONTENT
    assert [path for path, _ in server.requests] == ["/moved/net.pkl", "/real/net.pkl"]


def test_missing_file_is_asked_for_once_and_a_tired_server_again(server, tmp_path):
    server.script = [404]
    with pytest.raises(UserError, match="404"):
        fetch(f"{server.url}/net.pkl", cache_dir=tmp_path)
    assert len(server.requests) == 1 and names(tmp_path) == []
    server.script = [503, 500]
    assert fetch(f"{server.url}/net.pkl", cache_dir=tmp_path).read_bytes() == CONTENT


def test_wrong_digest_is_refused_and_nothing_stays(server, tmp_path):
    with pytest.raises(UserError, match="SHA-256"):
        fetch(f"{server.url}/net.pkl", cache_dir=tmp_path, digest="0" * 64)
    assert not cached_path(f"{server.url}/net.pkl", tmp_path).exists()
    assert fetch(f"{server.url}/net.pkl", cache_dir=tmp_path, digest=DIGEST.upper()).read_bytes() == CONTENT


def test_a_newer_digest_replaces_the_cached_file(server, tmp_path):
    fetch(f"{server.url}/net.pkl", cache_dir=tmp_path)
    server.content = CONTENT[:100]
    wanted = hashlib.sha256(server.content).hexdigest()
    assert fetch(f"{server.url}/net.pkl", cache_dir=tmp_path, digest=wanted).read_bytes() == server.content


def test_offline_says_what_to_do_and_takes_the_file_put_by_hand(server, tmp_path):
    url = f"{server.url}/net.pkl"
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError) as error:
        fetch(url, cache_dir=tmp_path)
    target = cached_path(url, tmp_path)
    assert url in str(error.value) and str(target) in str(error.value) and "local path" in str(error.value) and "\n" not in str(error.value)
    target.write_bytes(CONTENT)
    assert fetch(url, cache_dir=tmp_path) == target
    assert (tmp_path / f"{target.name}.sha256").read_text().strip() == DIGEST


def test_a_server_that_is_asked_too_often_is_asked_again(server, tmp_path):
    server.script = [429, 429]
    assert fetch(f"{server.url}/net.pkl", cache_dir=tmp_path).read_bytes() == CONTENT


def test_a_silent_server_is_given_up_after_the_timeout(server, tmp_path):
    server.script = ["silent"] * 3
    with pytest.raises(UserError, match="no answer in time"):
        fetch(f"{server.url}/net.pkl", cache_dir=tmp_path, timeout=0.1)
    until = time.monotonic() + 120
    while len(server.requests) < 3:  # the server may come to the last one when nobody waits for it any more
        assert time.monotonic() < until
        time.sleep(0.01)
    assert len(server.requests) == 3


def test_an_end_that_cannot_be_seen_is_told_by_the_digest(server, tmp_path):
    server.script = ["cut, no length"]
    with pytest.raises(UserError, match="SHA-256"):
        fetch(f"{server.url}/net.pkl", cache_dir=tmp_path, digest=DIGEST)
    assert fetch(f"{server.url}/net.pkl", cache_dir=tmp_path, digest=DIGEST).read_bytes() == CONTENT


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The downloads folder of a cache of its own; no mirrors."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("DNNLIB_MIRRORS", raising=False)
    return cache_dir("downloads")


def test_published_files_come_from_the_first_base_that_has_them(server, cache):
    bases = [f"{server.url}/gone/", f"{server.url}/there"]
    path = fetch_published("net.pkl", bases)
    assert path == cached_path(f"{server.url}/gone/net.pkl") and path.read_bytes() == CONTENT
    assert [asked for asked, _ in server.requests] == ["/gone/net.pkl", "/there/net.pkl"]
    assert fetch_published("net.pkl", bases) == path and len(server.requests) == 2


def test_mirrors_of_the_user_come_first(server, cache, monkeypatch):
    monkeypatch.setenv("DNNLIB_MIRRORS", f"{server.url}/gone, {server.url}/mine/,")
    path = fetch_published("net.pkl", [f"{server.url}/original"])
    assert [asked for asked, _ in server.requests] == ["/gone/net.pkl", "/mine/net.pkl"]
    monkeypatch.delenv("DNNLIB_MIRRORS")
    assert fetch_published("net.pkl", [f"{server.url}/original"]) == path and len(server.requests) == 2


def test_a_mirror_may_be_a_folder(server, cache, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "net.pkl").write_bytes(CONTENT)
    monkeypatch.setenv("DNNLIB_MIRRORS", f"{tmp_path / 'empty'},{tmp_path / 'mine'}")
    assert fetch_published("net.pkl", [f"{server.url}/original"], digest=DIGEST) == tmp_path / "mine" / "net.pkl"
    assert not server.requests and not names(cache)
    with pytest.raises(UserError, match=r"net\.pkl has SHA-256"):
        fetch_published("net.pkl", [f"{server.url}/original"], digest="0" * 64)
    assert fetch_published("other.pkl", [f"{server.url}/original"]).parent == cache


@pytest.mark.parametrize("mirror", ["no/such/folder", "ftp://host/files"])
def test_mirrors_that_are_none(cache, monkeypatch, mirror):
    monkeypatch.setenv("DNNLIB_MIRRORS", mirror)
    with pytest.raises(UserError, match=f"DNNLIB_MIRRORS holds {mirror}, which is neither an existing folder nor an http or https URL"):
        fetch_published("net.pkl", ["http://127.0.0.1:9"])


def test_a_mirror_with_another_file_is_passed_over(server, cache, monkeypatch):
    monkeypatch.setenv("DNNLIB_MIRRORS", f"{server.url}/mine")
    server.content = b"another file"
    wanted = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(UserError, match=r"/original/net\.pkl \(.*/mine/net\.pkl: the file there has SHA-256 .*; the file there has SHA-256"):
        fetch_published("net.pkl", [f"{server.url}/original"], digest=wanted)
    server.script = [404]
    server.content = CONTENT
    assert fetch_published("net.pkl", [f"{server.url}/original"], digest=wanted).read_bytes() == CONTENT


def test_parts_from_different_sources_are_never_joined(server, cache):
    # Both sources call their versions by the same name, as servers that number them do.
    server.script = ["cut", 404]
    bases = [f"{server.url}/first", f"{server.url}/second"]
    assert fetch_published("net.pkl", bases).read_bytes() == CONTENT
    assert server.requests[1][1] is not None and server.requests[2] == ("/second/net.pkl", None)


def test_offline_names_every_source_and_every_way_out(cache, monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    monkeypatch.setenv("DNNLIB_MIRRORS", "http://127.0.0.1:9/mine")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    with pytest.raises(UserError) as error:
        fetch_published("net.pkl", ["http://127.0.0.1:9/original"])
    sentence = str(error.value)
    target = cached_path("http://127.0.0.1:9/original/net.pkl")
    for part in ("original/net.pkl (http://127.0.0.1:9/mine/net.pkl: no connection; no connection)", f"as {target}", "local path", "DNNLIB_MIRRORS"):
        assert part in sentence
    assert "\n" not in sentence and not names(cache)


def test_a_cache_that_cannot_be_written_serves_what_it_has(server, cache):
    """Of another user, or on a disk that is read only: folders in the way of lock and record stand for that."""
    path = cached_path(f"{server.url}/net.pkl")
    path.write_bytes(CONTENT)
    path.with_name(f".{path.name}.lock").mkdir()
    path.with_name(f"{path.name}.sha256").mkdir()
    assert fetch(f"{server.url}/net.pkl") == path and not server.requests
    assert fetch(f"{server.url}/net.pkl", digest=DIGEST) == path and not server.requests
    other = cached_path(f"{server.url}/other.pkl")
    other.with_name(f".{other.name}.lock").mkdir()
    with pytest.raises(UserError, match="cannot write into"):
        fetch(f"{server.url}/other.pkl")


def test_a_page_in_place_of_a_network_is_not_kept(server, cache):
    """Servers answer with one, and code 200, where a link has expired."""
    server.content = b"<!DOCTYPE html><p>Please log in."
    path = fetch(f"{server.url}/net.pkl")
    with pytest.raises(UserError, match=r"is a web page, .*; it is removed"):
        load_network(path)
    server.content = CONTENT
    assert names(cache) == [] and fetch(f"{server.url}/net.pkl").read_bytes() == CONTENT
    with pytest.raises(UserError):
        load_network(path)
    assert path.is_file()  # what cannot be read for another reason stays


def test_only_downloads_are_discarded(server, cache, tmp_path):
    own = tmp_path / "net.pkl"
    own.write_bytes(CONTENT)
    (tmp_path / "net.pkl.sha256").write_text("mine")
    assert not discard(own) and own.is_file() and (tmp_path / "net.pkl.sha256").is_file()
    path = fetch(f"{server.url}/net.pkl")
    assert discard(path) and names(cache) == []
    # What is put in its place is taken, whatever its digest.
    path.write_bytes(b"by hand")
    assert fetch(f"{server.url}/net.pkl").read_bytes() == b"by hand" and len(server.requests) == 1


def test_digests_are_read_once_but_never_stale(tmp_path, monkeypatch):
    reads = []
    read = download._read_digest
    monkeypatch.setattr(download, "_read_digest", lambda path: reads.append(path) or read(path))
    path = tmp_path / "net.pkl"
    path.write_bytes(CONTENT)
    assert file_digest(path) == DIGEST == file_digest(path) and len(reads) == 2  # fresh: it may still change unseen
    later = os.stat(path).st_ctime_ns + 10_000_000_000
    monkeypatch.setattr(download.time, "time_ns", lambda: later)
    assert file_digest(path) == DIGEST == file_digest(path) and len(reads) == 3
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(0, 0))
    assert file_digest(path) == hashlib.sha256(CONTENT[::-1]).hexdigest()


def _fetch_in_process(url, folder, results):
    results.put(fetch(url, cache_dir=folder).read_bytes() == CONTENT)


def test_processes_at_once_download_once(server, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_fetch_in_process, args=(f"{server.url}/net.pkl", tmp_path, results)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [True] * 3
    for process in processes:
        process.join()
    assert len(server.requests) == 1
