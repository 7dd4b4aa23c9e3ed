"""What a benchmark asks: whom it measures, which figures come out, and which marks they should reach. Pure.

Invariant: a question survives the way to JSON and back, so that the report needs nothing but the results.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

OURS = "fwstore"


@dataclass(frozen=True)
class Figure:
    """One number that a trial gives; smaller is better.

    Attributes:
        unit: "s", "x state", "%", "s/GB" or "".
    """

    name: str
    title: str
    unit: str = "s"


@dataclass(frozen=True)
class Mark:
    """A bound on a figure of one of ours.

    Attributes:
        against: Subjects of which the best is the yardstick; none makes `limit` a plain bound.
        against_figure: The figure of the yardstick, where it is another one.
    """

    subject: str
    figure: str
    limit: float
    against: tuple[str, ...] = ()
    against_figure: str = ""


@dataclass(frozen=True)
class Contest:
    """One of ours and the peers that do the same kind of thing."""

    ours: str
    peers: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """Where a subject stands in a plot over size.

    Attributes:
        size: On the axis.
        line: The points of one line are joined.
    """

    subject: str
    size: float
    line: str = OURS


@dataclass(frozen=True, kw_only=True)
class Question:
    """What one script asks.

    Attributes:
        name: Of the script and of its results.
        subjects: Whom it measures, by name in `benchmarks.peers` unless the script makes them itself.
        floors: Those of them that are the raw machine: no peers, but yardsticks.
        contests: Who is compared with whom; none compares the first of ours with every peer.
        axis: What grows from subject to subject, where the question is how something grows.
        points: Where every subject stands on it.
        gigabytes: Size of the state.
        note: What a reader must know to understand the figures.
    """

    name: str
    title: str
    subjects: tuple[str, ...]
    figures: tuple[Figure, ...]
    floors: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()
    contests: tuple[Contest, ...] = ()
    axis: str = ""
    points: tuple[Point, ...] = ()
    gigabytes: float = 3.0
    repeats: int = 5
    note: str = ""

    @property
    def ours(self) -> tuple[str, ...]:
        """The subjects that are fwstore."""
        return tuple(subject for subject in self.subjects if subject.startswith(OURS))

    @property
    def peers(self) -> tuple[str, ...]:
        """The subjects that are neither fwstore nor the raw machine."""
        return tuple(s for s in self.subjects if s not in self.ours and s not in self.floors)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each of ours with each peer that it is compared with."""
        contests = self.contests or (Contest(self.ours[0], self.peers),)
        return [(contest.ours, peer) for contest in contests for peer in contest.peers]

    def size(self, subject: str) -> int:
        """Return where a subject stands on the axis."""
        return next(int(point.size) for point in self.points if point.subject == subject)

    def figure(self, name: str) -> Figure:
        """Return the figure of a name."""
        return next(figure for figure in self.figures if figure.name == name)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def question_from_json(values: dict[str, Any]) -> Question:
    """Return the question that `as_json` described."""
    return Question(
        name=values["name"],
        title=values["title"],
        subjects=tuple(values["subjects"]),
        figures=tuple(Figure(**figure) for figure in values["figures"]),
        floors=tuple(values["floors"]),
        marks=tuple(
            Mark(**{**mark, "against": tuple(mark["against"])}) for mark in values["marks"]
        ),
        contests=tuple(Contest(c["ours"], tuple(c["peers"])) for c in values["contests"]),
        axis=values["axis"],
        points=tuple(Point(**point) for point in values["points"]),
        gigabytes=values["gigabytes"],
        repeats=values["repeats"],
        note=values["note"],
    )
