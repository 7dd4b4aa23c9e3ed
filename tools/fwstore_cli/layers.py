"""The command `inspect`: from run to snapshot to tensor to pack to chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer

from fwstore import Checkpoint, InvalidInput, LazyTensor, NotFound, Run, format_size
from fwstore_cli.session import (
    LimitOption,
    Reference,
    Session,
    command,
    find_checkpoint,
    find_run,
    make_facts,
    make_table,
    parse_reference,
)
from fwstore_cli.words import checkpoint_row, show_metrics, show_time

T = TypeVar("T")


def add_inspect_command(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(app, "inspect")(inspect)


def inspect(
    session: Session,
    reference: Reference,
    tensor: Annotated[
        str | None, typer.Option("--tensor", "-t", help="Show the chunks of this tensor.")
    ] = None,
    pack: Annotated[
        int | None, typer.Option("--pack", "-p", help="Show the chunks in the pack of this number.")
    ] = None,
    chunk: Annotated[
        int | None, typer.Option("--chunk", "-c", help="With --tensor: all about this one chunk.")
    ] = None,
    limit: LimitOption = 100,
) -> None:
    """Look inside, level by level: RUN, RUN@STEP, --pack N, --tensor NAME, --chunk N."""
    if chunk is not None and tensor is None:
        raise InvalidInput("--chunk needs --tensor: chunks are numbered within their tensor")
    if tensor is not None and pack is not None:
        raise InvalidInput("give --tensor or --pack, not both")
    with session.repository() as repository:
        if tensor is None and pack is None and parse_reference(reference)[1] is None:
            _inspect_run(session, find_run(repository, reference))
            return
        found = find_checkpoint(repository, reference)
        if tensor is not None and chunk is not None:
            _inspect_chunk(session, found, tensor, chunk)
        elif tensor is not None:
            _inspect_tensor(session, found, tensor, limit)
        elif pack is not None:
            _inspect_pack(session, found, pack, limit)
        else:
            _inspect_snapshot(session, found, limit)


def _inspect_run(session: Session, run: Run) -> None:
    checkpoints, pins = run.checkpoints(), run.pins()
    table = make_table("step", "id", "parent", "saved", "metrics", right=("step",))
    for found in checkpoints:
        table.add_row(
            str(found.step),
            found.id,
            found.parent or "none",
            show_time(found.wall_time),
            show_metrics(found),
        )
    kept = make_table("pin", "step", "reason", right=("step",), title="pins" if pins else None)
    for pin in pins:
        kept.add_row(pin.id, str(pin.step), pin.reason)
    rows = [checkpoint_row(found) for found in checkpoints]
    value = {"run": run.name, "checkpoints": rows, "pins": pins}
    session.emit(value, table, *([kept] if pins else []))


def _inspect_snapshot(session: Session, found: Checkpoint, limit: int) -> None:
    tensors = list(found.tensors.values())
    packs = found.packs()
    table = make_table("tensor", "dtype", "shape", "size", "same as", right=("size",))
    for tensor in first(tensors, limit):
        table.add_row(
            tensor.name,
            tensor.dtype,
            show_shape(tensor.shape),
            format_size(tensor.nbytes),
            "/".join(map(str, tensor.alias)) if tensor.alias else "",
        )
    kept = make_table("pack", "size", "chunks", "key", right=("pack", "size", "chunks"))
    for number, pack in enumerate(first(list(packs), limit)):
        kept.add_row(str(number), format_size(pack.size_bytes), str(pack.chunks), pack.key)
    value = {
        **checkpoint_row(found),
        "tensors": [tensor_row(tensor) for tensor in first(tensors, limit)],
        "packs": first(list(packs), limit),
    }
    session.emit(value, table, kept)
    cut = max(len(tensors), len(packs)) - limit
    if limit and cut > 0:
        session.say(f"{cut} rows are not shown; see --limit")


def tensor_row(tensor: LazyTensor) -> dict[str, Any]:
    """Return what a listing says of a tensor."""
    return {
        "name": tensor.name,
        "path": list(tensor.path),
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "size_bytes": tensor.nbytes,
        "same_as": list(tensor.alias) if tensor.alias else None,
    }


@dataclass(frozen=True)
class ChunkRow:
    """One chunk for people and for JSON."""

    tensor: str
    chunk: int
    cell: int
    offsets: list[int]
    sizes: list[int]
    pack: int
    place: int
    position: int
    codec: str
    raw_bytes: int
    stored_bytes: int
    id: str


def chunk_rows(found: Checkpoint, tensor: LazyTensor) -> list[ChunkRow]:
    """Return the chunks of a tensor in the order of its cells."""
    table = found.chunks(tensor.path)
    return [
        ChunkRow(
            tensor=tensor.name,
            chunk=number,
            cell=int(table.cells[number]),
            offsets=table.offsets[number].tolist(),
            sizes=table.sizes[number].tolist(),
            pack=int(table.packs[number]),
            place=int(table.indexes[number]),
            position=int(table.positions[number]),
            codec=table.codec_names[int(table.codecs[number])],
            raw_bytes=int(table.raw_lengths[number]),
            stored_bytes=int(table.stored_lengths[number]),
            id=table.ids[number].tobytes().hex(),
        )
        for number in range(len(table.cells))
    ]


def find_tensor(found: Checkpoint, name: str) -> LazyTensor:
    """Return the tensor of a displayed name.

    Raises:
        NotFound: The checkpoint has no such tensor.
    """
    for tensor in found.tensors.values():
        if tensor.name == name:
            return tensor
    raise NotFound(f"step {found.step} has no tensor {name!r}; `fwstore inspect` lists them")


def _inspect_tensor(session: Session, found: Checkpoint, name: str, limit: int) -> None:
    tensor = find_tensor(found, name)
    rows = chunk_rows(found, tensor)
    facts = {
        "tensor": tensor.name,
        "dtype": tensor.dtype,
        "shape": show_shape(tensor.shape),
        "size": format_size(tensor.nbytes),
        "chunks": len(rows),
    }
    value = {**tensor_row(tensor), "chunks": first(rows, limit)}
    session.emit(value, make_facts(facts), _chunk_table(first(rows, limit)))


def _chunk_table(rows: list[ChunkRow]) -> Any:
    numbers = ("chunk", "cell", "pack", "place", "raw", "stored")
    table = make_table(
        "chunk", "cell", "box", "pack", "place", "codec", "raw", "stored", "id", right=numbers
    )
    for row in rows:
        table.add_row(
            str(row.chunk),
            str(row.cell),
            show_box(row),
            str(row.pack),
            str(row.place),
            row.codec,
            format_size(row.raw_bytes),
            format_size(row.stored_bytes),
            row.id[:16],
        )
    return table


def _inspect_pack(session: Session, found: Checkpoint, number: int, limit: int) -> None:
    packs = found.packs()
    if not 0 <= number < len(packs):
        raise NotFound(f"step {found.step} uses packs 0 to {len(packs) - 1}, not {number}")
    rows = [
        row
        for tensor in found.tensors.values()
        if tensor.alias is None
        for row in chunk_rows(found, tensor)
        if row.pack == number
    ]
    rows.sort(key=lambda row: row.place)
    table = make_table("place", "tensor", "box", "raw", "stored", "id", right=("place", "raw"))
    for row in first(rows, limit):
        sizes = format_size(row.raw_bytes), format_size(row.stored_bytes)
        table.add_row(str(row.place), row.tensor, show_box(row), *sizes, row.id[:16])
    pack = packs[number]
    facts = {"pack": pack.key, "size": format_size(pack.size_bytes), "chunks": pack.chunks}
    facts["used by this step"] = len(rows)
    session.emit({"pack": pack, "chunks": first(rows, limit)}, make_facts(facts), table)


def _inspect_chunk(session: Session, found: Checkpoint, name: str, number: int) -> None:
    tensor = find_tensor(found, name)
    rows = chunk_rows(found, tensor)
    if not 0 <= number < len(rows):
        raise NotFound(f"tensor {name!r} has chunks 0 to {len(rows) - 1}, not {number}")
    row, pack = rows[number], found.packs()[rows[number].pack]
    facts = {
        "tensor": row.tensor,
        "box": show_box(row),
        "cell": row.cell,
        "id": row.id,
        "codec": row.codec,
        "raw": f"{row.raw_bytes} bytes",
        "stored": f"{row.stored_bytes} bytes at {row.position}",
        "pack": f"{row.pack}: {pack.key}",
        "place": f"{row.place} of {pack.chunks}",
    }
    session.emit({"chunk": row, "pack": pack}, make_facts(facts))


def show_box(row: ChunkRow) -> str:
    """Return a box as slices."""
    parts = (f"{start}:{start + size}" for start, size in zip(row.offsets, row.sizes, strict=True))
    return f"[{', '.join(parts)}]"


def show_shape(shape: tuple[int, ...]) -> str:
    """Return a shape for people."""
    return " x ".join(map(str, shape)) or "scalar"


def first(rows: list[T], limit: int) -> list[T]:
    """Return the first rows; all of them when the limit is 0."""
    return rows[:limit] if limit else rows
