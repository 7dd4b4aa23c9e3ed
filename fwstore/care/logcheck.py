"""Checking what leads to the snapshots of a run: its catalog entry, votes, log and condemned lists.

Invariant: every object that an election, a fold or a collection may read is parsed as they would parse it;
what is derived - summaries and the hint - is left out, because readers do without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fwstore.base.config import RECORD_BYTES_MAX
from fwstore.base.errors import Corrupt, FwstoreError, NotFound
from fwstore.care.problems import Problem, explain
from fwstore.format.lineage import LINEAGE_BYTES_MAX, claim_key, parse_claim
from fwstore.format.record import NO_DIGEST, Record, parse_record, record_digest
from fwstore.format.summary import CondemnEntry
from fwstore.format.vote import VOTE_BYTES_MAX, parse_receipt, parse_vote
from fwstore.log.condemned import read_condemned
from fwstore.log.lineage import read_lineage
from fwstore.log.log import Log

_BATCH = 256
_RECEIPT = ".open"
_SLOT = re.compile(r"([0-9]{6,})/([0-9]{3})")


@dataclass(frozen=True, slots=True)
class LogFindings:
    """What the check of a log found.

    Attributes:
        objects: Objects that were read.
        problems: What is wrong with them.
    """

    objects: int
    problems: tuple[Problem, ...]


def check_log(log: Log, last: int | None) -> LogFindings:
    """Check the log of a run and what belongs to it.

    Args:
        log: The log.
        last: Its newest slot as it was folded; None when it could not be folded.
    """
    return _LogCheck(log).run(last)


class _LogCheck:
    def __init__(self, log: Log) -> None:
        self._log = log
        self._objects = 0
        self._problems: list[Problem] = []

    def run(self, last: int | None) -> LogFindings:
        log = self._log
        self._check(log.keys.catalog, self._check_lineage)
        self._check(claim_key(log.keys.name), self._check_claim)
        self._check_all([info.key for info in log.store.list(log.keys.terms)], self._check_vote)
        self._check_slots(self._newest_slot() if last is None else last)
        lists = {log.keys.condemned(e.token): e for e in tuple(log.fold.condemned.values())}
        self._check_all(lists, lambda key: self._check_list(lists[key]))
        return LogFindings(self._objects, tuple(self._problems))

    def _check(self, key: str, check: Callable[[str], object]) -> None:
        self._check_all([key], check)

    def _check_all(self, keys: Iterable[str], check: Callable[[str], object]) -> None:
        def attempt(key: str) -> FwstoreError | None:
            try:
                check(key)
            except FwstoreError as error:
                return error
            return None

        keys = list(keys)
        for key, error in zip(keys, self._log.runtime.scheduler.map(attempt, keys), strict=True):
            self._objects += 1
            if error is not None:
                self._add(key, error)

    def _add(self, key: str, error: FwstoreError) -> None:
        message, code = explain(error, key, self._log.store.url)
        self._problems.append(
            Problem(
                run=self._log.keys.name, step=None, key=key, tensor=None, message=message, code=code
            )
        )

    def _check_lineage(self, key: str) -> None:
        found = read_lineage(self._log.store, self._log.keys)
        if found is None:
            raise NotFound(key)
        if found.lineage != self._log.lineage:
            raise Corrupt(f"{key} names lineage {found.lineage}; the log is of {self._log.lineage}")

    def _check_claim(self, key: str) -> None:
        parse_claim(self._log.store.get(key, limit_bytes=LINEAGE_BYTES_MAX), self._what(key))

    def _check_vote(self, key: str) -> None:
        parse = parse_receipt if key.endswith(_RECEIPT) else parse_vote
        parse(self._log.store.get(key, limit_bytes=VOTE_BYTES_MAX), self._what(key))

    def _check_list(self, entry: CondemnEntry) -> None:
        read_condemned(self._log.store, self._log.keys, self._log.lineage, entry)

    def _check_slots(self, last: int) -> None:
        log, digest = self._log, NO_DIGEST
        for first in range(0, last + 1, _BATCH):
            numbers = range(first, min(first + _BATCH, last + 1))
            for number, found in zip(
                numbers, log.runtime.scheduler.map(self._slot, numbers), strict=True
            ):
                self._objects += 1
                key = log.keys.slot(number)
                if isinstance(found, FwstoreError):
                    self._add(key, found)
                    digest = ""
                    continue
                if digest not in ("", found.previous) or (found.seq, found.lineage) != (
                    number,
                    log.lineage,
                ):
                    self._add(key, Corrupt(f"{self._what(key)} does not follow the slot before it"))
                digest = record_digest(found)

    def _slot(self, number: int) -> Record | FwstoreError:
        key = self._log.keys.slot(number)
        try:
            return parse_record(
                self._log.store.get(key, limit_bytes=RECORD_BYTES_MAX), self._what(key)
            )
        except FwstoreError as error:
            return error

    def _newest_slot(self) -> int:
        prefix = self._log.keys.log
        names = (info.key[len(prefix) :] for info in self._log.store.list(prefix))
        return max((int(m[1] + m[2]) for m in map(_SLOT.fullmatch, names) if m), default=-1)

    def _what(self, key: str) -> str:
        return f"{key} in {self._log.store.url}"
