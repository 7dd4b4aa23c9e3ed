"""Bytes become plain values only where that loses nothing."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

from fwstore_torch.dcp_bytes import OPAQUE, PLAIN_BYTES_MAX, PlainValues, to_bytes
from fwstore_torch.tensors import adapter


class Custom:
    """A class that no safe unpickler makes."""


@pytest.mark.parametrize(
    "value",
    [
        *(1, 0.1, None, "text", b"bytes", 1 << 80, 1 + 2j),
        *((1, (2.5, None)), [1, "a", "a"], {"x": {"y": [1]}}, {1, 2}, OrderedDict(b=1, a=2)),
    ],
)
def test_plain_values_come_back(value: Any) -> None:
    plain = PlainValues().of(to_bytes(value))
    assert plain == value
    assert type(plain) is type(value)


@pytest.mark.parametrize("value", [torch.float16, torch.Size([1, 2]), torch.device("cpu")])
def test_values_of_torch_are_kept_in_their_inert_form(value: Any) -> None:
    assert adapter.revive(PlainValues().of(to_bytes(value))) == value


@pytest.mark.parametrize(
    "value",
    [Custom(), io.BytesIO(b"x"), np.arange(3), [torch.ones(2)], "x" * PLAIN_BYTES_MAX],
    ids=["object", "stream", "array", "tensor", "large"],
)
def test_other_values_stay_bytes(value: Any) -> None:
    assert PlainValues().of(to_bytes(value)) is OPAQUE


@pytest.mark.parametrize("raw", [b"", b"no pickle", b"\x80\x04K\x01.", to_bytes(1) + b"\0"])
def test_bytes_that_torch_did_not_write_stay_bytes(raw: bytes) -> None:
    assert PlainValues().of(raw) is OPAQUE
