"""Everybody who can be measured, by the name that tables show."""

from __future__ import annotations

from typing import Any

from benchmarks.movers import MOVERS
from benchmarks.peers import PEERS
from benchmarks.peers.base import Adapter

ADAPTERS: dict[str, Adapter[Any]] = {**PEERS, **MOVERS}
