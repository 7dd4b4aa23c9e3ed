"""Kinds of hostile input, and what holds each: tests, or the reason why there are none.

Invariant: every kind that is known to have broken a storage layer for training is here; a kind without tests says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_HERE = "tests/e2e/test_hostile_input.py"
_ROW = f"{_HERE}::test_what_is_hostile_ends_in_one_typed_error"
_DAMAGE = "tests/e2e/test_corruption.py"
_NOT_THERE = "there is no such thing in fwstore: "


@dataclass(frozen=True)
class Kind:
    """What is held against one kind of hostile input.

    Attributes:
        tests: Where.
        note: What is not tested, and why.
    """

    tests: tuple[str, ...] = ()
    note: str = ""


KINDS: Mapping[str, Kind] = {
    "pickles that call: REDUCE, eval, nested getattr, shapes that passed picklescan": Kind(
        (f"{_ROW}[a pickle that calls]", "tests/migrate/test_pickled.py")
    ),
    "pickles that ask for memory: 4 GB of bytes, lists that unfold, deep recursion": Kind(
        (f"{_ROW}[a pickle that asks for memory]",),
        "a list in a pickle is made of its elements, so 2^34 of them take 2^34 bytes of input",
    ),
    "an importer that meets an error of unpickling": Kind(
        (f"{_ROW}[a pickle that is malformed]", "tests/e2e/test_no_pickle.py")
    ),
    "manifests: 2 GB, depth, keys twice, NaN, 10^400, lone surrogates": Kind(
        (
            f"{_ROW}[JSON that is hostile]",
            "tests/format/test_leaf.py::test_what_is_too_long_is_refused_unread",
        )
    ),
    "sizes: products and sums beyond 2^63, negative, contradictory, unknown dtypes": Kind(
        (f"{_ROW}[sizes that overflow]", "tests/format/test_tensor.py")
    ),
    "overlapping regions, gaps, one chunk referred to a million times": Kind(
        (
            f"{_ROW}[overlaps and gaps]",
            f"{_HERE}::test_a_manifest_with_a_hole_is_not_loaded",
            "tests/format/test_leaf.py::test_parsing_a_leaf_that_claims_everything_stays_within_bounds",
        ),
        "what a checkpoint says that it holds is what its load allocates; `inspect` shows it before",
    ),
    "chunks: 1 TB declared, ratio, trailing bytes, several frames": Kind(
        (f"{_ROW}[frames that are bombs]",)
    ),
    "deltas: cycles, depth, absent base, base of another tenant": Kind(
        note=_NOT_THERE
        + "chunks are whole; borrowed ones are pinned (tests/checkpoint/test_fork.py)"
    ),
    "bytes that are not their digest, two valid chunks exchanged, another type": Kind(
        (_DAMAGE, "tests/content/test_damage.py"), "nothing is encrypted"
    ),
    "cut at every length, 0 bytes, a page of HTML as 200": Kind(
        (_DAMAGE, "tests/store/test_object.py::test_a_captive_portal_is_no_store")
    ),
    "keys and weight maps that lead elsewhere, too long, look-alikes, symbolic links, case": Kind(
        (
            f"{_ROW}[paths that lead elsewhere]",
            f"{_HERE}::test_keys_that_lead_elsewhere_are_invalid",
            "tests/store/test_directory.py::test_links_lead_nowhere",
            "tests/log/test_terms.py::test_names_are_unique_without_regard_to_case",
        ),
        "symbolic links beside a foreign index are followed: caches of models consist of them",
    ),
    "archives: links, devices, members twice, zip-slip, overlaps, polyglots": Kind(
        (f"{_ROW}[archives that are unsafe]",), "no tar is read"
    ),
    "safetensors: header of 2^63 or more than 100 MB, names twice, metadata of numbers": Kind(
        (f"{_ROW}[a header of safetensors]", "tests/migrate/test_safetensors.py")
    ),
    "zarr: codecs that load code, references with templates, huge fills": Kind(
        note=_NOT_THERE + "no zarr is read"
    ),
    "an old head, a forked lineage, terms that go back, a term of 2^63": Kind(
        (
            f"{_ROW}[JSON that is hostile]",
            "tests/log/test_fold.py",
            "tests/log/test_terms.py::test_zombie_is_fenced_and_its_record_does_not_count",
        ),
        "heads are not signed: who may write to a store may take back its end",
    ),
    "signatures: bad, absent, of somebody else, of another algorithm": Kind(
        note=_NOT_THERE + "nothing is signed"
    ),
    "wrong key, unknown key id": Kind(
        ("tests/e2e/test_bad_input.py::test_another_hash_key_is_refused",), "nothing is encrypted"
    ),
    "resume tokens: forged, of another run or data set": Kind(
        note=_NOT_THERE + "a job resumes by name"
    ),
    "credentials in addresses, environment and errors": Kind(
        (
            "tests/store/test_object.py::test_secrets_are_never_shown",
            "tests/store/test_object.py::test_an_address_with_secrets_is_refused_without_repeating_them",
        ),
        "a pickled repository carries the options that its copy needs to connect",
    ),
    "stores that ignore If-None-Match, drop metadata, take wrong checksums": Kind(
        ("tests/store/test_probe.py",), "asked for by `fwstore doctor`, not at every open"
    ),
    "ranges that lie, 200 for a range, bytes that change between reads": Kind(
        (
            "tests/store/test_object.py::test_a_server_that_ignores_ranges_is_not_believed",
            "tests/store/test_object.py::test_a_short_answer_is_not_believed",
            "tests/e2e/test_network_faults.py",
        )
    ),
}
