"""What of a file is in the page cache."""

from __future__ import annotations

import mmap
from pathlib import Path

from benchmarks.common.cache import cached_bytes, files_below, fill_cache, sync_folder


def test_a_file_that_was_just_written_is_cached_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10 * mmap.PAGESIZE + 1))
    assert cached_bytes(path) == 11 * mmap.PAGESIZE


def test_an_empty_file_has_nothing_to_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    assert cached_bytes(path) == 0


def test_files_of_all_folders_are_found_and_can_be_made_durable(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "file").write_text("x")
    (tmp_path / "link").symlink_to(inner / "file")
    sync_folder(tmp_path)
    assert list(files_below(tmp_path)) == [inner / "file"]


def test_what_was_dropped_is_there_again_once_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * mmap.PAGESIZE))
    fill_cache(tmp_path)
    assert cached_bytes(path) == 4 * mmap.PAGESIZE
