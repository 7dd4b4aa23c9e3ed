from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest

from fwstore.base.errors import Corrupt, NotFound
from fwstore.codec.hashing import ContentHash
from fwstore.content import build
from fwstore.content.build import BuiltSnapshot
from fwstore.content.contribution import Contribution
from fwstore.content.manifest import Manifest, open_manifest
from fwstore.format.leaf import encode_leaves, split_leaf
from fwstore.format.paths import TensorPath
from fwstore.format.root import encode_root
from fwstore.plan.box import Box
from fwstore.store.memory import MemoryStore
from support.faults import FaultyStore
from support.snapshots import KEYS, Held, Site, make_runtime, raw


def make_site() -> Site:
    runtime = make_runtime()
    return Site(FaultyStore(MemoryStore(runtime)), runtime)


def many(count: int) -> dict[Any, Any]:
    return {("layer", n, "w"): np.full((3,), n, np.float64) for n in range(count)}


def tie(part: Contribution, path: TensorPath, alias: TensorPath) -> Contribution:
    tensors = tuple(
        dataclasses.replace(info, alias=alias) if info.path == path else info
        for info in part.tensors
    )
    return dataclasses.replace(part, tensors=tensors)


def test_only_the_leaf_that_is_asked_for_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_TENSORS_PER_LEAF", 4)
    site = make_site()
    built = site.save(many(18))
    assert len(built.root.leaves) == 5
    manifest = site.open(built)
    assert isinstance(site.store, FaultyStore)
    site.store.reset()
    assert manifest.tensor(("layer", 7, "w")).shape == (3,)
    assert manifest.rows(("layer", 7, "w")).runs.count.tolist() == [1]
    assert site.store.counts == {"get": 1}
    assert [info.path for info in manifest.tensors()] == [("layer", n, "w") for n in range(18)]
    assert site.store.counts == {"get": 5}
    for path in [("layer",), ("layer", 99, "w"), ("a",), ("zzz",)]:
        with pytest.raises(NotFound, match="has no tensor"):
            manifest.tensor(path)


def test_a_tensor_whose_rows_fill_several_leaves_is_one_tensor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def halved(leaf: Any) -> Any:
        parts = [leaf]
        for _ in range(3):
            parts = [half for part in parts for half in split_leaf(part)]
        return [pair for part in parts for pair in encode_leaves(part)]

    monkeypatch.setattr(build, "encode_leaves", halved)
    site = make_site()
    array = np.arange(40.0).reshape(10, 4)
    parts = [
        site.contribution({("w",): Held(array[:, :], None, ((1, 1), (1, 4)))}),
    ]
    # Chunks in reverse order make every cell a run of its own.
    runs = parts[0].runs
    singles = type(runs).of([(0, n, 1, 0, n) for n in range(10)])
    order = np.arange(10)[::-1]
    scattered = dataclasses.replace(singles, first_chunk=order.astype(np.uint32))
    built = site.commit([dataclasses.replace(parts[0], runs=scattered)])
    assert len(built.root.leaves) == 8
    manifest = site.open(built)
    assert [info.path for info in manifest.tensors()] == [("w",)]
    assert len(manifest.rows(("w",)).runs) == 10
    np.testing.assert_array_equal(site.load(built)[("w",)], raw(array[::-1]))


def test_tied_tensors_are_followed_one_level() -> None:
    site = make_site()
    array = np.arange(5.0)
    held = {("a",): Held(array), ("b",): Held(array)}
    built = site.commit([tie(site.contribution(held), ("b",), ("a",))])
    manifest = site.open(built)
    assert manifest.tensor(("b",)).alias == ("a",)
    assert manifest.rows(("b",)).info.path == ("a",)
    assert built.root.totals.bytes_logical == 40
    np.testing.assert_array_equal(site.load(built)[("b",)], raw(array))


def forge(site: Site, built: BuiltSnapshot, **changes: Any) -> Manifest:
    """Open a snapshot whose root says something else, with a right digest."""
    stored = encode_root(msgspec.structs.replace(built.root, **changes))
    site.store.put(built.root_object.key, [stored], mode="overwrite")
    digest = ContentHash().digest(stored)
    return open_manifest(site.origin, KEYS, built.root.snapshot, digest)


def test_a_root_that_contradicts_its_parts_is_refused() -> None:
    site = make_site()
    built = site.save(many(3))
    (leaf,) = built.root.leaves
    other = msgspec.structs.replace(leaf, last_path=("layer", 3, "w"))
    with pytest.raises(Corrupt, match="does not hold the tensors"):
        forge(site, built, leaves=(other,)).tensors()
    (table,) = built.root.pack_tables
    more = msgspec.structs.replace(table, packs=2)
    with pytest.raises(Corrupt, match="does not hold the packs"):
        forge(site, built, pack_tables=(more,)).all_packs()
    with pytest.raises(Corrupt, match="lineage"):
        forge(site, built, lineages=()).all_packs()
    with pytest.raises(Corrupt, match="pack 1 of 1"):
        forge(site, built).packs([1])


def test_a_root_of_another_snapshot_is_refused() -> None:
    site = make_site()
    one, other = site.save(many(1)), site.save(many(2))
    stored = site.store.get(one.root_object.key, limit_bytes=1 << 20)
    site.store.put(other.root_object.key, [stored], mode="overwrite")
    with pytest.raises(Corrupt, match="belongs to"):
        open_manifest(site.origin, KEYS, other.root.snapshot, one.root_digest)


def test_packs_and_objects_are_listed_by_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "PACKS_PER_PART", 2)
    site = make_site()
    array = np.arange(40.0).reshape(10, 4)
    boxes = [Held(array, [Box((n, 0), (2, 4))], ((1, 2), (1, 4))) for n in range(0, 10, 2)]
    built = site.commit([site.contribution({("w",): held}, n) for n, held in enumerate(boxes)])
    manifest = site.open(built)
    assert len(built.root.pack_tables) == 3
    packs = manifest.all_packs()
    listed = {found.key: found.size for found in site.store.list("packs/")}
    assert {pack.key: pack.info.size for pack in packs} == listed
    assert manifest.packs([4, 0]) == {0: packs[0], 4: packs[4]}
    written = {stored.key for stored in (*built.objects, built.root_object)}
    assert set(manifest.object_keys()) == written
    assert manifest.object_keys()[0] == built.root_object.key


def test_the_root_is_written_last() -> None:
    site = make_site()
    built = site.save(many(3))
    assert isinstance(site.store, FaultyStore)
    writes = [operation.key for operation in site.store.operations if operation.name == "overwrite"]
    assert writes[-1] == built.root_object.key
    first_manifest = next(
        n for n, operation in enumerate(site.store.operations) if operation.name == "overwrite"
    )
    assert all(operation.name != "commit" for operation in site.store.operations[first_manifest:])
