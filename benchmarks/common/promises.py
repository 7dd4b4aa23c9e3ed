"""What is promised, the tests that hold it, and what their last long run counted: the first table of docs/reliability.md.

Invariant: a promise names tests that exist; its figures are counted by runs and never typed. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Counts = Mapping[str, int | float]


@dataclass(frozen=True)
class Promise:
    """One promise.

    Attributes:
        text: What holds.
        tests: Files, or single tests of files above them.
        suites: Whose figures show how hard that was tried.
    """

    text: str
    tests: tuple[str, ...]
    suites: tuple[str, ...] = ()


# How the figures of a suite are told.
PHRASES: Mapping[str, str] = {
    "simulator": "{seeds:,} seeds, {simulated hours:,.0f} simulated hours, {store operations:,} operations",
    "crash points": "{covered:,} of {total:,} crash points",
    "crash points of ranks": "{covered:,} of {total:,} deaths of a rank",
    "lost answers": "{covered:,} of {total:,} answers lost, writes late or missing",
    "power loss": "{disks:,} disks after {moments:,} moments",
    "kills of numpy jobs": "{kills:,} kills, {zombies:,} zombies, {steps acknowledged:,} steps acknowledged (numpy)",
    "kills of torch jobs": "{kills:,} kills, {zombies:,} zombies, {steps acknowledged:,} steps acknowledged (torch)",
    "network": "{done:,} troubles got over, {unavailable:,} answered `Unavailable`",
    "uses in any order": "{rules:,} rules, {pairs reached:,} of {pairs of rules:,} pairs of rules",
    "collections between all else": "{collect:,} collections between {save:,} saves and {Crash:,} deaths",
    "damage": "{tried:,} damages, {detected:,} detected, {repaired:,} repaired, {harmless:,} harmless, {wrong:,} wrong",
    "fuzzing": "{inputs:,} inputs to {targets:,} parsers in {seconds:,} s, {failures:,} failures",
    "coverage": "{covered lines:,} of {num statements:,} lines, {covered branches:,} of {num branches:,} branches",
    "bugs": "{caught:,} of {bugs:,} bugs caught",
}

PROMISES = (
    Promise(
        "A step that `handle.result()` acknowledged is never lost, whoever dies when; retention alone removes it.",
        ("tests/e2e/test_crash_points.py", "tests/e2e/test_kill_loops.py"),
        ("crash points", "kills of numpy jobs", "kills of torch jobs"),
    ),
    Promise(
        "A checkpoint is there whole, bit by bit, or not at all.",
        (
            "tests/e2e/test_crash_points.py",
            "tests/e2e/test_kill_loops.py",
            "tests/e2e/test_save_load.py",
        ),
        ("crash points", "kills of numpy jobs"),
    ),
    Promise(
        "What was acknowledged survives a power loss at any moment; the next job goes on from whatever the disk holds then.",
        ("tests/store/test_power_loss.py", "tests/store/test_power_loss_saves.py"),
        ("power loss",),
    ),
    Promise(
        "After any death the next job goes on from the newest checkpoint, on any number of ranks.",
        ("tests/e2e/test_crash_points.py", "tests/e2e/test_kill_loops.py"),
        ("kills of torch jobs",),
    ),
    Promise(
        "After any death garbage collection frees everything that no checkpoint needs (exceptions below).",
        ("tests/e2e/test_crash_points.py", "tests/care/test_gc_crash.py"),
        ("crash points",),
    ),
    Promise(
        "A rank that dies hangs no other rank, and neither loses nor tears anything.",
        ("tests/e2e/test_rank_deaths.py", "tests/torch/test_saver_ranks.py"),
        ("crash points of ranks",),
    ),
    Promise(
        "A fork, a collection and a deletion that died are done again by calling them again.",
        ("tests/e2e/test_crash_points.py::test_a_process_dies_at_every_operation",),
    ),
    Promise(
        "A lost answer, a write that did not happen and a write that lands late make a save fail or succeed as a whole; the "
        "same writer goes on.",
        (
            "tests/e2e/test_crash_points.py::test_an_answer_is_lost_at_every_write",
            "tests/e2e/test_crash_points.py::test_a_writer_goes_on_after_a_save_that_failed",
        ),
        ("lost answers",),
    ),
    Promise(
        "An older job that still runs cannot harm a newer one; it gets `Fenced`.",
        (
            "tests/log/test_terms.py",
            "tests/care/test_interleaving.py",
            "tests/e2e/test_kill_loops.py",
        ),
        ("kills of numpy jobs",),
    ),
    Promise(
        "Whatever a network does to one request, the call succeeds, or says `Unavailable` and leaves nothing half done.",
        ("tests/e2e/test_network_faults.py",),
        ("network",),
    ),
    Promise(
        "Uses of the public API in any order keep what each of them promised.",
        ("tests/e2e/test_stateful.py",),
        ("uses in any order",),
    ),
    Promise(
        "Collecting beside writers and readers takes nothing that is needed; who loses the race gets `Expired`.",
        ("tests/care/test_interleaving.py", "tests/e2e/test_kill_loops.py"),
        ("collections between all else",),
    ),
    Promise("Collecting costs what is given up, not what stays.", ("tests/care/test_gc_scale.py",)),
    Promise(
        "What a run borrows from another (forks, references) stays as long as it is borrowed, and no longer.",
        ("tests/e2e/test_forks.py", "tests/checkpoint/test_fork.py"),
    ),
    Promise(
        "Many processes under every kind of fault at once, by seed: nothing acknowledged is lost, one history, no garbage in "
        "the end.",
        ("tests/sim/test_plays.py",),
        ("simulator",),
    ),
    Promise(
        "A changed byte is noticed: right values or `Corrupt`, never wrong values.",
        ("tests/e2e/test_corruption.py",),
        ("damage",),
    ),
    Promise(
        "Hostile bytes end in one typed error: nothing is executed, memory and time are bounded.",
        ("tests/e2e/test_hostile_input.py", "tests/e2e/test_no_pickle.py"),
        ("fuzzing",),
    ),
    Promise(
        "Two creators of one key: exactly one wins, and both know which.",
        ("tests/store/test_races.py", "tests/store/test_probe.py"),
    ),
    Promise(
        "These tests notice when a protection is missing.", ("tests/sim/test_bugs.py",), ("bugs",)
    ),
)


def told(suite: str, counts: Counts) -> str:
    """Return the figures of a suite in words.

    Raises:
        KeyError: The suite did not count what its phrase tells.
    """
    return PHRASES[suite].format_map(counts)
