"""A proxy in front of an S3 server that loses, delays and spoils what passes.

Invariant: it sits on the wire, so it disturbs every client alike - obstore's retries, hidden in Rust,
included.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

_HOP = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive"})


@dataclass(frozen=True)
class Request:
    """What a client asked.

    Attributes:
        number: From 1.
        method: The HTTP method.
        path: Path and query.
        headers: Names in lower case.
    """

    number: int
    method: str
    path: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Answer:
    """An answer in place of the server's."""

    status: int
    body: bytes = b""


# "drop": never reaches the server; "lose": it does, the answer does not come back; "cut": the body of
# the answer ends early; "whole": a range is ignored and the whole object sent as 200; "short": the
# answer is a complete one with one byte less.
Spoil = Literal["drop", "lose", "cut", "whole", "short"]
Plan = Callable[[Request], "Spoil | Answer | None"]


class Proxy:
    """A running proxy.

    Attributes:
        endpoint: Its base URL.
        plan: What befalls each request; may be replaced at any time.
        requests: What was asked so far.
    """

    def __init__(self, upstream: str) -> None:
        self.plan: Plan = lambda request: None
        self.requests: list[Request] = []
        self._upstream = urlsplit(upstream)
        self._lock = threading.Lock()
        self._server = _Server(self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def methods(self) -> list[str]:
        """The methods of the requests so far."""
        return [request.method for request in self.requests]

    def reset(self, plan: Plan = lambda request: None) -> None:
        """Forget the requests so far and follow another plan."""
        self.requests.clear()
        self.plan = plan

    def serve(self) -> None:
        """Answer until closed."""
        self._server.serve_forever(poll_interval=0.02)

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()

    def note(self, method: str, path: str, headers: dict[str, str]) -> Request:
        """Remember a request."""
        with self._lock:
            request = Request(len(self.requests) + 1, method, path, headers)
            self.requests.append(request)
        return request

    def forward(self, request: Request, body: bytes, *, ranged: bool) -> http.client.HTTPResponse:
        """Ask the server."""
        connection = http.client.HTTPConnection(self._upstream.netloc, timeout=30)
        headers = {
            name: value
            for name, value in request.headers.items()
            if name not in _HOP and (ranged or name != "range")
        }
        connection.request(request.method, request.path, body, headers)
        return connection.getresponse()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is inherited
        """Say nothing."""

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = self._proxy().note(self.command, self.path, headers)
        # A client that gave up has closed the connection: nobody is left to tell.
        with suppress(ConnectionError):
            self._spoil(request, body, self._proxy().plan(request))

    def _proxy(self) -> Proxy:
        assert isinstance(self.server, _Server)
        return self.server.proxy

    def _spoil(self, request: Request, body: bytes, spoil: Spoil | Answer | None) -> None:
        if isinstance(spoil, Answer):
            self._answer(spoil.status, [], spoil.body, len(spoil.body))
            return
        if spoil != "drop":
            response = self._proxy().forward(request, body, ranged=spoil != "whole")
            content = response.read()
            whole = response.headers.get("Content-Length") if self.command == "HEAD" else None
            length = len(content) if whole is None else int(whole)
            if spoil in ("cut", "short"):
                content = content[:-1]
            if spoil != "lose":
                length -= spoil == "short"
                self._answer(response.status, response.getheaders(), content, length)
        if spoil in ("drop", "lose", "cut"):
            self.close_connection = True

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, length: int
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()


@contextmanager
def serve_proxy(upstream: str) -> Iterator[Proxy]:
    """Run a proxy in front of a server until the block ends."""
    proxy = Proxy(upstream)
    thread = threading.Thread(target=proxy.serve, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join()
