"""Create-if-absent under contention, on the stores that decide races for real."""

from __future__ import annotations

import itertools
import os
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fwstore.base.errors import AlreadyExists, NotFound
from fwstore.store.address import open_store
from fwstore.store.base import Store
from fwstore.store.create import create_once
from support.hasty import hasty_runtime

RACERS = 32
LIMIT = 1 << 20


def race(store: Store, key: str, attempt: Callable[[Store, str, bytes], bool]) -> list[bytes]:
    """Let all racers create one key at once; return the content of those who believe they won."""
    start = threading.Barrier(RACERS)

    def run(number: int) -> bytes | None:
        content = f"racer {number}".encode()
        start.wait()
        return content if attempt(store, key, content) else None

    with ThreadPoolExecutor(RACERS) as pool:
        return [won for won in pool.map(run, range(RACERS)) if won is not None]


def plain_create(store: Store, key: str, content: bytes) -> bool:
    try:
        store.put(key, [content], mode="create")
    except AlreadyExists:
        return False
    return True


def sure_create(store: Store, key: str, content: bytes) -> bool:
    return create_once(store, key, [content], hasty_runtime())


@pytest.fixture(params=["memory", "directory", pytest.param("rgw", marks=pytest.mark.rgw)])
def racing(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "rgw":
        return open_store(request.getfixturevalue("rgw_url"), hasty_runtime())
    url = "memory://" if request.param == "memory" else str(tmp_path / "root")
    return open_store(url, hasty_runtime())


@pytest.mark.slow
@pytest.mark.parametrize("attempt", [plain_create, sure_create], ids=["create", "create_once"])
def test_one_of_many_threads_wins(
    racing: Store, attempt: Callable[[Store, str, bytes], bool]
) -> None:
    for number in range(6):
        key = f"log/{number}/slot"
        winners = race(racing, key, attempt)
        assert len(winners) == 1
        assert racing.get(key, limit_bytes=100) == winners[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_one_of_many_processes_wins_each_slot(tmp_path: Path) -> None:
    url, slots, processes = str(tmp_path / "root"), 40, 6
    # All wait until the pipe closes, so that they begin together.
    wait, go = os.pipe()
    children = []
    for number in range(processes):
        child = os.fork()
        if child == 0:
            os.close(go)
            os._exit(write_slots(url, slots, number, wait))
        children.append(child)
    os.close(go)
    os.close(wait)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store = open_store(url, hasty_runtime())
    owners = {info.key: store.get(info.key, limit_bytes=100) for info in store.list("log/")}
    claims = [store.get(f"claims/{number}", limit_bytes=LIMIT) for number in range(processes)]
    claimed = Counter(line for claim in claims for line in claim.splitlines())
    assert len(owners) == slots
    assert claimed == Counter(key.encode() + b" " + owner for key, owner in owners.items())


def write_slots(url: str, slots: int, number: int, wait: int) -> int:
    try:
        os.read(wait, 1)
        store = open_store(url, hasty_runtime())
        mine = f"writer {number}".encode()
        keys = [f"log/{slot // 10}/{slot % 10}" for slot in range(slots)]
        won = [key for key in keys if plain_create(store, key, mine)]
        claim = b"\n".join(key.encode() + b" " + mine for key in won)
        store.put(f"claims/{number}", [claim], mode="create")
    except BaseException:  # noqa: BLE001 - a child of a test must not return into pytest
        traceback.print_exc()
        return 1
    return 0


@pytest.mark.slow
def test_readers_see_whole_objects_while_they_are_replaced(racing: Store) -> None:
    def content(number: int) -> bytes:
        return bytes([number]) * (1000 + 999 * number)

    stop, seen = threading.Event(), set[int]()

    def read() -> None:
        while not stop.is_set():
            found = racing.get("hint", limit_bytes=LIMIT)
            assert found == content(found[0])
            seen.add(found[0])

    racing.put("hint", [content(0)], mode="overwrite")
    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        try:
            # Memory is so fast that sixty may be over before a reader has begun.
            for number in itertools.count():
                racing.put("hint", [content(number % 60)], mode="overwrite")
                if number >= 60 and (len(seen) > 1 or any(reader.done() for reader in readers)):
                    break
        finally:
            stop.set()
        for reader in readers:
            reader.result()
    assert len(seen) > 1


@pytest.mark.slow
def test_what_is_acknowledged_is_seen_at_once_by_all(racing: Store) -> None:
    for number in range(15):
        key = f"d{number}/{number}"
        with pytest.raises(NotFound):
            racing.head(key)
        racing.put(key, [b"1"], mode="create")
        assert racing.get(key, limit_bytes=1) == b"1"
        assert [info.key for info in racing.list(f"d{number}/")] == [key]
        racing.delete([key])
        with pytest.raises(NotFound):
            racing.get(key, limit_bytes=1)
        assert list(racing.list(f"d{number}/")) == []
