"""Records: canonical, bounded, consistent, refused when anything is off."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwstore.base.errors import Corrupt, FwstoreError, InvalidInput, LimitExceeded, Unsupported
from fwstore.format.condemned import parse_condemned
from fwstore.format.lease import LinkLease, lease_name, parse_lease_name, parse_work_claim
from fwstore.format.lineage import parse_claim, parse_lineage
from fwstore.format.record import KINDS, Commit, encode_record, parse_record
from fwstore.format.site import parse_known_site, parse_retired_site, parse_site
from fwstore.format.summary import parse_hint, parse_summary
from fwstore.format.vote import parse_receipt, parse_vote
from support.damage import rechecked, unchecked
from support.stored import BODIES, OLDER, examples, record, summary

GOLDEN = Path(__file__).parent.parent / "formats" / "log"

PARSERS = {
    "vote": lambda stored: parse_vote(stored, "vote"),
    "receipt": lambda stored: parse_receipt(stored, "receipt"),
    "lineage": lambda stored: parse_lineage(stored, "lineage"),
    "name": lambda stored: parse_claim(stored, "name"),
    "site": lambda stored: parse_site(stored, "site"),
    "known": lambda stored: parse_known_site(stored, "known site"),
    "retired": lambda stored: parse_retired_site(stored, "retired site"),
    "record": lambda stored: parse_record(stored, "slot"),
    "claim": lambda stored: parse_work_claim(stored, "claim"),
    "condemned": parse_condemned,
    "summary": parse_summary,
    "hint": parse_hint,
}


def parse(name: str, stored: bytes) -> object:
    return PARSERS[name.partition("-")[0]](stored)


def test_every_kind_has_an_example() -> None:
    assert set(BODIES) == KINDS


@pytest.mark.parametrize("kind", sorted(BODIES))
def test_round_trip(kind: str) -> None:
    made = record(BODIES[kind])
    stored = encode_record(made)
    assert parse_record(stored, "slot") == made
    assert made.kind == kind
    assert json.loads(stored)["body"]["kind"] == kind


@pytest.mark.format
@pytest.mark.parametrize("name", sorted(examples()))
def test_golden_files_still_read_and_are_still_written(name: str) -> None:
    golden = (GOLDEN / name).read_bytes()
    assert parse(name, golden) == parse(name, examples()[name])
    if name.endswith(".json"):
        assert examples()[name] == golden


@pytest.mark.parametrize("name", sorted(examples()))
def test_every_flipped_byte_is_noticed(name: str) -> None:
    """The same value results or none, whatever referrer might have noticed."""
    stored = examples()[name]
    original = parse(name, stored)
    for index in range(len(stored)):
        for bit in (0x01, 0x80):
            flipped = bytearray(stored)
            flipped[index] ^= bit
            try:
                found = parse(name, bytes(flipped))
            except (Corrupt, Unsupported):
                continue
            assert found == original


@pytest.mark.parametrize("name", sorted(examples()))
def test_every_truncation_is_corrupt(name: str) -> None:
    stored = examples()[name]
    for length in range(0, len(stored), max(1, len(stored) // 97)):
        with pytest.raises(Corrupt):
            parse(name, stored[:length])
    with pytest.raises(Corrupt):
        parse(name, stored + b"\n")


@pytest.mark.parametrize("name", sorted(examples()))
@given(st.binary(max_size=200))
def test_noise_is_refused(name: str, noise: bytes) -> None:
    with pytest.raises((Corrupt, Unsupported)):
        parse(name, noise)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"save":12', '"save":12,"save":12'),
        ('"save":12', '"save":12.0'),
        ('"save":12', '"save":-12'),
        ('"save":12', '"save":9223372036854775808'),
        ('"save":12', '"save":13'),
        ('"step":1200', '"step":1201'),
        ('"loss":2.5', '"loss":NaN'),
        ('"loss":2.5', '"loss":1e999'),
        ('"loss":2.5', '"loss":2'),
        ('"loss":2.5', '"loss":null'),
        ('"loss":2.5', '"loss":2.50'),
        ('"seq":7', '"seq": 7'),
        ('"seq":7', '"seq":7,"surprise":1'),
        ('"term":3', '"term":4'),
        ("[[1,1],[1,1]]", "[[1,1],[1,0]]"),
        ("[[1,1],[1,1]]", "[[1,1],[1,1],[1,1]]"),
        ("[[1,1],[1,1]]", "[[9,1],[9,1]]"),
        ("[[1,1],[1,1]]", "[[3,1],[3,1]]"),
        ('"parent":"0', '"parent":"x'),
        ("abab", "ABAB"),
        ("loss", "lo\\u0073s"),
        ("loss", "\\ud800"),
    ],
)
def test_other_spellings_and_contradictions_are_corrupt(old: str, new: str) -> None:
    stored = encode_record(record(BODIES["commit"])).decode()
    assert old in stored
    with pytest.raises(Corrupt, match="slot"):
        parse_record(rechecked(stored.replace(old, new, 1).encode()), "slot")


def test_deep_nesting_is_corrupt() -> None:
    for nested in (b"[" * 16000, rechecked(b"[" * 16000 + b"}")):
        with pytest.raises(Corrupt):
            parse_record(nested, "slot")


def test_unknown_kind_is_unsupported() -> None:
    stored = encode_record(record(BODIES["fence"])).replace(b'"fence"}', b'"merge"}')
    with pytest.raises(Unsupported, match="merge"):
        parse_record(rechecked(stored), "slot")
    with pytest.raises(Corrupt, match="checksum"):
        parse_record(stored, "slot")


def test_a_record_fits_its_slot() -> None:
    metrics = {f"metric-{number:04}": 1.0 for number in range(1000)}
    body = msgspec.structs.replace(BODIES["commit"], metrics=metrics)
    with pytest.raises(LimitExceeded, match="metrics"):
        encode_record(record(body))
    with pytest.raises(Corrupt):
        parse_record(b" " * 16384, "slot")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_metrics_are_finite(value: float) -> None:
    body = msgspec.structs.replace(BODIES["commit"], metrics={"loss": value})
    with pytest.raises(InvalidInput):
        encode_record(record(body))


def test_integers_given_for_metrics_are_stored_as_floats() -> None:
    body = msgspec.structs.replace(BODIES["commit"], metrics={"loss": 3})
    found = parse_record(encode_record(record(body)), "slot").body
    assert isinstance(found, Commit)
    assert found.metrics == {"loss": 3.0}


def test_a_commit_of_another_term_is_refused_at_once() -> None:
    with pytest.raises(InvalidInput):
        encode_record(record(BODIES["commit"], term=4))


def test_a_later_site_is_unsupported() -> None:
    stored = examples()["site-1.json"]
    later = stored.replace(b'"major":1', b'"major":2')
    for other in (rechecked(later), unchecked(later)):
        with pytest.raises(Unsupported, match="format 2"):
            parse_site(other, "site")
    with pytest.raises(Unsupported, match="erasure"):
        parse_site(rechecked(stored.replace(b'"mandatory":[]', b'"mandatory":["erasure"]')), "site")
    optional = rechecked(stored.replace(b'"optional":[]', b'"optional":["colour"]'))
    assert parse_site(optional, "site").optional == ("colour",)
    with pytest.raises(Corrupt):
        parse_site(b'{"format":"other"}', "site")


def test_a_summary_of_a_bomb_is_refused_before_it_is_unpacked() -> None:
    stored = bytearray(examples()["summary-1.bin"])
    stored[12:20] = (1 << 62).to_bytes(8, "little")
    with pytest.raises(Corrupt, match="at most"):
        parse_summary(bytes(stored))


def test_errors_are_of_the_one_tree() -> None:
    with pytest.raises(FwstoreError):
        parse_record(b'{"body":{"kind":7}}', "slot")
    assert summary().state.entries[0].parent == OLDER


@pytest.mark.format
def test_a_lease_is_told_by_its_name() -> None:
    lease = LinkLease(
        worker="00112233aabbccdd",
        turn=7,
        cap=125_000_000,
        share=62_500_000,
        wanted=None,
        lasts_ms=3000,
        urgent=True,
    )
    name = "00112233aabbccdd-000000000007-125000000-62500000-all-3000-urgent"
    assert lease_name(lease) == name
    assert parse_lease_name(name) == lease
    patient = dataclasses.replace(lease, wanted=0, urgent=False)
    assert parse_lease_name(lease_name(patient)) == patient
    for wrong in (
        "",
        name[1:-1],
        f"{name}x",
        name.replace("-6", "--6"),
        name.replace("7-1", "7-01"),
    ):
        with pytest.raises(Corrupt, match="not the name of a lease"):
            parse_lease_name(wrong)
