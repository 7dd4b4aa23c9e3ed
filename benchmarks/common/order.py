"""In which order subjects take their turns. Pure.

Invariant: in every two rounds each subject stands as far from the beginning as from the end (ABBA), so that a
machine that drifts favours nobody.
"""

from __future__ import annotations

import random
from collections.abc import Sequence


def rounds(subjects: Sequence[str], repeats: int, seed: int = 0) -> list[list[str]]:
    """Return the order of every round: shuffled in the even ones, the same reversed in the odd ones."""
    generator = random.Random(seed)
    result: list[list[str]] = []
    for number in range(repeats):
        if number % 2:
            result.append(result[-1][::-1])
        else:
            result.append(generator.sample(list(subjects), len(subjects)))
    return result
