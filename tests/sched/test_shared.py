from __future__ import annotations

import gc
import mmap
import os

import pytest

from fwstore.base.units import MIB
from fwstore.sched import BufferPool, find_shared, map_shared


def test_any_view_of_shared_memory_is_found_in_its_file() -> None:
    memory = map_shared(MIB)
    memory[:] = os.urandom(MIB)
    place, whole = find_shared(memory[5000:6000]), find_shared(memory)
    assert place is not None
    assert whole is not None
    assert (place.file, place.offset, whole.offset) == (whole.file, 5000, 0)
    assert os.pread(place.file.descriptor, 1000, place.offset) == bytes(memory[5000:6000])


def test_other_memory_is_not_found() -> None:
    assert find_shared(memoryview(bytearray(8))) is None
    assert find_shared(memoryview(mmap.mmap(-1, 4096))) is None
    assert find_shared(map_shared(4096)[:0]) is None


def test_a_lease_of_shared_memory_is_found() -> None:
    pool = BufferPool(map_shared)
    with pool.lease(10) as first, pool.lease(10) as second:
        places = find_shared(first.memory), find_shared(second.memory)
    assert [place and place.offset for place in places] == [0, 4096]


def test_pages_go_back_to_the_system_also_while_another_maps_them() -> None:
    memory = map_shared(MIB)
    place = find_shared(memory)
    assert place is not None
    other = os.dup(place.file.descriptor)
    del memory
    gc.collect()
    assert os.fstat(other).st_size == 0
    os.close(other)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(place.file.descriptor)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_leaves_the_memory_to_its_parent() -> None:
    memory = map_shared(MIB)
    memory[:4] = b"kept"
    child = os.fork()
    if child == 0:
        del memory
        gc.collect()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bytes(memory[:4]) == b"kept"


def test_where_no_memory_can_be_shared_there_is_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, flags: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refuse)
    memory = map_shared(4096)
    assert memory.nbytes == 4096
    assert find_shared(memory) is None
