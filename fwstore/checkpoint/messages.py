"""What the messages of a save are called at the coordinator.

Invariant: every name begins with the number of the save in its term, so no message of one save is taken for
that of another; but for the one message of a rank that is about all of its saves.
"""

from __future__ import annotations


def part_key(save: int, rank: int) -> str:
    """Coordinator key of a rank's contribution to a save."""
    return f"{save}/part/{rank}"


def vote_key(save: int, rank: int) -> str:
    """Coordinator key of the digest of a rank's list of replicated tensors."""
    return f"{save}/agree/{rank}"


def verdict_key(save: int) -> str:
    """Coordinator key of the leader's answer to the votes."""
    return f"{save}/agreed"


def outcome_key(save: int) -> str:
    """Coordinator key of the result of a save."""
    return f"{save}/outcome"


def catalogue_key(save: int, digest: bytes) -> str:
    """Coordinator key of a list of replicated tensors."""
    return f"{save}/catalogue/{digest.hex()}"


def ended_key(rank: int) -> str:
    """Coordinator key of what a rank says of the ends of its saves."""
    return f"ended/{rank}"
