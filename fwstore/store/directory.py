"""A store in a directory of a POSIX file system, local or shared by many hosts.

Invariant: a key appears by one `link` or `rename` of a file whose bytes were flushed before, and the
call that made it appear returns only after the directory was flushed too. The protocol of each call
is in docs/spec/store.md.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from typing_extensions import Buffer

from fwstore.base.errors import AlreadyExists, InvalidInput, LimitExceeded, NotFound, Unavailable
from fwstore.store.base import Capabilities, Mode, ObjectInfo, ReadInto
from fwstore.store.folders import Folder, Folders, Parts, scan
from fwstore.store.listing import walk_files
from fwstore.store.naming import validate_key, validate_prefix
from fwstore.store.posix import (
    CREATE_FLAGS,
    READ_FLAGS,
    flush_folder,
    link_new,
    read_fully,
    start_writeback,
    translated,
    write_fully,
)
from fwstore.store.ranges import check_range, resolve_range
from fwstore.store.views import flat_views

if TYPE_CHECKING:
    from fwstore.sched.runtime import Runtime

T = TypeVar("T")

_TEMPORARY: Parts = (".tmp",)
_TEMPORARY_PREFIX = "/".join(_TEMPORARY) + "/"
_ATTEMPTS_MAX = 16
# Smaller pieces cost a third more system time of a save: two lanes then allocate blocks in turns.
_WRITEBACK_BYTES = 32 << 20
_MOVED = frozenset({errno.ENOENT, errno.ESTALE})
_CAPABILITIES = Capabilities(
    kind="directory",
    shared=True,
    remote=False,
    keeps_metadata=False,
    spread_max=16,
    requests_max=16,
)


@dataclass(frozen=True, slots=True)
class _Temporary:
    """A file being written where no reader looks."""

    folder: Folder
    name: str
    descriptor: int

    def drop(self) -> None:
        """Close the file and remove its temporary name, if it still has it."""
        # Best effort: what cannot be removed now is found by `clean_temporary`.
        with suppress(OSError):
            os.close(self.descriptor)
        with suppress(OSError):
            os.unlink(self.name, dir_fd=self.folder.descriptor)


class DirectoryStore:
    """Objects as files below a root directory.

    Args:
        root: The directory; it is made when the first object is written.
        runtime: Where the names of temporary files come from.
    """

    def __init__(self, root: str | os.PathLike[str], runtime: Runtime) -> None:
        self._root = Path(root).absolute()
        self._ids = runtime.ids
        self._folders = Folders(self._root)

    def __repr__(self) -> str:
        return f"DirectoryStore({self.url!r})"

    @property
    def url(self) -> str:
        """The path of the root directory."""
        return str(self._root)

    @property
    def capabilities(self) -> Capabilities:
        """What this store can do."""
        return _CAPABILITIES

    def put(
        self, key: str, buffers: Sequence[Buffer], *, mode: Mode, write_id: str | None = None
    ) -> None:
        """Write an object whole; the write id is not kept."""
        del write_id
        parts = _parts(key)
        views = flat_views(buffers)
        with translated("write", self._name(key)):
            temporary = self._open_temporary()
            try:
                write_fully(temporary.descriptor, views)
                self._publish(temporary, parts, mode)
            finally:
                temporary.drop()

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        """Return a whole object."""
        with self._reading(key) as (descriptor, size):
            if size > limit_bytes:
                raise LimitExceeded(
                    f"{self._name(key)} has {size} bytes; the limit is {limit_bytes}"
                )
            return self._read(key, descriptor, 0, size)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; a negative offset counts from the end."""
        check_range(key, offset, length)
        with self._reading(key) as (descriptor, size):
            return self._read(key, descriptor, resolve_range(key, size, offset, length), length)

    def read_into(self, key: str, reads: Sequence[ReadInto]) -> None:
        """Fill caller's buffers from several ranges of one object, without a copy."""
        with self._reading(key) as (descriptor, _):
            for read in reads:
                read_fully(descriptor, read.offset, flat_views(read.buffers), self._name(key))

    def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object."""
        with self._reading(key) as (descriptor, size):
            return ObjectInfo(key, size, os.fstat(descriptor).st_mtime)

    def list(
        self, prefix: str, *, start_after: str = "", limit: int | None = None
    ) -> Iterator[ObjectInfo]:
        """Yield objects whose key begins with `prefix`, in byte order of the keys."""
        path, slash, _ = validate_prefix(prefix).rpartition("/")
        parts = tuple(path.split("/")) if slash else ()
        with translated("list", self._name(prefix)):
            try:
                folder = self._found(parts, lambda folder: folder)
            except (FileNotFoundError, NotADirectoryError):
                return
            yield from islice(walk_files(folder, path + slash, prefix, start_after), limit)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, and directories that this leaves empty."""
        touched: set[Parts] = set()
        for key in keys:
            parts = _parts(key)
            with (
                translated("delete", self._name(key)),
                suppress(FileNotFoundError, NotADirectoryError),
            ):
                self._found(parts[:-1], partial(_unlink, parts[-1]))
                touched.add(parts[:-1])
        with translated("tidy", self.url):
            for folder in touched:
                self._flush(folder)
                self._prune(folder)

    def upload(self, key: str) -> _FileUpload:
        """Begin a large object under a key that no one else writes."""
        parts = _parts(key)
        with translated("begin", self._name(key)):
            temporary = self._open_temporary()
        return _FileUpload(
            temporary, self._name(key), lambda: self._publish(temporary, parts, "overwrite")
        )

    def clean_temporary(self, *, older_than_s: float) -> Sequence[ObjectInfo]:
        """Remove temporary files that dead processes left and return them.

        A process of this machine that is gone is known to be dead; for others age decides, by the clock of
        the file system. A live writer whose file is removed fails with `Unavailable`: nothing is lost but
        that attempt.
        """
        with translated("clean", self.url):
            mine = self._open_temporary()
            try:
                now = os.fstat(mine.descriptor).st_mtime
                old = _old_files(mine.folder, now - older_than_s)
                for found in old:
                    with suppress(FileNotFoundError):
                        _unlink(found.key.removeprefix(_TEMPORARY_PREFIX), mine.folder)
                return old
            finally:
                mine.drop()

    def find_temporary(self, *, before: float) -> Sequence[ObjectInfo]:
        """Return temporary files that dead processes left; writes nothing, so the caller tells the time."""
        with translated("list", self.url):
            try:
                return self._found(_TEMPORARY, lambda folder: _old_files(folder, before))
            except FileNotFoundError:
                return []

    def close(self) -> None:
        """Close the directories that were kept open; they open again when needed."""
        self._folders.forget_all()

    def _name(self, key: str) -> str:
        return f"{key} in {self.url}"

    def _read(self, key: str, descriptor: int, offset: int, length: int) -> bytes:
        content = bytearray(length)
        read_fully(descriptor, offset, flat_views([content]), self._name(key))
        return bytes(content)

    @contextmanager
    def _reading(self, key: str) -> Iterator[tuple[int, int]]:
        *above, name = _parts(key)
        with translated("read", self._name(key)):
            descriptor = self._found(
                tuple(above), lambda folder: os.open(name, READ_FLAGS, dir_fd=folder.descriptor)
            )
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise NotFound(f"{self._name(key)} is not an object")
                yield descriptor, status.st_size
            finally:
                os.close(descriptor)

    def _found(self, parts: Parts, act: Callable[[Folder], T]) -> T:
        """Act in a directory that should exist."""
        try:
            return act(self._folders.find(parts))
        except OSError as error:
            if error.errno not in _MOVED:
                raise
        # It may have been removed and made anew since it was opened.
        self._folders.forget(parts)
        return act(self._folders.find(parts))

    def _made(self, parts: Parts, act: Callable[[Folder], T], *, durable: bool = True) -> T:
        """Act in a directory that is made when it is absent."""
        for _ in range(_ATTEMPTS_MAX):
            try:
                return act(self._folders.make(parts, durable=durable))
            except NotADirectoryError as error:
                path = "/".join(parts)
                raise InvalidInput(
                    f"cannot write below {path} in {self.url}: a part of it is an object, or a symbolic link"
                ) from error
            except OSError as error:
                if error.errno not in _MOVED:
                    raise
                # Another process removed the directory because it was empty.
                self._folders.forget(parts)
        raise Unavailable(
            f"cannot write to {'/'.join(parts)} in {self.url}: it is removed again and again"
        )

    def _open_temporary(self) -> _Temporary:
        name = f"{_this_process()}-{self._ids.token(8)}"

        def create(folder: Folder) -> _Temporary:
            return _Temporary(
                folder, name, os.open(name, CREATE_FLAGS, 0o666, dir_fd=folder.descriptor)
            )

        # What stands there is acknowledged nowhere: a power loss may take the directory and all.
        return self._made(_TEMPORARY, create, durable=False)

    def _publish(self, temporary: _Temporary, parts: Parts, mode: Mode) -> None:
        """Flush a temporary file, give it its name and flush the directory."""
        os.fsync(temporary.descriptor)

        def give_name(folder: Folder) -> None:
            if mode == "create":
                self._link(temporary, "/".join(parts), folder)
            else:
                os.replace(
                    temporary.name,
                    parts[-1],
                    src_dir_fd=temporary.folder.descriptor,
                    dst_dir_fd=folder.descriptor,
                )
            flush_folder(folder.descriptor)

        self._made(parts[:-1], give_name)

    def _link(self, temporary: _Temporary, key: str, folder: Folder) -> None:
        name = key.rpartition("/")[2]
        try:
            link_new(temporary.folder.descriptor, temporary.name, folder.descriptor, name)
        except FileExistsError as error:
            # Whoever is told that the key is taken may act on it, so what took it must not vanish.
            flush_folder(folder.descriptor)
            if stat.S_ISDIR(os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False).st_mode):
                raise InvalidInput(
                    f"{self._name(key)} is already a prefix of other keys"
                ) from error
            raise AlreadyExists(f"{self._name(key)} exists") from error

    def _flush(self, parts: Parts) -> None:
        with suppress(FileNotFoundError):
            self._found(parts, lambda folder: flush_folder(folder.descriptor))

    def _prune(self, parts: Parts) -> None:
        """Remove a directory, and those above it, while they are empty."""
        for length in range(len(parts), 0, -1):
            above, name = parts[: length - 1], parts[length - 1]
            try:
                os.rmdir(name, dir_fd=self._folders.find(above).descriptor)
            except OSError as error:
                if error.errno in _MOVED:
                    continue
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return
                raise
            self._folders.forget(parts[:length])


class _FileUpload:
    """A temporary file that grows; see `fwstore.store.base.Upload`."""

    def __init__(self, temporary: _Temporary, name: str, publish: Callable[[], None]) -> None:
        self._temporary = temporary
        self._name = name
        self._publish = publish
        self._written = 0
        self._sent = 0
        self._open = True

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append the buffers; they may be reused once this returns."""
        self._check_open()
        with translated("write", self._name):
            self._written += write_fully(self._temporary.descriptor, flat_views(buffers))
            if self._written - self._sent >= _WRITEBACK_BYTES:
                start_writeback(self._temporary.descriptor, self._sent, self._written - self._sent)
                self._sent = self._written

    def commit(self) -> None:
        """Make the object durable and visible."""
        self._check_open()
        try:
            with translated("commit", self._name):
                self._publish()
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop what was written."""
        if self._open:
            self._open = False
            self._temporary.drop()

    def _check_open(self) -> None:
        # Its descriptor is closed, and the number may by now belong to another file.
        if not self._open:
            raise InvalidInput(f"the upload of {self._name} was committed or aborted before")


# A pack is read in many pieces, each by its key.
@lru_cache(maxsize=1 << 10)
def _parts(key: str) -> Parts:
    return tuple(validate_key(key).split("/"))


def _this_process() -> str:
    """Return what names this process among those that share the file system.

    Process numbers mean something only within one machine and one process namespace.
    """
    return f"{os.uname().nodename}-{_namespace()}-{os.getpid()}"


def _namespace() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        # Not Linux, or /proc is hidden: one namespace is all there is to tell.
        return 0


def _is_dead(name: str) -> bool:
    """Return whether a temporary file belongs to a process of this machine that is gone."""
    owner, _, _ = name.rpartition("-")
    place, _, process = owner.rpartition("-")
    if place != _this_process().rpartition("-")[0] or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:
        # It lives and belongs to another user.
        return False
    return False


def _unlink(name: str, folder: Folder) -> None:
    os.unlink(name, dir_fd=folder.descriptor)


def _old_files(folder: Folder, oldest: float) -> Sequence[ObjectInfo]:
    old = []
    with scan(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                if found.st_mtime < oldest or _is_dead(entry.name):
                    old.append(
                        ObjectInfo(_TEMPORARY_PREFIX + entry.name, found.st_size, found.st_mtime)
                    )
    return old
