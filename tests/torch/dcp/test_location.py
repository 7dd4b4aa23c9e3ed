"""One id names one checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from fwstore import InvalidInput
from fwstore_torch.dcp_location import RUN_NAME, STEP, is_location, locate


@pytest.mark.parametrize(
    ("checkpoint_id", "url", "run", "step"),
    [
        ("/data/ck", "/data/ck", RUN_NAME, STEP),
        ("s3://bucket/ck", "s3://bucket/ck", RUN_NAME, STEP),
        ("/data/repo#org/llama@1200", "/data/repo", "org/llama", 1200),
        ("memory://m#llama", "memory://m", "llama", None),
        (Path("/data/a#b"), "/data/a#b", RUN_NAME, STEP),
        ("/data/exp@3", "/data/exp@3", RUN_NAME, STEP),
    ],
)
def test_ids_by_themselves(checkpoint_id: str | Path, url: str, run: str, step: int | None) -> None:
    location = locate(checkpoint_id)
    assert (location.url, location.run, location.step) == (url, run, step)


@pytest.mark.parametrize(
    ("below", "run", "step"),
    [
        ("step-100", RUN_NAME, 100),
        ("100", RUN_NAME, 100),
        ("llama/step-100", "llama", 100),
        ("llama/step_000100", "llama", 100),
        ("llama/model-100", "llama/model", 100),
        ("llama/epoch-2-step-7", "llama/epoch-2-step", 7),
        ("llama/final", "llama/final", STEP),
        ("llama", "llama", STEP),
    ],
)
@pytest.mark.parametrize("root", ["/data/repo", "s3://bucket/repo", "s3://bucket/repo/"])
def test_ids_below_a_repository(root: str, below: str, run: str, step: int) -> None:
    location = locate(f"{root.rstrip('/')}/{below}", root)
    assert (location.url, location.run, location.step) == (root, run, step)


@pytest.mark.parametrize(
    ("checkpoint_id", "repository"),
    [
        ("/elsewhere/step-1", "/data/repo"),
        ("/data/repo", "/data/repo"),
        ("/data/repo/../x", "/data/repo"),
        ("s3://other/step-1", "s3://bucket"),
        ("abc://abc.abc", None),
        ("", None),
    ],
)
def test_ids_that_name_nothing(checkpoint_id: str, repository: str | None) -> None:
    with pytest.raises(InvalidInput):
        locate(checkpoint_id, repository)


def test_ids_of_foreign_schemes_are_invalid() -> None:
    assert is_location("relative/dir")
    assert is_location(Path("/dir"))
    assert is_location("gs://bucket/x")
    assert not is_location("abc://abc.abc")
    assert not is_location("https://host/x")
    assert not is_location("")


def test_ranks_without_collectives_have_runs_of_their_own() -> None:
    location = locate("/data/repo#llama@3")
    assert location.of_rank(2).run == "llama/rank-2"
    assert location.of_rank(2).step == 3
