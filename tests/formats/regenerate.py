"""Write golden files that do not exist yet.

Golden files are promises to stores in the field: one that exists is never written again. A new format
version gets new names beside the old ones. Run from the root of the repository:

    PYTHONPATH=tests python tests/formats/regenerate.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fwstore.format.leaf import encode_leaf
from fwstore.format.packtable import encode_pack_table
from fwstore.format.root import encode_root
from support.samples import large_leaf, sample_leaf, sample_pack, sample_packs, sample_root

FOLDER = Path(__file__).parent
GOLDEN: Mapping[str, Callable[[], bytes]] = {
    "leaf-1.bin": lambda: encode_leaf(sample_leaf()),
    "leaf-compressed-1.bin": lambda: encode_leaf(large_leaf()),
    "packs-1.bin": lambda: encode_pack_table(4096, sample_packs()),
    "pack-1.bin": lambda: sample_pack().stored,
    "root-1.bin": lambda: encode_root(sample_root()),
}


def main() -> None:
    """Write what is missing and say so."""
    for name, make in GOLDEN.items():
        path = FOLDER / name
        if path.exists():
            print(f"kept    {name}")
        else:
            path.write_bytes(make())
            print(f"written {name}")


if __name__ == "__main__":
    main()
