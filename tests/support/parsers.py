"""Every parser of stored or foreign bytes by name: what hostile input is fed to, by tests and by the fuzzer.

Invariant: a target takes any bytes; what it raises may be nothing but an `FwstoreError`. Where a checksum guards a
parser, the target puts the right one on, for whoever is hostile can do so too.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import numpy as np

from fwstore import Shard
from fwstore.content.contribution import Contribution, encode_contribution, parse_contribution
from fwstore.format.blocks import (
    BLOCK_BYTES,
    parse_chunk_header,
    parse_header,
    parse_trailer,
)
from fwstore.format.canonical import with_check
from fwstore.format.condemned import parse_condemned
from fwstore.format.envelope import FEATURES_KNOWN, magic
from fwstore.format.footer import parse_chunks, parse_footer
from fwstore.format.frames import compress_frame, decompress_frame
from fwstore.format.keys import parse_catalog_key, parse_pack_key, parse_snapshot_id
from fwstore.format.leaf import parse_leaf
from fwstore.format.lease import parse_lease_name, parse_work_claim
from fwstore.format.lineage import parse_claim, parse_lineage
from fwstore.format.pack import footer_of_suffix
from fwstore.format.packtable import parse_pack_table
from fwstore.format.paths import decode_path
from fwstore.format.record import parse_record
from fwstore.format.root import parse_root
from fwstore.format.site import parse_site
from fwstore.format.state import decode_state
from fwstore.format.summary import parse_hint, parse_summary
from fwstore.format.vote import parse_receipt, parse_vote
from fwstore_migrate.pickled import read_pickle
from fwstore_migrate.states import open_foreign
from fwstore_migrate.torch_values import ALLOWED
from support.damage import unchecked
from support.foreign import read_shard, safetensors_bytes, torch_archive
from support.samples import sample_leaf, sample_packs, sample_root

FORMATS = Path(__file__).parent.parent / "formats"
_SMALL = 1 << 20
_SAFETENSORS = safetensors_bytes(
    {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(16)
)
_SEALED = struct.Struct("<8sIQ32s")


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        parse: It; needs a folder of its own where it reads files.
        seeds: Bytes that it accepts, or nearly.
    """

    parse: Callable[[bytes, Path], object]
    seeds: tuple[bytes, ...]


def stored(parse: Callable[[bytes], object], *seeds: bytes) -> Target:
    return Target(lambda payload, _: parse(payload), seeds)


def checked(parse: Callable[[bytes, str], object], *names: str) -> Target:
    """A target whose objects carry a checksum as their last member."""
    seeds = tuple(unchecked(golden(name)) for name in names)
    return Target(lambda payload, _: parse(with_check(payload or b"{"), "it"), seeds)


def sealed(parse: Callable[[bytes], object], kind: str, name: str) -> Target:
    """A target whose objects are compressed JSON behind its digest."""
    head = _SEALED.size
    _, _, length, _ = _SEALED.unpack_from(golden(name))

    def put_together(payload: bytes, _: Path) -> object:
        header = _SEALED.pack(
            magic(kind), FEATURES_KNOWN, len(payload), blake3.blake3(payload).digest()
        )
        return parse(header + compress_frame(payload, 1))

    return Target(put_together, (decompress_frame(golden(name)[head:], length),))


def block(parse: Callable[[bytes], object], start: int) -> Target:
    """A target whose blocks end with a CRC."""

    def put_together(payload: bytes, _: Path) -> object:
        rest = payload[: BLOCK_BYTES - 4].ljust(BLOCK_BYTES - 4, b"\0")
        return parse(rest + struct.pack("<I", zlib.crc32(rest)))

    pack = golden("pack-1.bin")
    return Target(put_together, (pack[start:][:BLOCK_BYTES],))


def text(parse: Callable[[str], object], *seeds: str) -> Target:
    def decode(payload: bytes, _: Path) -> object:
        return parse(payload.decode("utf-8", "surrogateescape"))

    return Target(decode, tuple(seed.encode() for seed in seeds))


def frame(payload: bytes, _: Path) -> object:
    """The first four bytes are the length that the referrer declares."""
    return decompress_frame(payload[4:], int.from_bytes(payload[:4], "little"))


def foreign(name: str, *seeds: bytes) -> Target:
    """A target that is a file of another system; small tensors are read as well."""

    def read(payload: bytes, folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(payload)
        # What an index or a description may name.
        (path.parent / "__0_0.distcp").write_bytes(golden("foreign/dcp-shard.bin"))
        (path.parent / "beside.safetensors").write_bytes(_SAFETENSORS)
        try:
            found = open_foreign(path.parent if name.endswith("metadata") else path)
            for shard in shards(found.state):
                if np.prod(shard.shape, dtype=object) * 16 <= _SMALL:
                    read_shard(shard)
        finally:
            path.unlink()

    return Target(read, seeds)


def shards(value: Any) -> Iterator[Shard]:
    if isinstance(value, Shard):
        yield value
    elif isinstance(value, dict | list | tuple):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from shards(entry)


def golden(name: str) -> bytes:
    return (FORMATS / name).read_bytes()


def contribution() -> bytes:
    """Return what a rank sends to the leader."""
    leaf, root = sample_leaf(), sample_root()
    sent = Contribution(
        rank=5,
        tensors=leaf.tensors,
        lineages=root.lineages,
        packs=sample_packs(),
        runs=leaf.runs,
        fragments=leaf.fragments,
        bytes_written=1000,
        bytes_reused=20,
    )
    return encode_contribution(sent)


def torch_pickle(payload: bytes, folder: Path) -> object:
    """The pickle of a torch.save file, in a sound archive."""
    return TARGETS["torch-file"].parse(torch_archive(payload, {"0": bytes(24)}), folder)


def _targets() -> dict[str, Target]:
    pack = golden("pack-1.bin")
    trailer, footer = footer_of_suffix(pack, len(pack))
    assert footer is not None
    records = sorted(path.name for path in (FORMATS / "log").glob("record-*.json"))
    archive = golden("foreign/torch.pt")
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        tensors = opened.read("torch/data.pkl")
    index = b'{"weight_map":{"a":"beside.safetensors"}}'
    return {
        "leaf": stored(parse_leaf, golden("leaf-1.bin"), golden("leaf-compressed-1.bin")),
        "root": stored(parse_root, golden("root-1.bin")),
        "pack-table": stored(parse_pack_table, golden("packs-1.bin")),
        "footer": stored(lambda it: parse_footer(it, trailer.footer_offset), footer),
        "footer-chunks": stored(lambda it: parse_chunks(it, trailer.footer_offset), footer),
        "pack-suffix": stored(lambda it: footer_of_suffix(it, len(it)), pack),
        "pack-header": block(parse_header, 0),
        "chunk-header": block(parse_chunk_header, BLOCK_BYTES),
        "pack-trailer": block(lambda it: parse_trailer(it, len(pack)), len(pack) - BLOCK_BYTES),
        "record": checked(parse_record, *(f"log/{name}" for name in records)),
        "vote": checked(parse_vote, "log/vote-1.json"),
        "receipt": checked(parse_receipt, "log/receipt-1.json"),
        "site": checked(parse_site, "log/site-1.json"),
        "lineage": checked(parse_lineage, "log/lineage-1.json"),
        "name": checked(parse_claim, "log/name-1.json"),
        "claim": checked(parse_work_claim, "log/claim-1.json"),
        "condemned": sealed(parse_condemned, "cond", "log/condemned-1.bin"),
        "summary": sealed(parse_summary, "summ", "log/summary-1.bin"),
        "hint": sealed(parse_hint, "hint", "log/hint-1.bin"),
        "state": stored(decode_state, golden("state-1.bin")),
        "path": stored(decode_path, b"\x92\xa1a\x01"),
        "contribution": stored(lambda it: parse_contribution(it, {}), contribution()),
        "frame": Target(frame, (struct.pack("<I", 99) + compress_frame(bytes(99), 1),)),
        "pack-key": text(parse_pack_key, "packs/a/b@1/00/t1-s2-r000003-4-00112233445566ff"),
        "snapshot-id": text(parse_snapshot_id, "000000001200-t3-s12-00112233445566ff"),
        "lease-name": text(
            parse_lease_name, "00112233aabbccdd-000000000007-125000000-62500000-all-3000-urgent"
        ),
        "catalog-key": text(parse_catalog_key, "catalog/a/b@1"),
        "pickle": stored(lambda it: read_pickle(it, ALLOWED, "it"), tensors),
        "safetensors": foreign("x.safetensors", _SAFETENSORS),
        "safetensors-index": foreign("x.safetensors.index.json", index),
        "torch-file": foreign("x.pt", archive),
        "torch-pickle": Target(torch_pickle, (tensors,)),
        "dcp": foreign("dcp/.metadata", golden("foreign/dcp-metadata.bin")),
    }


TARGETS = _targets()
