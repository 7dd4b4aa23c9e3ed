"""Copy in a process that can be killed: ``python -m benchmarks.movers SUBJECT FOLDER BED``."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.common.bed import bed_from_json
from benchmarks.movers import MOVERS

subject, folder, bed = sys.argv[1:]
MOVERS[subject].make(Path(folder)).copy(bed_from_json(bed))
