"""HTTP messages on asyncio streams: read whole, changed at will, written again.

Invariant: a message is kept byte by byte but for how its body was framed; whoever writes it decides what length
it claims, so that a test may lie about it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

_FRAMING = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive"})


@dataclass(frozen=True)
class Message:
    """A request or an answer.

    Attributes:
        first: Its first line.
        headers: Names as they came, without those that frame the body.
        body: All of it.
        claimed: What Content-Length said, where it said something.
    """

    first: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    claimed: int | None

    def lower_headers(self) -> dict[str, str]:
        """The headers by names in lower case."""
        return {name.lower(): value for name, value in self.headers}

    def encoded(self, length: int | None = None) -> bytes:
        """Return its bytes, with a true Content-Length or the given one."""
        claimed = len(self.body) if length is None else length
        lines = [self.first, *(f"{name}: {value}" for name, value in self.headers)]
        head = "\r\n".join([*lines, f"Content-Length: {claimed}", "", ""])
        return head.encode("latin-1") + self.body


async def read_message(stream: asyncio.StreamReader, *, has_body: bool = True) -> Message | None:
    """Read one message; None when the other side has closed the connection before it.

    Args:
        stream: Where from.
        has_body: Whether what Content-Length speaks of follows; not so in the answer to HEAD.
    """
    try:
        head = await stream.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.decode("latin-1")[:-4].split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    framing = {name.lower(): value for name, value in headers if name.lower() in _FRAMING}
    claimed = int(framing["content-length"]) if "content-length" in framing else None
    body = b""
    if has_body and framing.get("transfer-encoding", "").lower() == "chunked":
        body = await _read_chunks(stream)
    elif has_body and claimed:
        body = await stream.readexactly(claimed)
    kept = tuple((name, value) for name, value in headers if name.lower() not in _FRAMING)
    return Message(first, kept, body, claimed)


async def _read_chunks(stream: asyncio.StreamReader) -> bytes:
    chunks: list[bytes] = []
    while size := int((await stream.readline()).partition(b";")[0], 16):
        chunks.append(await stream.readexactly(size))
        await stream.readline()
    # The last chunk is empty; an empty line ends the message.
    await stream.readline()
    return b"".join(chunks)
