"""Downloads where the machine is at fault, or between it and the server: locks, permissions, compression, certificates, proxies."""

import errno
import os
import pathlib
import random
import sys

import pytest
import test_download
from test_download import CONTENT, DIGEST, names

from dnnlib import UserError, download
from dnnlib.download import cached_path, fetch

server = test_download.server  # the fixture


def refuse(*_, **__):
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("without", ["in the platform", "in the file system"])
def test_without_locks_nobody_touches_the_partial_file_of_another(server, tmp_path, monkeypatch, without):
    def no_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    if without == "in the platform":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr("fcntl.flock", no_locks)
    url = f"{server.url}/net.pkl"
    target = cached_path(url, tmp_path)
    others = {f"{target.name}.part": b"\0" * 1000, f"{target.name}.part.origin": f"{url}\n{server.etag}".encode()}
    for name, contents in others.items():
        (tmp_path / name).write_bytes(contents)
    server.script = ["cut"] * download.ATTEMPTS
    with pytest.raises(UserError, match="cannot download"):
        fetch(url, cache_dir=tmp_path)
    assert names(tmp_path) == sorted(others)  # its own part is of no use to anybody
    server.script = ["cut"]
    assert fetch(url, cache_dir=tmp_path).read_bytes() == CONTENT
    resumed = [wanted is not None for _, wanted in server.requests]
    assert resumed == [False, True, True, False, True]  # within a call it goes on with its own part
    assert {name: (tmp_path / name).read_bytes() for name in others} == others


def test_a_cached_file_stays_until_it_is_replaced(server, tmp_path, monkeypatch):
    """Where there are no locks, another process may be about to open it."""
    path = fetch(f"{server.url}/net.pkl", cache_dir=tmp_path)
    path.write_bytes(b"damaged")
    there, write = [], download.atomic_write_text
    monkeypatch.setattr(download, "atomic_write_text", lambda *args: there.append(path.is_file()) or write(*args))
    assert fetch(f"{server.url}/net.pkl", cache_dir=tmp_path).read_bytes() == CONTENT
    assert there == [True, True]  # the origin, the record


def test_a_file_that_may_not_be_read_is_named(server, tmp_path, monkeypatch):
    """Such as one in the cache of another user, whose files are their own."""
    path = fetch(f"{server.url}/net.pkl", cache_dir=tmp_path)
    monkeypatch.setattr(download, "_read_digest", refuse)
    with pytest.raises(UserError, match=f"cannot read {path}: Permission denied; make it readable, or use another cache folder"):
        fetch(f"{server.url}/net.pkl", cache_dir=tmp_path)
    with pytest.raises(UserError, match=f"cannot read {path}: Permission denied"):
        fetch(path, digest=DIGEST)


def test_a_cache_folder_that_may_not_be_searched_is_named(server, tmp_path, monkeypatch):
    stat = os.stat

    def searched(path, **kwargs):
        return refuse() if not isinstance(path, int) and pathlib.Path(path).parent == tmp_path else stat(path, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", searched)
        patched.setattr(download, "open", refuse, raising=False)
        with pytest.raises(UserError, match=f"cannot write into {tmp_path}: Permission denied"):
            fetch(f"{server.url}/net.pkl", cache_dir=tmp_path)


def test_a_body_that_is_compressed_against_our_wish_is_whole_and_never_resumed(server, tmp_path):
    server.content = random.Random(0).randbytes(10 * download.CHUNK_BYTES)  # which does not get shorter
    for name, script, resumed in (
        ("a", ["gzip"], [False]),
        ("b", ["gzip, cut", "gzip"], [False, False]),
        ("c", ["cut", "gzip"], [False, True, False]),
    ):
        server.requests.clear()
        server.script = script
        assert fetch(f"{server.url}/{name}", cache_dir=tmp_path).read_bytes() == server.content
        assert [wanted is not None for _, wanted in server.requests] == resumed


PROXY = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("scheme", "environment", "reason"),
    [
        ("https", {}, "no secure connection"),  # the server speaks http
        ("http", {"http_proxy": PROXY, "no_proxy": ""}, "no connection through the proxy, check HTTP_PROXY and HTTPS_PROXY"),
        ("https", {"REQUESTS_CA_BUNDLE": "/no/such/bundle"}, r"no request can be made \(.*/no/such/bundle\), check REQUESTS_CA_BUNDLE"),
    ],
    ids=["TLS", "proxy", "certificates"],
)
def test_what_fails_on_the_way_is_told_apart(server, tmp_path, monkeypatch, scheme, environment, reason):
    for name, value in ({"no_proxy": "127.0.0.1"} | environment).items():
        monkeypatch.setenv(name, value)
        if name.endswith("_proxy"):
            monkeypatch.setenv(name.upper(), value)
    url = f"{scheme}://{server.url.removeprefix('http://')}/net.pkl"
    with pytest.raises(UserError, match=rf"^cannot download {url} \({reason}.*\): go online") as error:
        fetch(url, cache_dir=tmp_path)
    assert "\n" not in str(error.value) and names(tmp_path) == []
