"""The process beside that hashes; run by its path, so that it starts within milliseconds and stays small.

It imports nothing of fwstore. A request on a connection is a header, the files that are the memory, the key of the
BLAKE3, the stretches of chunks that lie one after the other, and the lengths of all chunks; the answer is BLAKE3 and
XXH3-128 of every chunk in order.

Invariant: memory is only read; the process ends when its parent has closed the connections or is gone.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import struct
import threading
from contextlib import suppress
from itertools import islice

import xxhash
from blake3 import blake3

HEADER = struct.Struct("<IIII")  # files, bytes of the key, stretches, chunks
STRETCH = struct.Struct("<QQQ")  # number of the file, offset, chunks
LENGTH = struct.Struct("<Q")
ID_BYTES = 32
ANSWER_BYTES = ID_BYTES + 16
FILES_MAX = 64
_ALIVE_MS = 10_000
# What is sent to a whole group of processes is meant for those that train; they still need the hashes then.
_NOT_MEANT = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)

_mapped: dict[tuple[int, int], memoryview] = {}


def serve(descriptors: list[int]) -> None:
    """Answer on every connection in a thread of its own until all are closed."""
    for number in _NOT_MEANT:
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    threads = [
        threading.Thread(target=_serve_one, args=(socket.socket(fileno=descriptor), parent))
        for descriptor in descriptors
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _serve_one(connection: socket.socket, parent: int) -> None:
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    # It went away in the middle of a request: nobody is left to be told.
    with connection, suppress(EOFError, ConnectionError):
        while True:
            if not waiting.poll(_ALIVE_MS):
                if os.getppid() != parent:
                    return
                continue
            header, descriptors, _, _ = socket.recv_fds(connection, HEADER.size, FILES_MAX)
            if not header:
                return
            header += receive(connection, HEADER.size - len(header))
            connection.sendall(_answer(connection, header, descriptors))


def _answer(connection: socket.socket, header: bytes, descriptors: list[int]) -> bytes:
    files, key_bytes, stretches, chunks = HEADER.unpack(header)
    memory = [_map(descriptor) for descriptor in descriptors]
    if len(memory) != files:
        raise OSError("a request came without its memory")
    key = receive(connection, key_bytes)
    rows = STRETCH.iter_unpack(receive(connection, stretches * STRETCH.size))
    lengths = LENGTH.iter_unpack(receive(connection, chunks * LENGTH.size))
    answer: list[bytes] = []
    for file, start, count in rows:
        answer += _hash(key, memory[file][start:], [length for (length,) in islice(lengths, count)])
    return b"".join(answer)


def _hash(key: bytes, memory: memoryview, lengths: list[int]) -> list[bytes]:
    if sum(lengths) > memory.nbytes:
        raise OSError("a request asks for bytes that are not there")
    found = []
    start = 0
    for length in lengths:
        chunk = memory[start : start + length]
        hasher = blake3(key=key) if key else blake3()
        found += [hasher.update(chunk).digest(), xxhash.xxh3_128_digest(chunk)]
        start += length
    return found


def _map(descriptor: int) -> memoryview:
    """Return the memory of a file and close it; a file that was shown before stays mapped."""
    status = os.fstat(descriptor)
    # A mapped file keeps its number for itself.
    name = status.st_dev, status.st_ino
    try:
        if name not in _mapped:
            _mapped[name] = memoryview(mmap.mmap(descriptor, status.st_size, prot=mmap.PROT_READ))
    finally:
        os.close(descriptor)
    return _mapped[name]


def receive(connection: socket.socket, size: int) -> bytes:
    """Return the next bytes of a connection.

    Raises:
        EOFError: It was closed before they came.
    """
    content = bytearray(size)
    missing = memoryview(content)
    while missing:
        count = connection.recv_into(missing)
        if not count:
            raise EOFError("it ended")
        missing = missing[count:]
    return bytes(content)
