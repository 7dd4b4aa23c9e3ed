"""Magics and feature bits."""

from __future__ import annotations

import pytest

from fwstore.base.errors import Corrupt, Unsupported
from fwstore.format.envelope import check_envelope, check_features, check_magic, magic


def test_a_magic_has_eight_bytes_and_names_kind_and_version() -> None:
    assert magic("leaf") == b"fw1leaf\n"


@pytest.mark.parametrize(
    "found", [b"", b"fw1lea", b"fw1pack\n", b"<html>..", b"fwxleaf\n", b"fw1leaf\r"]
)
def test_other_bytes_are_corrupt(found: bytes) -> None:
    with pytest.raises(Corrupt, match="'leaf'"):
        check_magic(found, "leaf")


def test_another_version_is_named() -> None:
    with pytest.raises(Unsupported, match="format version 7"):
        check_magic(b"fw7leaf\n", "leaf")


def test_unknown_features_are_named() -> None:
    check_features(0, "leaf")
    with pytest.raises(Unsupported, match=r"features 0, 5, 31:"):
        check_features(1 | 1 << 5 | 1 << 31, "leaf")


def test_an_envelope_that_is_cut_short_is_corrupt() -> None:
    check_envelope(b"fw1leaf\n\0\0\0\0", "leaf")
    with pytest.raises(Corrupt, match="11 bytes"):
        check_envelope(b"fw1leaf\n\0\0\0", "leaf")
