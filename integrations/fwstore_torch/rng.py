"""The states of the random generators of one rank, and the rule by which other worlds take them over.

Rule: rank r of a new world takes the saved state of rank r. A rank that had none is seeded from the saved
state of rank 0 and its own number, so that a world of any size resumes the same way every time.

Invariant: capturing draws no random number, and restoring what was captured makes the generators go on
exactly where they stood.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fwstore import InvalidInput, encode_state


def capture_rng() -> dict[str, Any]:
    """Return the states of Python's, numpy's and torch's default generators as plain values."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).tobytes(), position, has_gauss, gauss),
        "torch": _content(torch.get_rng_state()),
        "cuda": [_content(state) for state in _cuda_states()],
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Set the default generators to a captured state; devices without a saved state are left alone.

    Raises:
        InvalidInput: The state is not one that `capture_rng` made.
    """
    try:
        name, keys, position, has_gauss, gauss = state["numpy"]
        legacy = (name, np.frombuffer(keys, np.uint32).copy(), position, has_gauss, gauss)
        random.setstate(state["python"])
        np.random.set_state(legacy)
        torch.set_rng_state(_tensor(state["torch"]))
        for device, saved in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(_tensor(saved), device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(
            f"the saved state of the random generators does not fit: {error}"
        ) from error


def seed_rng(state_of_rank_zero: Mapping[str, Any], rank: int) -> None:
    """Seed the default generators of a rank that the saved world did not have."""
    origin = encode_state(dict(state_of_rank_zero))
    digest = hashlib.blake2b(
        origin, digest_size=16, person=b"fwstore.rng", salt=rank.to_bytes(8, "little")
    )
    seed = int.from_bytes(digest.digest(), "little")
    random.seed(seed)
    np.random.seed(np.random.SeedSequence(seed).generate_state(8))
    # Seeds the generators of all devices; torch takes 64 bits.
    torch.manual_seed(seed & (1 << 63) - 1)


def _cuda_states() -> list[torch.Tensor]:
    # A process that has not touched a device yet must not open one on every card to look at its seed.
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return []
    return torch.cuda.get_rng_state_all()


def _content(state: torch.Tensor) -> bytes:
    content: bytes = state.cpu().numpy().tobytes()
    return content


def _tensor(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
