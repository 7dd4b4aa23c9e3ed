"""Buffers that come back when whoever holds them drops them."""

from __future__ import annotations

import threading

import numpy as np

from fwstore.sched.loans import Borrower, Bytes, Loans


def address(array: Bytes) -> int:
    return int(array.__array_interface__["data"][0])


def test_what_is_dropped_is_lent_again() -> None:
    borrower = Borrower(Loans(4096, 2))
    first, second = borrower.take(), borrower.take()
    assert first.nbytes == second.nbytes == 4096
    assert not np.shares_memory(first, second)
    places = {address(first), address(second)}
    del first, second
    assert {address(array) for array in (borrower.take(), borrower.take())} <= places


def test_a_view_keeps_a_buffer_lent() -> None:
    borrower = Borrower(Loans(4096, 2))
    array = borrower.take()
    array[:] = 7
    view = array[10:20].data
    del array
    other = borrower.take()
    other[:] = 1
    assert bytes(view) == bytes([7] * 10)


def test_who_has_enough_waits_for_its_own() -> None:
    borrower = Borrower(Loans(4096, 2))
    held = [borrower.take(), borrower.take()]
    taken: list[Bytes] = []
    waiting = threading.Thread(target=lambda: taken.append(borrower.take()))
    waiting.start()
    waiting.join(0.05)
    assert not taken
    place = address(held.pop())
    waiting.join(10)
    assert [address(array) for array in taken] == [place]


def test_who_has_none_does_not_wait_for_others() -> None:
    # Each of them could hold what the other waits for.
    loans = Loans(4096, 1)
    held = [Borrower(loans).take() for _ in range(3)]
    assert len({address(array) for array in held}) == 3


def test_no_buffer_at_all_is_still_one() -> None:
    assert Borrower(Loans(4096, 0)).take().nbytes == 4096
