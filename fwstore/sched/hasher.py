"""Hashes staged bytes in a process beside, which a script that holds the interpreter lock cannot slow down.

A thread that wants the lock from a busy script waits 5 ms for it, and two hashes of every chunk would ask for it twice:
a save of 1 GB took 25 s that way. Here a lane asks twice for a whole group of chunks.

Invariant: what is returned are the hashes of the bytes that lay there during the call. When the process cannot be had,
does not answer or answers wrongly, nothing is returned, now or later, and the caller hashes by itself.
"""

from __future__ import annotations

import queue
import socket
import struct
import subprocess
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fwstore.base.notices import log
from fwstore.base.units import MIB
from fwstore.codec.hashing import ContentHash, Hashes, xxh3_128
from fwstore.sched.hash_process import ANSWER_BYTES, FILES_MAX, HEADER, ID_BYTES, STRETCH, receive
from fwstore.sched.locks import Lock, renew_after_fork
from fwstore.sched.shared import SharedFile, SharedPlace

_BEGIN = (
    "import sys; sys.path[:] = sys.argv[3:]; import runpy; "
    "runpy.run_path(sys.argv[1])['serve']([int(text) for text in sys.argv[2].split(',')])"
)
_ANSWER_TIME = struct.pack("ll", 60, 0)
_END_S = 5.0
# Well below what a core hashes, and half of what a busy script lets a thread wait for the interpreter lock.
_HASHED_PER_S = 1000 * MIB
_WAIT_S = 0.0025
_HASHES_PER_CHUNK = 2


def waits_for_lock(size_bytes: int, chunks: int, elapsed_s: float) -> bool:
    """Return whether a thread that hashed some chunks must have waited for the interpreter lock at every hash."""
    return elapsed_s > size_bytes / _HASHED_PER_S + chunks * _HASHES_PER_CHUNK * _WAIT_S


@dataclass(frozen=True, slots=True)
class Stretch:
    """Chunks that lie one after the other in shared memory.

    Attributes:
        place: Where the first one begins.
        memory: The bytes of all.
        lengths: Bytes of every chunk, at least one.
    """

    place: SharedPlace
    memory: memoryview
    lengths: Sequence[int]


class Hasher:
    """A process that hashes shared memory; started when first asked, ended by `close` or with its owner.

    Args:
        connections: So many threads may ask at once; others wait.
    """

    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._lock = Lock()
        self._lost = not _can_start()
        self._wanted = False
        self._running: _Running | None = None
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Leave the process to the parent."""
        running, self._running = self._running, None
        if running is not None:
            running.disown()

    def close(self) -> None:
        """End the process; it starts again when asked."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            running.end()

    @property
    def wanted(self) -> bool:
        """True once threads were seen to hash slowly: where nothing keeps Python busy they are faster."""
        return self._wanted

    def want(self) -> None:
        """Let all that follows be hashed beside."""
        self._wanted = True

    def hash(self, content_hash: ContentHash, stretches: Sequence[Stretch]) -> list[Hashes] | None:
        """Return the hashes of all chunks in order; None when the process cannot tell them."""
        process = self._process()
        files = list(dict.fromkeys(stretch.place.file for stretch in stretches))
        if process is None or len(files) > FILES_MAX:
            return None
        try:
            return process.hash(content_hash, stretches, files)
        except (OSError, EOFError) as error:
            self._lose(process, error)
            return None

    def _process(self) -> _Running | None:
        with self._lock:
            if self._running is None and not self._lost:
                try:
                    self._running = _Running(self._connections)
                except OSError as error:
                    self._lost = True
                    log(
                        f"no process to hash in can be started ({error}); saves hash in their threads"
                    )
            return self._running

    def _lose(self, process: _Running, error: Exception) -> None:
        with self._lock:
            first, self._lost = not self._lost, True
            if self._running is process:
                self._running = None
        process.end()
        if first:
            log(f"the process that hashes is lost ({error}); saves go on and hash in their threads")


class _Running:
    """A started process and the ways to ask it."""

    def __init__(self, connections: int) -> None:
        pairs = [socket.socketpair() for _ in range(connections)]
        ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        try:
            self._process = _start([connection.fileno() for connection in theirs])
        except BaseException:
            _close(ours)
            raise
        finally:
            _close(theirs)
        self._ours = ours
        self._free: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        for connection in ours:
            # Not `settimeout`, which would ask for the interpreter lock once more before every answer.
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                connection.setsockopt(socket.SOL_SOCKET, option, _ANSWER_TIME)
            self._free.put(connection)
        # Files whose memory the process has proved to see as this one does.
        self._proved: set[int] = set()
        self._finalizer = weakref.finalize(self, _end, ours, self._free, self._process)

    def hash(
        self, content_hash: ContentHash, stretches: Sequence[Stretch], files: Sequence[SharedFile]
    ) -> list[Hashes]:
        """Ask and wait for the answer.

        Raises:
            OSError: The process does not answer, or sees other bytes.
            EOFError: It ended.
        """
        request = _request(content_hash.key or b"", stretches, files)
        chunks = sum(len(stretch.lengths) for stretch in stretches)
        connection = self._free.get()
        try:
            sent = socket.send_fds(connection, [request], [file.descriptor for file in files])
            if sent < len(request):
                connection.sendall(request[sent:])
            answer = receive(connection, chunks * ANSWER_BYTES)
        finally:
            self._free.put(connection)
        found = [
            Hashes(
                answer[start : start + ID_BYTES], answer[start + ID_BYTES : start + ANSWER_BYTES]
            )
            for start in range(0, len(answer), ANSWER_BYTES)
        ]
        self._prove(stretches, found)
        return found

    def end(self) -> None:
        """Close the connections and wait for the end of the process."""
        self._finalizer()

    def disown(self) -> None:
        """In a forked child: close the connections, so that the process sees when the parent closes its own."""
        self._finalizer.detach()
        _close(self._ours)
        # Who is not its parent cannot wait for it.
        self._process.returncode = 0

    def _prove(self, stretches: Sequence[Stretch], found: Sequence[Hashes]) -> None:
        """Compare one digest of every file that is new: a process that sees other bytes must not be believed."""
        first = 0
        for stretch in stretches:
            if stretch.place.file.number not in self._proved:
                if found[first].digest != xxh3_128(stretch.memory[: stretch.lengths[0]]):
                    raise OSError("it does not see the bytes that are there")
                self._proved.add(stretch.place.file.number)
            first += len(stretch.lengths)


def _request(key: bytes, stretches: Sequence[Stretch], files: Sequence[SharedFile]) -> bytes:
    number = {file: position for position, file in enumerate(files)}
    lengths = [length for stretch in stretches for length in stretch.lengths]
    rows = [
        STRETCH.pack(number[stretch.place.file], stretch.place.offset, len(stretch.lengths))
        for stretch in stretches
    ]
    header = HEADER.pack(len(files), len(key), len(rows), len(lengths))
    return b"".join([header, key, *rows, struct.pack(f"<{len(lengths)}Q", *lengths)])


def _can_start() -> bool:
    # A frozen program is its own interpreter: started again it would train again.
    return (
        bool(sys.executable) and not getattr(sys, "frozen", False) and hasattr(socket, "send_fds")
    )


def _start(descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    script = str(Path(__file__).with_name("hash_process.py"))
    numbers = ",".join(map(str, descriptors))
    # Isolated and without site packages of its own: it finds what this process would find, and starts within 20 ms.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _BEGIN, script, numbers, *sys.path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=descriptors,
        start_new_session=True,
    )


def _close(connections: Sequence[socket.socket]) -> None:
    for connection in connections:
        connection.close()


def _end(
    connections: Sequence[socket.socket],
    free: queue.SimpleQueue[socket.socket],
    process: subprocess.Popen[bytes],
) -> None:
    for connection in connections:
        # Who waits for an answer hears at once that there is none.
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
    returned = []
    # Closed only when nobody uses it: its number may belong to another file then.
    for _ in connections:
        with suppress(queue.Empty):
            connection = free.get(timeout=_END_S)
            connection.close()
            returned.append(connection)
    for connection in returned:
        # Who asks now is refused, and does not wait.
        free.put(connection)
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
