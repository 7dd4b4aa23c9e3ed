"""The memory that is held for others goes to them when they need it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.common import backing
from benchmarks.common.backing import Pool, back_memory, backing_process, follow

BLOCK = 1 << 20


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine whose free memory the test says, block by block."""
    blocks = [8]
    monkeypatch.setattr(backing, "_BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(backing, "_SLACK_BYTES", BLOCK)
    monkeypatch.setattr(backing, "free_bytes", lambda: blocks[0] * BLOCK)
    return blocks


class Machine(Pool):
    """A pool that makes the machine's free memory less and more."""

    def __init__(self, free: list[int]) -> None:
        super().__init__(2 * BLOCK)
        self.free = free

    def _hold(self) -> None:
        super()._hold()
        self.free[0] -= 1

    def _drop(self) -> None:
        super()._drop()
        self.free[0] += 1


def test_it_leaves_others_what_they_must_always_find(free: list[int]) -> None:
    Machine(free).take()
    assert free == [3]


def test_it_gives_back_what_others_have_used_up(free: list[int]) -> None:
    pool = Machine(free)
    pool.take()
    free[0] -= 2
    pool.give()
    assert free == [2]


def test_it_gives_no_more_than_it_has(free: list[int]) -> None:
    pool = Machine(free)
    pool.take()
    free[0] -= 20
    pool.give()
    pool.give()
    assert free == [3 - 20 + 5]


def test_the_process_answers_and_ends_with_the_block(tmp_path: Path) -> None:
    socket = tmp_path / "socket"
    with backing_process(socket, left_bytes=1 << 60):
        back_memory(socket)
        follow(socket)
        back_memory(socket)
    with pytest.raises(ConnectionRefusedError):
        back_memory(socket)


def test_where_no_process_is_nothing_is_asked(tmp_path: Path) -> None:
    back_memory(tmp_path / "nobody")
    follow(tmp_path / "nobody")
