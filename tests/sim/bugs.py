"""Named bugs: protections of production, each switched off on purpose, and who must notice.

A suite is worth what it catches. Every bug here is a patch of a few lines; the simulator must find it within so many seeds,
or the tests that are named must fail while it is switched on.

Invariant: without a bug switched on, all of them pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fwstore.base.errors import AlreadyExists, Unavailable
from fwstore.format.record import Condemn, Open, Pin
from fwstore.log.fold import Fold, Refusal
from sim import patches, wan_patches
from sim.bug import Bug, nothing, switched_on
from sim.site_bugs import SITE_BUGS

__all__ = ["BUGS", "Bug", "switched_on"]

_CREATORS = ("fwstore.log.log", "fwstore.log.terms", "fwstore.log.lineage", "fwstore.log.condemned")


def _everywhere(name: str, make: Callable[[Any], Any]) -> list[tuple[str, Callable[[Any], Any]]]:
    return [(f"{module}.{name}", make) for module in _CREATORS]


def _creating(
    taken: Callable[[], bool] | None, unknown: Callable[[], bool] | None
) -> Callable[[Any], Any]:
    """Return a maker of `create_once` that answers otherwise where a key is taken or an answer is lost."""

    def make(original: Any) -> Any:
        def create_once(store: Any, key: str, buffers: Any, runtime: Any, **options: Any) -> bool:
            for _ in range(100):
                try:
                    store.put(key, buffers, mode="create", **options)
                except AlreadyExists:
                    if taken is None:
                        return bool(original(store, key, buffers, runtime, **options))
                    return taken()
                except Unavailable:
                    if unknown is not None:
                        return unknown()
                    runtime.clock.sleep(0.1)
                else:
                    return True
            raise Unavailable(key)

        return create_once

    return make


def _constant(value: Any) -> Callable[[Any], Any]:
    return lambda original: lambda *args, **options: value


def _always(original: Any) -> Any:
    return lambda *args, **options: True


def _never(original: Any) -> Any:
    return lambda *args, **options: False


def _without(*refusals: Refusal, once: bool = False) -> Callable[[Any], Any]:
    """Return a maker of `Fold.refusal` that does not see some reasons; only the first time, or never."""

    def make(original: Any) -> Any:
        def refusal(fold: Fold, record: Any, resolver: Any, **options: Any) -> Any:
            found = original(fold, record, resolver, **options)
            if found in refusals and not (once and fold.__dict__.get("ignored")):
                fold.__dict__["ignored"] = True
                return None
            return found

        return refusal

    return make


def _base_before_fence(original: Any) -> Any:
    def run(self: Any, base: str | None) -> Any:
        choose, fence = self._choose, self._fence
        chosen: list[Any] = []

        def choose_and_fence() -> None:
            chosen.append(choose(base))
            fence()

        self._fence, self._choose = choose_and_fence, lambda _: chosen[0]
        return original(self, base)

    return run


def _overwritten(original: Any) -> Any:
    def create_once(store: Any, key: str, buffers: Any, runtime: Any, **options: Any) -> bool:
        store.put(key, buffers, mode="overwrite")
        return True

    return create_once


def _slot_passed_unread(original: Any) -> Any:
    def read_lost_slot(self: Any, attempt: int) -> None:
        from fwstore.format.record import parse_record, record_digest

        seq = self.fold.seq + 1
        record = parse_record(self._slots.require(seq), "slot")
        self.fold.seq, self.fold.digest = seq, record_digest(record)

    return read_lost_slot


def _uses_without(*kinds: type) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        return lambda self, body: None if isinstance(body, kinds) else original(self, body)

    return make


def _body_alone(original: Any) -> Any:
    return lambda survey, body, marked: lambda fold: body


def _delete_first(original: Any) -> Any:
    def write(self: Any, garbage: Any, ending: Any) -> Condemn:
        self._log.store.delete([found.key for found in garbage])
        body: Condemn = original(self, garbage, ending)
        return body

    return write


def _by_step(original: Any) -> Any:
    return lambda fold: sorted(original(fold), key=lambda entry: -entry.step)


def _all_live_by_step(original: Any) -> Any:
    return lambda fold: sorted(fold.live(), key=lambda entry: -entry.step)


def _all_pins(original: Any) -> Any:
    return lambda fold: list(fold.pins.values())


def _any_one(original: Any) -> Any:
    return lambda self, sites: bool(frozenset(sites))


def _own_set_only(original: Any) -> Any:
    return lambda self, ballots: self


def _commit_anew(original: Any) -> Any:
    def commit(self: Any, commit: Any, packs: Any = None) -> Any:
        self.log.append(lambda _: commit, term=self.number)
        self._unpin_base()
        return self.log.fold.entries[commit.snapshot]

    return commit


def _no_adoption(original: Any) -> Any:
    return lambda self, lineage: lineage


def _term_of_log(original: Any) -> Any:
    return lambda self: 0


_FOLDER_OF_KEY = [("fwstore.store.directory.flush_folder", nothing)]
_FOLDERS = [("fwstore.store.folders.flush_folder", nothing)]

BUGS = (
    Bug(
        "a lost answer is taken for a conflict",
        _everywhere("create_once", _creating(taken=lambda: False, unknown=None)),
    ),
    Bug(
        "a taken key is taken for ours",
        _everywhere("create_once", _creating(taken=lambda: True, unknown=None)),
    ),
    Bug(
        "no read-back after a lost answer: unknown is success",
        _everywhere("create_once", _creating(taken=None, unknown=lambda: True)),
    ),
    Bug(
        "a fence is ignored once",
        [("fwstore.log.fold.Fold.refusal", _without(Refusal.FENCED, once=True))],
    ),
    Bug(
        "fences are ignored",
        [("fwstore.log.fold.Fold.refusal", _without(Refusal.FENCED))],
        holes=("H3", "H9"),
    ),
    Bug("no home is fenced", [("fwstore.log.terms._Election._fence", nothing)], holes=("H9",)),
    Bug(
        "the base is chosen before the fence",
        [("fwstore.log.terms._Election.run", _base_before_fence)],
    ),
    Bug("a slot is used again", [("fwstore.log.log.create_once", _overwritten)]),
    Bug("a vote is overwritten", [("fwstore.log.terms.create_once", _overwritten)]),
    Bug(
        "a slot lost to another is passed over unread",
        [("fwstore.log.log.Log._read_lost_slot", _slot_passed_unread)],
        holes=("H3",),
    ),
    Bug(
        "condemned keys are not looked at when a record is made",
        [("fwstore.log.fold.Fold._meets_condemned", _never)],
        holes=("H3", "H4"),
    ),
    Bug(
        "only commits are compared with condemned keys",
        [("fwstore.log.fold.Fold._uses", _uses_without(Pin, Open))],
        seeds=0,
        suites=("tests/log/test_fold.py",),
        holes=("H4",),
    ),
    Bug(
        "a save is recorded twice",
        [
            ("fwstore.log.fold.Fold._is_duplicate", _never),
            ("fwstore.log.terms.Term.commit", _commit_anew),
        ],
        seeds=2000,
    ),
    Bug(
        "marks are not made again when roots appear",
        [("fwstore.care.survey._unless_changed", _body_alone)],
        seeds=2000,
    ),
    Bug(
        "garbage is what no record knows, however young",
        [("fwstore.care.orphans.is_dead", _always)],
        holes=("H13",),
    ),
    Bug(
        "garbage is deleted before it is condemned",
        [("fwstore.care.survey.Survey._write", _delete_first)],
    ),
    Bug("packs that others use again are garbage", [("fwstore.care.survey.groups_meet", _never)]),
    Bug("retention does not see pins", [("fwstore.care.retain.protected", _constant({}))]),
    Bug(
        "all pins are lifted as if they were those of bases",
        [("fwstore.care.gc.finished_pins", _all_pins)],
    ),
    Bug(
        "retention goes by step",
        [("fwstore.care.retain.history", _all_live_by_step)],
        holes=("H14",),
    ),
    Bug(
        "one vote is a majority",
        [("fwstore.log.votes.Electorate.majority", _any_one)],
        holes=("H7",),
        seeds=2000,
    ),
    Bug(
        "a lineage is born with another uuid than was voted for",
        [("fwstore.log.terms._Election._adopt", _no_adoption)],
        # Before the same witnesses all are born with one uuid, so no play can tell.
        seeds=0,
        suites=("tests/log/test_terms.py::test_h7_birth_uses_the_uuid_of_the_vote_that_was_won",),
        holes=("H7",),
    ),
    Bug(
        "a spent term number is used again",
        [("fwstore.log.votes.Ballots.newest_term", _term_of_log)],
    ),
    Bug(
        "the base is not pinned",
        [
            (
                "fwstore.log.terms._Election._pin",
                lambda original: lambda self, entry: [self._homes.own],
            )
        ],
        seeds=0,
        suites=("tests/log/test_terms.py",),
        holes=("H10",),
    ),
    Bug(
        "the uuid of a lineage is drawn at random",
        [("fwstore.log.terms._uuid_at_birth", patches.random_uuid)],
        seeds=2000,
        holes=("H7",),
    ),
    Bug("the record is appended before the manifest", patches.record_first(), 60, facade=True),
    Bug(
        "a save is committed before its last pack is acknowledged",
        [("fwstore.content.packing.OpenPack.finish", patches.unacknowledged)],
        facade=True,
    ),
    Bug(
        "stored bytes are not compared when they are read",
        [
            ("fwstore.content.chunks._Arrival.verified", patches.read_unverified),
            ("fwstore.content.flat.FlatRequest.read", patches.read_unverified),
        ],
        seeds=0,
        suites=("tests/content/test_damage.py",),
    ),
    Bug(
        "chunks are taken for unchanged without a look",
        [("fwstore.checkpoint.engine.unchanged_chunks", patches.all_unchanged)],
        facade=True,
    ),
    Bug(
        "a fork pins nothing",
        [("fwstore.run.pin_references", patches.unpinned)],
        seeds=0,
        suites=("tests/checkpoint/test_fork.py",),
    ),
    Bug(
        "condemned keys are forgotten once they are swept",
        [("fwstore.log.fold.Fold._sweep", patches.forgotten_once_swept)],
        seeds=0,
        suites=("tests/care/test_gc.py",),
        holes=("H5", "H16"),
    ),
    Bug(
        "a summary is trusted without its digest",
        [("fwstore.log.log.record_digest", patches.equal_to_everything)],
        seeds=0,
        suites=("tests/log/test_log.py",),
        holes=("H15",),
    ),
    Bug(
        "votes are not read again before the open",
        [("fwstore.log.terms._Election._check_votes", nothing)],
        seeds=0,
        suites=("tests/log/test_terms.py",),
        holes=("H6",),
    ),
    Bug(
        "a reader of collected bytes is told of damage",
        [("fwstore.log.log.Log.why_missing", patches.told_of_damage)],
        seeds=0,
        suites=("tests/care/test_gc.py",),
        holes=("H17",),
    ),
    Bug(
        "a missing slot is taken for the end",
        [("fwstore.log.tail.SlotReader._whole", patches.slots_as_they_came)],
        seeds=0,
        suites=("tests/log/test_log.py",),
        holes=("H3",),
    ),
    Bug(
        "the checksum of a record is not compared",
        [("fwstore.format.record.decode_checked", patches.decoded_unchecked)],
        seeds=0,
        suites=("tests/format/test_record.py",),
    ),
    Bug(
        "a retry of a slot has another write id",
        [("fwstore.log.log.create_once", patches.fresh_on_retry)],
        seeds=0,
        suites=("tests/log/test_log.py",),
        holes=("H11",),
    ),
    Bug(
        "a fence is obeyed without comparing terms",
        [("fwstore.log.fold.Fold.refusal", patches.any_other_fence)],
        seeds=0,
        suites=("tests/log/test_fold.py",),
        holes=("H12",),
    ),
    Bug(
        "a frame is unpacked before its length is checked",
        [("fwstore.format.frames.FrameDecompressor.frame", patches.unpacked_unchecked)],
        seeds=0,
        suites=("tests/e2e/test_hostile_input.py::test_what_is_hostile_ends_in_one_typed_error",),
    ),
    Bug(
        "what ranks bring is not held against the shapes",
        [("fwstore.content.build._check_tensors", nothing)],
        seeds=0,
        suites=(
            "tests/checkpoint/test_load.py::test_a_shard_that_lacks_elements_is_not_committed",
        ),
    ),
    *(
        Bug(name, found, seeds=0, suites=("tests/store/test_power_loss.py",))
        for name, found in {
            "files are not flushed": [("fwstore.store.directory.os", patches.unflushed_files)],
            "directories are not flushed": [*_FOLDER_OF_KEY, *_FOLDERS],
            "the directory of a new key is not flushed": _FOLDER_OF_KEY,
            "new directories are not flushed": [
                ("fwstore.store.folders.Folders._flush_name", nothing)
            ],
            "the directories above a new root are not flushed": [
                ("fwstore.store.folders._flush_path", nothing)
            ],
        }.items()
    ),
    Bug(
        "a copy is published before its last pack is here",
        wan_patches.published_before_the_last_pack(),
    ),
    Bug("nothing is said before a copy begins", wan_patches.without_intent()),
    Bug(
        "an intent is taken for proof of what it covers",
        wan_patches.intent_as_proof(),
        holes=("H2",),
    ),
    Bug(
        "a condemned key is written again by a copy",
        [("fwstore.wan.localise.own_row", wan_patches.same_name_again)],
        seeds=2000,
        holes=("H5",),
    ),
    Bug(
        "the manifest of a source is copied unverified",
        [("fwstore.wan.pull.read_object", wan_patches.unverified_object)],
        # Flips of what is read are too rare in a storm, and what is copied in the quiet after it has none.
        seeds=0,
        suites=("tests/wan/test_replicator.py",),
    ),
    Bug(
        "chunks are copied unverified",
        [("fwstore.wan.pieces.PackShape.check", nothing)],
        seeds=0,
        suites=("tests/wan/test_copy.py",),
    ),
    Bug(
        "what was heard goes past what was not read",
        [("fwstore.wan.heard.Listener._keep", wan_patches.gap_in_what_was_heard)],
        holes=("H3",),
    ),
    Bug(
        "an intent is withdrawn while somebody copies",
        [("fwstore.wan.line.Line._withdraw", wan_patches.withdrawn_at_once)],
        seeds=0,
        suites=("tests/wan/test_pull_crash.py",),
    ),
    *SITE_BUGS,
)
