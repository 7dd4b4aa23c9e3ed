"""The tensor dictionary: path, dtype, shape and grid of every tensor of a leaf or footer.

Invariant: a parsed dictionary is sorted by stored path without repeats, every tensor in it is smaller
than 2^63 bytes, and every cell of its grid fits `CELL_BYTES_MAX`.

Paths share their beginnings with their neighbours and their keys with all; few tensors differ in
dtype, shape and grid. So paths are stored as numbers of keys after a shared beginning, and the rest
as numbers of forms: a few bytes per tensor, and few objects in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from fwstore.base.errors import Corrupt, InvalidInput, LimitExceeded
from fwstore.base.units import MIB
from fwstore.format.columnar import BytesColumn, IntegerColumn, Schema, Table, Values
from fwstore.format.dtypes import itemsize
from fwstore.format.paths import PATH_BYTES_MAX, TensorPath, display_path, encode_path
from fwstore.format.rows import Boxes, starts_of

RANK_MAX = 64
TENSORS_MAX = 1 << 16
CELL_BYTES_MAX = 64 * MIB
_KEYS_MAX = 1 << 16
_KEYS_BYTES_MAX = 2 * MIB
_PATH_KEYS_MAX = 1 << 20
_FORM_DIMENSIONS_MAX = 1 << 15
_BYTES_LIMIT = 1 << 63

TENSOR_SCHEMA: Schema = {
    "keys": BytesColumn(),
    "path_shared": IntegerColumn(np.uint32),
    "path_length": IntegerColumn(np.uint32),
    "path_keys": IntegerColumn(np.uint32),
    "aliased": IntegerColumn(np.uint32, delta=True),
    "form": IntegerColumn(np.uint32),
    "form_dtype": BytesColumn(),
    "form_rank": IntegerColumn(np.uint32),
    "form_shape": IntegerColumn(np.int64),
    "form_blocks": IntegerColumn(np.int64),
    "form_rows": IntegerColumn(np.int64),
}

_Form = tuple[str, tuple[int, ...], tuple[tuple[int, int], ...]]
_key_encoder = msgspec.msgpack.Encoder()
_key_decoder = msgspec.msgpack.Decoder(str | int)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a snapshot knows of one tensor.

    Attributes:
        path: Where it stands in the state.
        dtype: Its element type by name.
        shape: Its global shape.
        cells: Blocks and rows per cell of its grid, for every dimension.
        alias: The path under which its bytes are stored, when it is tied to another tensor.
    """

    path: TensorPath
    dtype: str
    shape: tuple[int, ...]
    cells: tuple[tuple[int, int], ...]
    alias: TensorPath | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * itemsize(self.dtype)

    @property
    def cell_count(self) -> int:
        """Cell numbers of the grid, void ones included; 0 for an empty tensor."""
        return _cell_count(self.shape, self.cells)

    @property
    def cell_bytes(self) -> int:
        """Bytes of the largest cell."""
        return math.prod(rows for _, rows in self.cells) * itemsize(self.dtype)


# A model has few forms, and every leaf and footer asks for all of its tensors.
@lru_cache(maxsize=1 << 12)
def _cell_count(shape: tuple[int, ...], cells: tuple[tuple[int, int], ...]) -> int:
    if 0 in shape:
        return 0
    count = 1
    for size, (blocks, rows) in zip(shape, cells, strict=True):
        count *= blocks * _parts(_parts(size, blocks), rows)
    return count


def tensor_columns(tensors: Sequence[TensorInfo]) -> dict[str, Values]:
    """Return the stored columns of a tensor dictionary.

    Raises:
        InvalidInput: A tensor is not sane, or the tensors are not sorted by stored path.
        Unsupported: A dtype is not known.
        LimitExceeded: The dictionary is too large for one table.
    """
    forms: dict[_Form, int] = {}
    numbers = [
        forms.setdefault((info.dtype, info.shape, info.cells), len(forms)) for info in tensors
    ]
    for form in forms:
        problem = _form_problem(form)
        if problem is not None:
            path = display_path(tensors[numbers.index(forms[form])].path)
            raise InvalidInput(f"tensor {path} {problem}")
    problem = _order_problem(tensors)
    if problem is not None:
        raise InvalidInput(problem)
    aliased = [number for number, info in enumerate(tensors) if info.alias is not None]
    paths = [info.path for info in tensors] + [
        info.alias for info in tensors if info.alias is not None
    ]
    columns = _path_columns(paths) | _form_columns(list(forms))
    columns |= {"aliased": np.array(aliased, np.uint32), "form": np.array(numbers, np.uint32)}
    problem = _size_problem(columns)
    if problem is not None:
        raise LimitExceeded(f"{problem}; split the table")
    return columns


def parse_tensors(table: Table) -> tuple[TensorInfo, ...]:
    """Return the tensor dictionary of a parsed table.

    Raises:
        Corrupt: A tensor is not sane, or the tensors are not sorted or repeat.
        Unsupported: A dtype is not known.
    """
    problem = _size_problem(table.columns)
    if problem is not None:
        raise Corrupt(problem)
    forms = _parse_forms(table)
    numbers, aliased = table.array("form").tolist(), table.array("aliased").tolist()
    paths = _parse_paths(table)
    if len(paths) != len(numbers) + len(aliased):
        raise Corrupt(
            f"a tensor dictionary has {len(paths)} paths for {len(numbers) + len(aliased)} uses"
        )
    if numbers and max(numbers) >= len(forms):
        raise Corrupt("a tensor dictionary refers to a form that it lacks")
    if any(low >= high for low, high in pairwise([-1, *aliased, len(numbers)])):
        raise Corrupt("the aliases of a tensor dictionary are not in order")
    aliases = dict(zip(aliased, paths[len(numbers) :], strict=True))
    tensors = tuple(
        _with_form(path, forms[number], aliases.get(index))
        for index, (path, number) in enumerate(zip(paths, numbers, strict=False))
    )
    try:
        problem = _order_problem(tensors)
    except InvalidInput as error:
        raise Corrupt(f"a stored tensor path is malformed: {error}") from error
    if problem is not None:
        raise Corrupt(problem)
    return tensors


def tensor_weight(info: TensorInfo) -> float:
    """Return the largest share that a tensor can take of the limits of one dictionary."""
    return max(
        1 / TENSORS_MAX,
        len(info.path) / _KEYS_MAX,
        len(encode_path(info.path)) / _KEYS_BYTES_MAX,
        len(info.shape) / _FORM_DIMENSIONS_MAX,
    )


def check_boxes(tensors: Sequence[TensorInfo], index: NDArray[np.int64], boxes: Boxes) -> None:
    """Check fragments of cells against the grids of their tensors.

    Args:
        tensors: The dictionary.
        index: The tensor of every box, as an index into it.
        boxes: Parts of cells, relative to the box of the cell.

    Raises:
        Corrupt: A box has another number of dimensions than its tensor, or is not inside a cell.
    """
    ranks = np.array([len(info.shape) for info in tensors], np.int64)
    if not np.array_equal(np.diff(boxes.starts), ranks[index]):
        raise Corrupt("a fragment has another number of dimensions than its tensor")
    rows = np.array([rows for info in tensors for _, rows in info.cells], np.int64)
    limits = Boxes(starts_of(ranks), rows, rows).take(index).sizes
    outside = (boxes.offsets < 0) | (boxes.sizes < 1) | (boxes.offsets > limits - boxes.sizes)
    if bool(outside.any()):
        raise Corrupt("a fragment is empty or not inside its cell")


def _parts(size: int, length: int) -> int:
    return -(-size // length)


def _with_form(path: TensorPath, form: _Form, alias: TensorPath | None) -> TensorInfo:
    dtype, shape, cells = form
    return TensorInfo(path, dtype, shape, cells, alias)


def _path_columns(paths: Sequence[TensorPath]) -> dict[str, Values]:
    stored = {key: _key_encoder.encode(key) for path in paths for key in path}
    number_of = {key: number for number, key in enumerate(sorted(stored, key=stored.__getitem__))}
    shared: list[int] = []
    numbers: list[int] = []
    previous: TensorPath = ()
    for path in paths:
        count = _shared_keys(previous, path)
        shared.append(count)
        numbers.extend(number_of[key] for key in path[count:])
        previous = path
    return {
        "keys": [stored[key] for key in number_of],
        "path_shared": np.array(shared, np.uint32),
        "path_length": np.array([len(path) for path in paths], np.uint32),
        "path_keys": np.array(numbers, np.uint32),
    }


def _shared_keys(left: TensorPath, right: TensorPath) -> int:
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count


def _parse_paths(table: Table) -> list[TensorPath]:
    shared, lengths = table.array("path_shared"), table.array("path_length")
    numbers, keys = table.array("path_keys"), _parse_keys(table.strings("keys"))
    if len(shared) != len(lengths) or bool((shared > lengths).any()):
        raise Corrupt("the paths of a tensor dictionary share more keys than they have")
    fresh = lengths.astype(np.int64) - shared
    if int(fresh.sum()) != len(numbers) or (len(numbers) and int(numbers.max()) >= len(keys)):
        raise Corrupt("the paths of a tensor dictionary have other keys than it holds")
    sizes = np.array([len(key) for key in table.strings("keys")], np.int64)[numbers].tolist()
    flat = [keys[number] for number in numbers.tolist()]
    paths: list[TensorPath] = []
    previous: TensorPath = ()
    ends = [0]
    start = 0
    for count, new in zip(shared.tolist(), fresh.tolist(), strict=True):
        if count > len(previous):
            raise Corrupt("a path of a tensor dictionary shares more keys than its predecessor has")
        # Measured before it is built: a path of many long keys would take gigabytes to write out.
        ends = [*ends[:count], *accumulate(sizes[start : start + new], initial=ends[count])]
        if ends[-1] > PATH_BYTES_MAX:
            raise Corrupt("a path of a tensor dictionary is too long")
        previous = (*previous[:count], *flat[start : start + new])
        paths.append(previous)
        start += new
    return paths


def _parse_keys(stored: Sequence[bytes]) -> list[str | int]:
    try:
        keys = [_key_decoder.decode(key) for key in stored]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Corrupt(f"a stored key of a tensor path is malformed: {error}") from error
    if any(_key_encoder.encode(key) != text for key, text in zip(keys, stored, strict=True)):
        raise Corrupt("a stored key of a tensor path is not in its shortest form")
    return keys


def _form_columns(forms: Sequence[_Form]) -> dict[str, Values]:
    return {
        "form_dtype": [dtype.encode() for dtype, _, _ in forms],
        "form_rank": np.array([len(shape) for _, shape, _ in forms], np.uint32),
        "form_shape": np.array([size for _, shape, _ in forms for size in shape], np.int64),
        "form_blocks": np.array([blocks for _, _, cells in forms for blocks, _ in cells], np.int64),
        "form_rows": np.array([rows for _, _, cells in forms for _, rows in cells], np.int64),
    }


def _parse_forms(table: Table) -> list[_Form]:
    dtypes, ranks = table.strings("form_dtype"), table.array("form_rank").tolist()
    sizes, blocks, rows = (
        table.array(name).tolist() for name in ("form_shape", "form_blocks", "form_rows")
    )
    if len(dtypes) != len(ranks) or not sum(ranks) == len(sizes) == len(blocks) == len(rows):
        raise Corrupt("the forms of a tensor dictionary do not add up")
    forms: list[_Form] = []
    start = 0
    for dtype, rank in zip(dtypes, ranks, strict=True):
        where = slice(start, start + rank)
        cells = tuple(zip(blocks[where], rows[where], strict=True))
        form = (dtype.decode("ascii", "replace"), tuple(sizes[where]), cells)
        problem = _form_problem(form)
        if problem is not None:
            raise Corrupt(f"a stored tensor {problem}")
        forms.append(form)
        start += rank
    return forms


def _form_problem(form: _Form) -> str | None:
    dtype, shape, cells = form
    size = itemsize(dtype)
    if len(shape) > RANK_MAX or len(cells) != len(shape):
        return f"has {len(shape)} dimensions and a grid of {len(cells)}; at most {RANK_MAX} are allowed"
    if (
        min(shape, default=0) < 0
        or math.prod(max(1, length) for length in shape) * size >= _BYTES_LIMIT
    ):
        return f"of shape {shape} is not smaller than 2^63 bytes"
    # An empty tensor has no cells, so its grid needs only to be storable.
    least = 0 if 0 in shape else 1
    for length, (blocks, rows) in zip(shape, cells, strict=True):
        most = length if least else _BYTES_LIMIT - 1
        if not (least <= blocks < _BYTES_LIMIT and least <= rows <= most):
            return f"of shape {shape} has the impossible grid {cells}"
    info = TensorInfo((), dtype, shape, cells)
    if least and (info.cell_count >= _BYTES_LIMIT or info.cell_bytes > CELL_BYTES_MAX):
        return f"of shape {shape} has the grid {cells} with too many or too large cells"
    return None


def _order_problem(tensors: Sequence[TensorInfo]) -> str | None:
    previous = b""
    for info in tensors:
        encoded = encode_path(info.path)
        if encoded <= previous:
            return f"tensor {display_path(info.path)} repeats or is out of order"
        if info.alias is not None and encode_path(info.alias) == encoded:
            return f"tensor {display_path(info.path)} is tied to itself"
        previous = encoded
    return None


def _size_problem(columns: Mapping[str, Values]) -> str | None:
    found = {
        "tensors": (len(columns["form"]), TENSORS_MAX),
        "distinct keys": (len(columns["keys"]), _KEYS_MAX),
        "bytes of keys": (sum(map(len, columns["keys"])), _KEYS_BYTES_MAX),
        "keys in paths": (int(np.sum(columns["path_length"], dtype=np.uint64)), _PATH_KEYS_MAX),
        "dimensions": (len(columns["form_shape"]), _FORM_DIMENSIONS_MAX),
    }
    for name, (count, limit) in found.items():
        if count > limit:
            return f"a tensor dictionary has {count} {name}; at most {limit} are allowed"
    return None
