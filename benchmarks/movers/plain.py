"""The floor: bare requests of one library, as many at once as fill the link."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import obstore

from benchmarks.common.bed import Bed
from benchmarks.movers.base import Mover

_AT_ONCE = 16
_PIECE = 8 << 20


class Plain(Mover):
    """Ranged gets over the link, and one put of every object."""

    def copy(self, bed: Bed) -> None:
        """Fetch the pieces of every object at once; put it when it is whole."""
        far, target = bed.far.client(), bed.target.client()
        objects = [entry for page in obstore.list(far) for entry in page]
        with ThreadPoolExecutor(_AT_ONCE) as pool:

            def get(path: str, start: int, size: int) -> bytes:
                length = min(_PIECE, size - start)
                return bytes(obstore.get_range(far, path, start=start, length=length))

            pieces = {
                entry["path"]: [
                    pool.submit(get, entry["path"], start, entry["size"])
                    for start in range(0, entry["size"], _PIECE)
                ]
                for entry in objects
            }
            for path, parts in pieces.items():
                obstore.put(target, path, b"".join(part.result() for part in parts))
