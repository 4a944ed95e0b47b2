"""Downloads: whatever the server does, the caller gets the whole right file or one sentence."""

import hashlib
import http.server
import multiprocessing
import threading

import pytest

from dnnlib import UserError, download
from dnnlib.download import cache_dir, cached_path, fetch

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
        if fault in (404, 500, 503):
            return self._answer(fault, b"no")
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
        self._answer(206 if start else 200, body, headers, cut=fault == "cut")

    def _answer(self, status, body, headers=None, cut=False):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body)), "Connection": "close"} | (headers or {})).items():
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
    httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield httpd
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
    target.with_name(target.name + ".part.version").write_text(server.etag)
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


def _fetch_in_process(url, folder, results):
    results.put(fetch(url, cache_dir=folder).read_bytes() == CONTENT)


def test_processes_at_once_download_once(server, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_fetch_in_process, args=(f"{server.url}/net.pkl", tmp_path, results)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=20) for _ in processes] == [True] * 3
    for process in processes:
        process.join()
    assert len(server.requests) == 1
