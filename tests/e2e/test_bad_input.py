"""What bad input gets: a clear error of the right class; nothing half-written is visible, nothing is lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fwstore
from support.coordinators import Board, ThreadJob, outcomes
from support.damage import rechecked
from support.disks import read_only, small_disk
from support.oracle import make_state, same

QUICK = fwstore.Limits(request_timeout_s=0.5, commit_timeout_s=5.0)


class Model:
    """Something that has no stored form."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a repository: the run "run" has a checkpoint of step 1."""
    with fwstore.open(tmp_path / "store") as repository, repository.run("run").writer() as writer:
        writer.save(1, make_state(1)).result()
    return tmp_path / "store"


@pytest.fixture
def run(place: Path) -> Iterator[fwstore.Run]:
    """That run."""
    with fwstore.open(place, limits=QUICK) as repository:
        yield repository.run("run")


def steps(place: Path | str) -> list[int]:
    """The steps on offer to a new process, each loaded and compared."""
    with fwstore.open(place) as repository:
        found = repository.run("run").checkpoints()
        assert all(same(c.load(), make_state(c.step)) for c in found)
        assert repository.verify(level="data").problems == ()
        return [checkpoint.step for checkpoint in found]


def edit_site(place: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change fwstore.json as another version of fwstore would have written it."""
    path = place / "fwstore.json"
    site = json.loads(path.read_bytes())
    change(site)
    text = json.dumps(site, separators=(",", ":"), sort_keys=True)
    path.write_bytes(rechecked(text.encode()))


# The store.


def test_a_store_of_a_future_version_is_refused_before_anything_is_read(place: Path) -> None:
    edit_site(place, lambda site: site.update(major=2))
    with pytest.raises(fwstore.Unsupported, match=r"has format 2; this version .* reads format 1"):
        fwstore.open(place)


def test_an_unknown_mandatory_feature_is_named_and_an_optional_one_is_ignored(place: Path) -> None:
    edit_site(place, lambda site: site.update(optional=["colour"]))
    assert steps(place) == [1]
    edit_site(place, lambda site: site.update(mandatory=["erasure-coding"]))
    with pytest.raises(fwstore.Unsupported, match=r"needs erasure-coding: use a newer fwstore"):
        fwstore.open(place)


def test_a_store_with_the_uuid_of_another_is_not_written_to(place: Path) -> None:
    edit_site(place, lambda site: site.update(site="e" * 32))
    with fwstore.open(place) as repository:
        before = sorted(place.rglob("*"))
        with pytest.raises(
            fwstore.Conflict, match=r"fwstore.json is not the one it was created with"
        ):
            repository.run("run").writer()
        assert sorted(place.rglob("*")) == before
    assert steps(place) == [1]


def test_another_hash_key_is_refused(place: Path) -> None:
    with pytest.raises(fwstore.Unsupported, match=r"created with no hash key.* pass hash_key="):
        fwstore.open(place, hash_key=bytes(32))
    with pytest.raises(fwstore.InvalidInput, match="32 bytes, not 3"):
        fwstore.open(place, hash_key=b"key")


def test_a_place_without_a_repository_is_not_made_by_looking_at_it(tmp_path: Path) -> None:
    with fwstore.open(tmp_path / "nothing") as repository:
        with pytest.raises(fwstore.NotFound, match=r"there is no fwstore repository at .*nothing"):
            repository.runs()
        with pytest.raises(fwstore.NotFound, match="there is no run run in"):
            repository.run("run").latest()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host/x",
        "s3://",
        "s3://bucket/../other",
        "file://host/x",
        "s3:/bucket",
        "x.toml",
        None,
        7,
    ],
)
def test_what_is_no_address_is_invalid(url: Any) -> None:
    with pytest.raises(fwstore.InvalidInput):
        fwstore.open(url)


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(fwstore.InvalidInput, match="holds credentials") as caught:
        fwstore.open("s3://AKIA42:topsecret@bucket/prefix")
    assert "topsecret" not in f"{caught.value}{caught.value!r}"


def test_an_unreachable_store_is_unavailable_within_its_deadline() -> None:
    with pytest.raises(fwstore.Unavailable, match=r"cannot read fwstore.json in s3://bucket/x"):
        fwstore.open(
            "s3://bucket/x?endpoint=http://127.0.0.1:9&region=us-east-1",
            limits=QUICK,
            options={"access_key_id": "a", "secret_access_key": "b"},
        )


def test_a_directory_below_a_file_is_invalid(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        fwstore.open(tmp_path / "file" / "store") as repository,
        pytest.raises(fwstore.InvalidInput, match="a part of it is an object"),
    ):
        repository.run("run").writer()


def test_a_read_only_store_can_be_read_and_says_that_it_cannot_be_written(
    place: Path, tmp_path: Path
) -> None:
    with read_only(place, tmp_path / "locked") as locked:
        assert steps(locked) == [1]
        with fwstore.open(locked) as repository:
            run = repository.run("run")
            for write in (
                run.writer,
                repository.run("new").writer,
                partial(run.fork, "fork"),
                partial(run.pin, 1, "paper"),
                partial(run.remove, 1),
                run.delete,
            ):
                with pytest.raises(fwstore.PermissionDenied, match="mounted read-only"):
                    write()
    assert steps(place) == [1]


def test_a_full_disk_fails_the_save_and_leaves_every_earlier_checkpoint(tmp_path: Path) -> None:
    big = {"weights": np.random.default_rng(7).random(1 << 16)}
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        place = disk / "store"
        repository = fwstore.open(place, limits=QUICK)
        with repository, repository.run("run").writer() as writer:
            for step in (1, 2, 3):
                writer.save(step, make_state(step)).result()
            writer.save(4, big).result()
            with pytest.raises(fwstore.LimitExceeded, match="is full; free space"):
                writer.save(5, {"weights": big["weights"] + 1}).result()
            repository.run("run").remove(4)
            assert steps(place) == [1, 2, 3]
            # What the failed save had written is gone, and there is room for small ones.
            writer.save(6, make_state(6)).result()
            repository.gc()
            writer.save(7, {"weights": big["weights"] + 2}).result()
        with fwstore.open(place) as repository:
            assert [c.step for c in repository.run("run").checkpoints()] == [1, 2, 3, 6, 7]
            assert repository.verify(level="data").problems == ()


def test_a_directory_that_vanished_takes_no_more_saves_until_it_is_back(place: Path) -> None:
    repository = fwstore.open(place, limits=QUICK)
    with repository, repository.run("run").writer() as writer:
        writer.save(2, make_state(2)).result()
        shutil.copytree(place, place.with_name("kept"))
        shutil.rmtree(place)
        with pytest.raises(fwstore.Unavailable, match="mount its file system again"):
            writer.save(3, make_state(3)).result()
        assert not place.exists()
        place.with_name("kept").rename(place)
        writer.save(4, make_state(4)).result()
    assert steps(place) == [1, 2, 4]


# Names.


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../../etc/passwd", "a/../b", "/a", "a/", "a//b", "a b", "a\x00b", "a\nb", "\x1b[2J",
     "a\\b", "_meta", "a@1", ".hidden", "caf\u00e9", "a.", "x" * 10_000, "/".join(["ab"] * 200)],
    ids=lambda name: repr(name[:12]),
)  # fmt: skip
def test_what_cannot_name_a_run_is_invalid_and_its_error_is_short(
    run: fwstore.Run, place: Path, name: str
) -> None:
    before = sorted(place.rglob("*"))
    with fwstore.open(place) as repository:
        for use in (repository.run, run.fork):
            with pytest.raises(fwstore.InvalidInput) as caught:
                use(name)
            assert len(str(caught.value)) < 1000
            assert str(caught.value).isprintable()
    assert sorted(place.rglob("*")) == before


def test_names_that_differ_in_case_alone_are_one_name(run: fwstore.Run, place: Path) -> None:
    with fwstore.open(place) as repository:
        other = repository.run("RUN")
        with pytest.raises(fwstore.AlreadyExists, match=r"'RUN' is taken by 'run'"):
            other.writer()


@pytest.mark.parametrize("tag", ["", "..", "a/b", "a\x00", "t" * 10_000, "@"])
def test_what_cannot_be_a_tag_is_invalid(run: fwstore.Run, tag: str) -> None:
    with pytest.raises(fwstore.InvalidInput, match="cannot be a tag"):
        run.tag(tag, 1)


@pytest.mark.parametrize("reason", ["r" * 10_000, 7, None, "\ud800"], ids=repr)
def test_what_cannot_be_a_reason_is_invalid(run: fwstore.Run, reason: Any) -> None:
    for use in (partial(run.pin, 1, reason), partial(run.delete, reason)):
        with pytest.raises(fwstore.InvalidInput, match="text of at most 1024 characters"):
            use()
    assert run.pins() == []


def test_a_pin_that_is_not_there_is_not_found(run: fwstore.Run) -> None:
    with pytest.raises(fwstore.NotFound, match=r"has no pin x+;") as caught:
        run.unpin("x" * 10_000)
    assert len(str(caught.value)) < 300


def test_keys_that_read_alike_stay_apart(run: fwstore.Run) -> None:
    one, two = np.ones(3), np.full(3, 2.0)
    states: list[dict[Any, Any]] = [
        {"a.b": one, "a": {"b": two}},
        {"a/b": one, "a": {"b": two}},
        {"1": one, 1: two},
        {"a": {"": one}, "": {"a": two}},
        {"..": {"..": one}, "../..": two, "/": {"x\x00\n": one, "\u202e": two}},
        {"a": {"b": one}, "A": {"b": two}, "a.b": "plain"},
    ]
    with run.writer() as writer:
        for step, state in enumerate(states, 2):
            writer.save(step, state).result()
    for step, state in enumerate(states, 2):
        assert same(run[step].load(), state)
        into = {key: _zeroed(value) for key, value in state.items()}
        assert same(run[step].load(into=into), state)


def _zeroed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _zeroed(child) for key, child in value.items()}
    return np.zeros_like(value) if isinstance(value, np.ndarray) else None


# States.


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"model": {"layers": [1, {"x": Model()}]}}, r"model/layers/1/x: a .*Model cannot be stored"),
        ({"model": {"hook": print}}, r"model/hook: a builtins\..* cannot be stored"),
        ({"rng": iter([1])}, r"rng: a builtins.list_iterator cannot be stored"),
        ({"objects": np.array([Model()])}, r"objects: a numpy value of dtype object cannot be stored"),
        ({"text": "\ud800"}, r"text: text with a lone surrogate"),
        ({1.5: np.ones(1)}, r"1.5: a tensor below a key that is neither text nor a whole number"),
        ({"k" * 10_000: np.ones(1)}, r"tensor path k+\.\.\. is longer than 4096 bytes"),
        ({"@fwstore": np.ones(1)}, r"top-level key '@fwstore' belongs to fwstore"),
        (np.ones(1), r"the state is a bare ndarray; put it into a dict"),
    ],
)  # fmt: skip
def test_a_value_without_a_stored_form_is_named_by_its_key_path(
    run: fwstore.Run, place: Path, state: Any, where: str
) -> None:
    with run.writer() as writer:
        with pytest.raises(fwstore.InvalidInput, match=where) as caught:
            writer.save(2, state)
        assert len(str(caught.value)) < 1000
        # The refusal left nothing behind: neither bytes nor a used-up step.
        writer.save(2, make_state(2)).result()
    assert steps(place) == [1, 2]


def test_states_that_never_end_are_refused(run: fwstore.Run, place: Path) -> None:
    ring: dict[str, Any] = {"a": {}}
    ring["a"]["b"] = ring
    deep: dict[str, Any] = {}
    inner = deep
    for _ in range(5000):
        inner["d"] = {}
        inner = inner["d"]
    with run.writer() as writer:
        with pytest.raises(
            fwstore.UnsupportedValue, match=r"a/b: a container that contains itself"
        ):
            writer.save(2, ring)
        with pytest.raises(fwstore.UnsupportedValue, match=r"nested deeper than \d+ levels"):
            writer.save(2, deep)
    assert steps(place) == [1]


@pytest.mark.parametrize("argument", ["position", "per_rank"])
def test_other_values_are_named_by_their_argument(run: fwstore.Run, argument: str) -> None:
    what = f"{argument}/seen: a .*Model"
    with run.writer() as writer, pytest.raises(fwstore.UnsupportedValue, match=what):
        writer.save(2, {}, **{argument: {"seen": Model()}})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metrics", "what"),
    [
        ({"loss": "low"}, r"metric 'loss' must be a number, not 'low'"),
        ({"loss": None}, r"metric 'loss' must be a number, not None"),
        ({7: 1.0}, r"the name of a metric must be text, not 7"),
    ],
)
def test_what_is_no_metric_is_invalid(run: fwstore.Run, metrics: Any, what: str) -> None:
    with run.writer() as writer, pytest.raises(fwstore.InvalidInput, match=what):
        writer.save(2, {}, metrics=metrics).result()


def test_a_loss_that_is_not_finite_is_left_out_and_the_state_is_saved(run: fwstore.Run) -> None:
    with run.writer() as writer:
        metrics: dict[str, Any] = {
            "loss": float("nan"),
            "norm": float("inf"),
            "rate": np.float32(0.5),
        }
        saved = writer.save(2, make_state(2), metrics=metrics).result()
    assert saved is not None
    assert run[2].metrics == {"rate": 0.5}
    assert same(run[2].load(), make_state(2))


def test_more_metrics_than_a_record_holds_exceed_a_limit(run: fwstore.Run, place: Path) -> None:
    with run.writer() as writer:
        with pytest.raises(fwstore.LimitExceeded, match="use fewer or shorter metrics"):
            writer.save(2, {}, metrics={f"metric {n}": 1.0 for n in range(2000)}).result()
        writer.save(3, make_state(3)).result()
    assert steps(place) == [1, 3]


# Steps, jobs and ranks.


@pytest.mark.parametrize("step", [-1, True, "3", 1.0, None, 10**15, [1]], ids=repr)
def test_what_is_no_step_is_invalid(run: fwstore.Run, place: Path, step: Any) -> None:
    with run.writer() as writer:
        with pytest.raises(
            fwstore.InvalidInput, match=r"step must be an int from 0 to 9{15}, not "
        ):
            writer.save(step, make_state(2))
        writer.save(2, make_state(2)).result()
    assert steps(place) == [1, 2]


def test_steps_that_are_not_there_are_told_apart(run: fwstore.Run) -> None:
    with run.writer() as writer:
        writer.save(2, make_state(2)).result()
    run.remove(1)
    with pytest.raises(fwstore.Expired, match=r"no checkpoint of step 1: .*it has steps 2"):
        run[1]
    with pytest.raises(fwstore.NotFound, match=r"no checkpoint of step 7; it has steps 2"):
        run[7]
    for step in ("2", None, 2.0):
        with pytest.raises(fwstore.InvalidInput, match="named by its step"):
            run[step]  # type: ignore[index]


def test_a_step_is_saved_once_per_term(run: fwstore.Run, place: Path) -> None:
    with run.writer() as writer:
        writer.save(2, make_state(2)).result()
        with pytest.raises(fwstore.AlreadyExists, match="this job has saved step 2 before"):
            writer.save(2, make_state(3))
    with run.writer() as writer:
        writer.save(2, make_state(2)).result()
    assert steps(place) == [1, 2]


def test_a_second_close_does_nothing_and_a_closed_writer_says_so(
    run: fwstore.Run, place: Path
) -> None:
    writer = run.writer()
    writer.save(2, make_state(2))
    writer.close()
    writer.close()
    with pytest.raises(fwstore.InvalidInput, match="this writer is closed; open another"):
        writer.save(3, {})
    assert steps(place) == [1, 2]
    repository = fwstore.open(place)
    assert repository.run("run").latest().step == 2
    repository.close()
    repository.close()


def test_the_older_of_two_writers_is_fenced_and_stops_cleanly(
    run: fwstore.Run, place: Path
) -> None:
    with run.writer() as older:
        older.save(2, make_state(2)).result()
        with fwstore.open(place) as other, other.run("run").writer() as newer:
            handle = older.save(3, make_state(3))
            with pytest.raises(
                fwstore.Fenced, match=r"term 3 .* belongs to a newer job.* must stop"
            ):
                handle.result()
            newer.save(3, make_state(3)).result()
            with pytest.raises(fwstore.Fenced):
                older.save(4, make_state(4))
            older.wait()
            older.close()
            newer.save(4, make_state(4)).result()
    assert steps(place) == [1, 2, 3, 4]
    with fwstore.open(place) as repository:
        repository.gc()
    packs = [path for path in (place / "packs").rglob("*") if path.is_file()]
    with fwstore.open(place) as repository:
        used = {pack.key for c in repository.run("run").checkpoints() for pack in c.packs()}
    assert {str(path.relative_to(place)) for path in packs} == used


def test_ranks_that_disagree_on_the_step_all_learn_it_and_go_on(place: Path) -> None:
    with ThreadJob(str(place), 2) as job:
        calls = [partial(job.save_on, rank, 5 + rank, make_state(5)) for rank in (0, 1)]
        for error in outcomes(calls):
            assert isinstance(error, fwstore.InvalidInput)
            assert "rank 0 saves step 5, rank 1 step 6" in str(error)
            assert "every rank must call save with the same steps" in str(error)
        job.save(7, [make_state(7)] * 2)
    assert steps(place) == [1, 7]


def test_a_directory_that_ranks_do_not_share_is_found_out_before_a_byte_is_lost(
    place: Path, tmp_path: Path
) -> None:
    channels = Board().channels(2)

    def save(rank: int) -> Any:
        url = place if rank == 0 else tmp_path / "local"
        repository = fwstore.open(url, limits=QUICK)
        with repository, repository.run("run").writer(coordinator=channels[rank]) as writer:
            return writer.save(2, make_state(2)).result()

    for error in outcomes([partial(save, 0), partial(save, 1)]):
        assert isinstance(error, fwstore.InvalidInput)
        assert "is not shared by all ranks" in str(error)
        assert "use a directory on a shared file system, or an object store" in str(error)
    assert steps(place) == [1]
    assert not (tmp_path / "local").exists()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"rank": 2, "world_size": 2}, "rank 2 does not fit a world of 2"),
        ({"rank": 1}, "give both rank= and world_size="),
        ({"rank": 0, "world_size": 2}, "needs a way to meet"),
        ({"codec": "lz4"}, "there is no codec 'lz4'; choose one of raw, zstd, auto"),
    ],
)
def test_arguments_of_a_writer_are_checked_before_the_term_is_taken(
    run: fwstore.Run, options: Any, what: str
) -> None:
    before = [entry.sequence for entry in run.log()]
    with pytest.raises(fwstore.InvalidInput, match=what):
        run.writer(**options)
    assert [entry.sequence for entry in run.log()] == before


def test_busy_is_wait_or_skip(run: fwstore.Run) -> None:
    what = "on_busy is 'wait' or 'skip', not 'drop'"
    with run.writer() as writer, pytest.raises(fwstore.InvalidInput, match=what):
        writer.save(2, {}, on_busy="drop")  # type: ignore[arg-type]


# Destinations.


def test_a_destination_that_does_not_fit_is_told_everything_and_left_as_it_was(
    run: fwstore.Run,
) -> None:
    with run.writer() as writer:
        state = {"a": np.ones(3), "b": np.ones((2, 2)), "c": np.ones(1), "d": np.arange(4)}
        writer.save(2, state).result()
    into: dict[str, np.ndarray[Any, Any]] = {
        "a": np.zeros(4),
        "b": np.zeros((2, 2), np.float32),
        "d": np.zeros(4, np.int64),
        "new": np.zeros(1),
    }
    with pytest.raises(fwstore.InvalidInput) as caught:
        run[2].load(into=into)
    for line in (
        "the checkpoint does not fit the destination",
        "a (saved float64[3], wanted float64[4])",
        "b (saved float64[2, 2], wanted float32[2, 2])",
        "1 missing in the checkpoint: new",
        "1 in the checkpoint but not in the destination: c",
    ):
        assert line in str(caught.value)
    assert not any(value.any() for value in into.values())
    run[2].load(into={"d": into["d"]}, only="d")
    assert into["d"].tolist() == [0, 1, 2, 3]


@pytest.mark.slow
def test_of_many_names_some_are_listed_and_all_are_counted(run: fwstore.Run) -> None:
    with pytest.raises(
        fwstore.InvalidInput, match=r"10000 missing in the checkpoint: .* and \d+ more"
    ) as c:
        run[1].load(into={f"tensor {n}": np.zeros(1) for n in range(10_000)})
    assert len(str(c.value)) < 10_000


# Care.


@pytest.mark.parametrize(
    "options", [{"level": "deep"}, {"level": "sample", "sample": 7.0}, {"sample": -0.1}]
)
def test_a_verification_that_does_not_exist_is_invalid(
    run: fwstore.Run, place: Path, options: Any
) -> None:
    with fwstore.open(place) as repository, pytest.raises(fwstore.InvalidInput):
        repository.verify(**options)


def test_what_is_kept_is_not_removed_and_says_by_what(run: fwstore.Run) -> None:
    token = run.pin(1, "table 2 of the paper")
    run.tag("best", 1)
    with pytest.raises(
        fwstore.InvalidInput, match=r"kept by: table 2 of the paper, tag best; lift"
    ):
        run.remove(1)
    run.unpin(token)
    run.tag("best", None)
    run.remove(1)
    with pytest.raises(fwstore.NotFound, match="has no checkpoint yet"):
        run.latest()


# Nothing that is loaded is run.

_LOAD = """
import sys
{before}
import fwstore
assert not {{"torch", "boto3", "fsspec", "zarr"}} & set(sys.modules) or {torch}, "fwstore imports a framework"
def forbid(event, arguments):
    if event in ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"):
        raise SystemExit(f"{{event}} {{arguments}}")
sys.addaudithook(forbid)
with fwstore.open({url!r}) as repository:
    for checkpoint in repository.run("run").checkpoints():
        checkpoint.load(); checkpoint.state(); checkpoint.position; checkpoint.per_rank(0)
        for name in checkpoint.tensors: checkpoint.tensors[name][...]
        print(checkpoint.step)
"""


def _load_in_a_process(url: str, *, torch: bool) -> list[str]:
    script = _LOAD.format(before="import torch" if torch else "", torch=torch, url=url)
    root = Path(fwstore.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env={"PYTHONPATH": f"{root}:{root / 'integrations'}"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_a_load_unpickles_nothing_and_starts_nothing(run: fwstore.Run, place: Path) -> None:
    state = {
        **make_state(2),
        "when": datetime(2026, 1, 2, tzinfo=UTC),
        "bytes": b"cos\nsystem\n(S'true'\ntR.",
        "scalar": np.float32(3),
        "set": {1, (2, "x")},
    }
    with run.writer(codec="zstd") as writer:
        writer.save(2, state, position={"at": 1}, per_rank={"rng": b"\x80\x04N."}).result()
    assert _load_in_a_process(str(place), torch=False) == ["1", "2"]


@pytest.mark.slow
def test_a_load_of_torch_tensors_unpickles_nothing(run: fwstore.Run, place: Path) -> None:
    import torch

    state = {
        "w": torch.ones(3, dtype=torch.bfloat16),
        "dtype": torch.float16,
        "size": torch.Size([2]),
    }
    with run.writer() as writer:
        writer.save(2, state).result()
    assert _load_in_a_process(str(place), torch=True) == ["1", "2"]
