"""What may be asked of the page's server: a fixed table of addresses, each with parameters that are parsed, bounded and otherwise refused.

It listens on 127.0.0.1 only, reads no file that a request names, writes nothing, and answers only requests that were made to this machine's own
address (a page of another site that resolves its name to 127.0.0.1 sends that name, and is turned away) by this page or by hand.
"""

from __future__ import annotations

import json
import logging
import pathlib
import re
import socket
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

from dnnlib import UserError
from experiments.explore.model import Explorer, View
from training.sampling import MAX_SEED

ADDRESS, HTTP_PORT = "127.0.0.1", 80
LONGEST_TARGET = 500  # bytes of path and query
MOST_REQUESTS = 64  # at a time
SECONDS = 30  # that a connection may be silent
FOLDER = pathlib.Path(__file__).parent
STATIC = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",  # another run may be at this address tomorrow
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Refused(Exception):
    """A request that is not answered, with the status that says so."""

    def __init__(self, status: HTTPStatus, why: str):
        super().__init__(why)
        self.status = status


class Query:
    """The parameters of a request, each given once and each asked for.

    Args:
        text: what stands behind the question mark.

    Raises:
        Refused: text that is no list of name=value, or a name twice.
    """

    def __init__(self, text: str):
        try:
            pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=20)
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, "the query is not a list of name=value") from error
        self._values = dict(pairs)
        if len(self._values) != len(pairs):
            raise Refused(HTTPStatus.BAD_REQUEST, "a parameter is given twice")

    def integer(self, name: str, last: int, default: int | None = None) -> int | None:
        """A whole number from 0 to `last`."""
        text = self._values.pop(name, None)
        if text is None:
            return default
        if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > last:
            raise Refused(HTTPStatus.BAD_REQUEST, f"{name} is a whole number from 0 to {last}")
        return int(text)

    def number(self, name: str, low: float, high: float, default: float) -> float:
        """A decimal number within bounds."""
        text = self._values.pop(name, None)
        if text is None:
            return default
        if not re.fullmatch(r"-?[0-9]{1,3}(\.[0-9]{1,6})?", text) or not low <= float(text) <= high:
            raise Refused(HTTPStatus.BAD_REQUEST, f"{name} is a number from {low:g} to {high:g}")
        return float(text)

    def choice(self, name: str, known: tuple[str, ...]) -> str:
        """One of several words; the first by default."""
        text = self._values.pop(name, known[0])
        if text not in known:
            raise Refused(HTTPStatus.BAD_REQUEST, f"{name} is one of {', '.join(known)}")
        return text

    def end(self) -> None:
        """Refuses what nobody asked for."""
        if self._values:
            raise Refused(HTTPStatus.BAD_REQUEST, "there is a parameter that this address does not take")


class Pages:
    """What stands at each address.

    Args:
        explorer: makes it.
        about: of the run, for the page: JSON-able.
    """

    def __init__(self, explorer: Explorer, about: dict[str, Any]):
        self.explorer, self.about = explorer, about
        self.static = {path: (kind, (FOLDER / name).read_bytes()) for path, (name, kind) in STATIC.items()}
        self.routes: dict[str, Callable[[Query], tuple[str, bytes]]] = {
            "/about.json": self._about,
            "/image.png": self._image,
            "/real.png": self._real,
            "/nearest.json": self._nearest,
            "/map.json": self._map,
        }

    def answer(self, target: str) -> tuple[str, bytes]:
        """(content type, body) at a path with its query. Raises Refused."""
        path, _, query = target.partition("?")
        if path in self.static and not query:
            return self.static[path]
        if path not in self.routes:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        return self.routes[path](Query(query))

    def _about(self, query: Query) -> tuple[str, bytes]:
        query.end()
        return _as_json(self.about)

    def _image(self, query: Query) -> tuple[str, bytes]:
        return "image/png", self.explorer.image(self._view(query))

    def _real(self, query: Query) -> tuple[str, bytes]:
        index = query.integer("index", len(self.explorer.dataset) - 1, 0)
        query.end()
        return "image/png", self.explorer.real_image(index)

    def _nearest(self, query: Query) -> tuple[str, bytes]:
        return _as_json(self.explorer.nearest(self._view(query)))

    def _map(self, query: Query) -> tuple[str, bytes]:
        label, trunc = self._look(query)
        query.end()
        return _as_json(self.explorer.map(label, trunc))

    def _look(self, query: Query) -> tuple[int | None, float]:
        classes = self.explorer.G.c_dim
        label = query.integer("class", classes - 1, 0) if classes else None
        return label, query.number("trunc", 0, 2, 1.0) if self.about["truncation"] else 1.0

    def _view(self, query: Query) -> View:
        seed, to = query.integer("seed", MAX_SEED, 0), query.integer("to", MAX_SEED)
        t, space = query.number("t", 0, 1, 0.0), query.choice("space", ("z", "w"))
        label, trunc = self._look(query)
        query.end()
        return View(seed, to, t, space, label, trunc)


def _as_json(value: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(value, allow_nan=False).encode()


class Server(ThreadingHTTPServer):
    """The server of one page, listening on 127.0.0.1.

    Args:
        pages: what it serves.
        port: 0 takes a free one.

    Raises:
        UserError: the port is taken.
    """

    daemon_threads = True
    allow_reuse_address = sys.platform != "win32"  # there it would let two programs share a port

    def __init__(self, pages: Pages, port: int):
        self.pages = pages
        self._slots = threading.BoundedSemaphore(MOST_REQUESTS)
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise UserError(f"--port={port}: cannot listen on {ADDRESS}:{port} ({error.strerror}); give another port, or 0 for any") from error
        self.hosts = own_hosts(self.server_port)
        self.url = f"http://{ADDRESS}:{self.server_port}/"

    def process_request(self, request: socket.socket, client_address: Any) -> None:
        """A thread for a request, if there are not too many."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: socket.socket, client_address: Any) -> None:
        """The work of such a thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no error; anything else is printed."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def own_hosts(port: int) -> set[str]:
    """What a browser may call this server: of port 80, which is that of every address, it says nothing."""
    names = (ADDRESS, "localhost")
    return {f"{name}:{port}" for name in names} | (set(names) if port == HTTP_PORT else set())


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "explore", ""
    timeout = SECONDS

    def do_GET(self) -> None:
        """Answers, or says why not."""
        try:
            self._check()
            kind, body = self.server.pages.answer(self.path)
            status = HTTPStatus.OK
        except Refused as refusal:
            status, kind, body = refusal.status, "text/plain; charset=utf-8", f"{refusal}\n".encode()
            self.close_connection = True
        except UserError as error:
            status, kind, body = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", f"{error}\n".encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def _check(self) -> None:
        """Refuses what was not asked of this machine, or by a page of another site."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            raise Refused(HTTPStatus.FORBIDDEN, "this page is served to its own address only")
        origins = {f"http://{host}" for host in self.server.hosts}
        foreign = self.headers.get("Origin", "http://" + hosts[0].lower()) not in origins
        site = self.headers.get("Sec-Fetch-Site", "none")
        if foreign or (site not in ("none", "same-origin") and self.path != "/"):
            raise Refused(HTTPStatus.FORBIDDEN, "this page answers no other page")
        if len(self.path) > LONGEST_TARGET:
            raise Refused(HTTPStatus.REQUEST_URI_TOO_LONG, "the address is too long")
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            raise Refused(HTTPStatus.BAD_REQUEST, "nothing is to be sent here")

    def log_message(self, format: str, *args: Any) -> None:
        """To the log of Python, where nobody listens by default: a page asks for many images."""
        logging.getLogger(__name__).debug(format, *args)
