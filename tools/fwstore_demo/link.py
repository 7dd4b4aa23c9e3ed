"""A link between two sites: a TCP proxy with a rate, a delay and a switch.

Invariant: what passes is delivered in order and unchanged; while the link is cut nothing passes at all, not even
what was under way.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

_PIECE = 1 << 16
_QUEUE = 256
_PATIENCE_S = 10.0


class Link:
    """A running link to one server; stops with `close`.

    Args:
        port: Of the server, on this machine.
        bytes_per_s: Rate of each direction.
        delay_s: One way.

    Attributes:
        port: Where the link listens, on this machine.
        bytes_passed: Both directions together.
    """

    def __init__(self, port: int, *, bytes_per_s: float, delay_s: float) -> None:
        self._upstream = port
        self._rate = bytes_per_s
        self._delay_s = delay_s
        self._is_cut = False
        self._free_at = {"there": 0.0, "back": 0.0}
        self._connections: set[asyncio.Task[None]] = set()
        self.bytes_passed = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Let nothing pass any more."""
        self._is_cut = True
        self._do(self._drop_all())

    def heal(self) -> None:
        """Let everything pass again."""
        self._is_cut = False

    def close(self) -> None:
        """Stop listening."""
        self._server.close()
        self._do(self._drop_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE_S)

    async def _drop_all(self) -> None:
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        # A connection that breaks is what links do.
        with suppress(OSError, asyncio.CancelledError):
            try:
                if not self._is_cut:
                    await self._connect(reader, writer)
            finally:
                self._connections.discard(task)
                writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        try:
            await asyncio.gather(
                self._pass(reader, far_writer, "there"), self._pass(far_reader, writer, "back")
            )
        finally:
            far_writer.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str
    ) -> None:
        """Take pieces in at the rate of the link, and let each out after the delay."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUE)
        deliver = asyncio.ensure_future(self._deliver(line, writer))
        try:
            while piece := await reader.read(_PIECE):
                await line.put((await self._send(len(piece), way) + self._delay_s, piece))
            await line.put((0.0, b""))
            await deliver
        finally:
            deliver.cancel()

    async def _send(self, size: int, way: str) -> float:
        """Wait until the link has taken a piece in; return when that was."""
        now = self._loop.time()
        self._free_at[way] = max(self._free_at[way], now) + size / self._rate
        self.bytes_passed += size
        await asyncio.sleep(self._free_at[way] - now)
        return self._loop.time()

    async def _deliver(
        self, line: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        while True:
            when, piece = await line.get()
            if not piece:
                break
            await asyncio.sleep(max(0.0, when - self._loop.time()))
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
