"""A proxy in front of an S3 server that loses, delays, repeats and spoils what passes.

Invariant: it sits on the wire, so it disturbs every client alike - obstore's retries, hidden in Rust,
included. It listens on the loopback interface only.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from support.trouble import Answer, Fault, Plan, Request, Trouble, no_trouble
from support.wire import Message, read_message

T = TypeVar("T")

_SILENCE_S = 60.0
_ANSWER_S = 60.0
_BUFFER = 1 << 20
_ENDINGS = (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, asyncio.CancelledError)
_CHECKSUMS = ("etag", "content-md5", "x-amz-checksum")
_UNHEARD = frozenset[Trouble]({"drop", "reset", "stall", "late"})
_UNANSWERED = frozenset[Trouble]({"lose", "lose_reset", "lose_stall"})


class Proxy:
    """A running proxy.

    Attributes:
        endpoint: Its base URL.
        plan: What befalls each request; may be replaced at any time.
        requests: What was asked so far.
    """

    def __init__(self, upstream: str) -> None:
        self.plan: Plan = no_trouble
        self.requests: list[Request] = []
        self._upstream = urlsplit(upstream)
        self._late: list[Message] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_BUFFER))
        self.endpoint = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def methods(self) -> list[str]:
        """The methods of the requests so far."""
        return [request.method for request in self.requests]

    def reset(self, plan: Plan = no_trouble) -> None:
        """Forget the requests so far, those that are late too, and follow another plan."""
        self.plan = plan
        self.requests.clear()
        self._late.clear()

    def land(self) -> int:
        """Let what is late reach the server now; return how many requests that were."""
        late, self._late = self._late, []
        for message in late:
            self._do(self._ask(message))
        return len(late)

    def close(self) -> None:
        """Stop answering."""
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_ANSWER_S)

    async def _stop(self) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            # A client that gave up has closed the connection: nobody is left to tell.
            with suppress(*_ENDINGS):
                while (asked := await read_message(reader)) and await self._answer(
                    asked, _Line(reader, writer)
                ):
                    pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, asked: Message, line: _Line) -> bool:
        """Treat one request as the plan has it; return whether the connection goes on."""
        method, path, _ = asked.first.split(" ")
        request = Request(len(self.requests) + 1, method, path, asked.lower_headers())
        self.requests.append(request)
        trouble = self.plan(request)
        if isinstance(trouble, Answer):
            await line.send(_made(trouble), method)
            return True
        if trouble in ("late", "again"):
            self._late.append(asked)
        if trouble in _UNHEARD:
            return await line.end(trouble)
        answer = await self._ask(_changed(asked, trouble))
        if trouble == "twice":
            answer = await self._ask(asked)
        if trouble in _UNANSWERED:
            return await line.end(trouble)
        return await line.send(answer, method, trouble)

    async def _ask(self, message: Message) -> Message:
        """Ask the server."""
        reader, writer = await asyncio.open_connection(
            self._upstream.hostname, self._upstream.port, limit=_BUFFER
        )
        try:
            closing = replace(message, headers=(*message.headers, ("Connection", "close")))
            writer.write(closing.encoded())
            await writer.drain()
            has_body = not message.first.startswith("HEAD")
            answer = await asyncio.wait_for(read_message(reader, has_body=has_body), _ANSWER_S)
            assert answer is not None, f"no answer to {message.first}"
            return answer
        finally:
            writer.close()


class _Line:
    """The connection to a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, answer: Message, method: str, trouble: Fault | None = None) -> bool:
        """Send an answer, or what is left of it; return whether the connection goes on."""
        body = answer.body
        if trouble == "flip":
            body = _flipped(body)
        if trouble in ("halve", "short"):
            body = body[: len(body) // 2 if trouble == "halve" else -1]
        claimed = answer.claimed if method == "HEAD" else len(body)
        headers = _unsummed(answer.headers) if trouble == "strip" else answer.headers
        stored = replace(answer, headers=headers, body=body).encoded(claimed)
        self._writer.write(stored[: _kept(trouble, len(stored), len(body))])
        await self._writer.drain()
        if trouble == "freeze":
            return await self.end("stall")
        return trouble not in ("cut_head", "cut_half", "cut")

    async def end(self, trouble: Trouble | None) -> bool:
        """Give no answer, or no more of it; return that the connection does not go on."""
        if trouble in ("stall", "late", "lose_stall"):
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._reader.read(), _SILENCE_S)
        if trouble in ("reset", "lose_reset"):
            socket_ = self._writer.get_extra_info("socket")
            # An end without lingering is a reset.
            socket_.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()
        return False


def _kept(trouble: Trouble | None, size: int, body: int) -> int:
    """How many bytes of an answer are sent."""
    if trouble == "cut_head":
        return (size - body) // 2
    if trouble in ("cut_half", "freeze"):
        return size - (body + 1) // 2
    # An answer without a body ends in its head then.
    return size - 1 if trouble == "cut" else size


def _changed(asked: Message, trouble: Trouble | None) -> Message:
    """What the server hears."""
    if trouble == "flip_sent":
        return replace(asked, body=_flipped(asked.body))
    if trouble == "whole":
        kept = tuple(header for header in asked.headers if header[0].lower() != "range")
        return replace(asked, headers=kept)
    return asked


def _flipped(body: bytes) -> bytes:
    middle = len(body) // 2
    return (
        body[:middle]
        + bytes(byte ^ 0x10 for byte in body[middle : middle + 1])
        + body[middle + 1 :]
    )


def _unsummed(headers: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple(header for header in headers if not header[0].lower().startswith(_CHECKSUMS))


def _made(answer: Answer) -> Message:
    return Message(f"HTTP/1.1 {answer.status} Made", (), answer.body, len(answer.body))


@contextmanager
def serve_proxy(upstream: str) -> Iterator[Proxy]:
    """Run a proxy in front of a server until the block ends."""
    proxy = Proxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
