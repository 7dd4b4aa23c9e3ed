"""``make bench-quick``: blocked, durable and load times beside the peers, in one interleaved run.

Every repeat of every peer is a fresh process with a fresh state; the order is reversed from round to round
(ABBA), medians are compared, and the spread of the run is printed so that a difference can be told from noise.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common.machine import describe_machine

PEERS = ("fwstore async", "dcp async", "fwstore sync", "dcp sync", "safetensors")
FIGURES = ("first_blocked_s", "blocked_s", "durable_s", "load_s")
COMPARED = {"fwstore async": "dcp async", "fwstore sync": "dcp sync"}

Result = dict[str, Any]


def run_trial(peer: str, size: int, place: Path) -> Result:
    """Run one measurement in a fresh process and a fresh folder."""
    folder = place / "trial"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.common.trial", peer, str(folder), str(size)],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if done.returncode:
        raise SystemExit(f"{peer} failed:\n{done.stderr[-3000:]}")
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(size: int, repeats: int, place: Path, console: Console) -> list[Result]:
    """Return the results of all repeats of all peers, in the order in which they ran."""
    results = []
    for repeat in range(repeats):
        order = PEERS if repeat % 2 == 0 else PEERS[::-1]
        for peer in order:
            result = run_trial(peer, size, place)
            results.append({**result, "repeat": repeat})
            shown = ", ".join(f"{name} {result[name]:.2f}" for name in FIGURES)
            console.print(f"  {repeat + 1}/{repeats} {peer}: {shown}", highlight=False)
    return results


def median(results: list[Result], peer: str, figure: str) -> float:
    """Return the median of a figure of a peer."""
    return statistics.median(float(r[figure]) for r in results if r["peer"] == peer)


def spread(results: list[Result], peer: str, figure: str) -> float:
    """Return half the range of a figure of a peer, relative to its median."""
    values = [float(r[figure]) for r in results if r["peer"] == peer]
    return (max(values) - min(values)) / 2 / statistics.median(values)


def show(results: list[Result], console: Console) -> None:
    """Print the table of medians and the comparison with DCP."""
    size = results[0]["state_bytes"]
    table = Table(
        title=f"{size / 1e9:.2f} GB of bf16 and fp32 tensors; seconds, median ± half range"
    )
    table.add_column("peer")
    for figure in FIGURES:
        table.add_column(figure.removesuffix("_s").replace("_", " "), justify="right")
    table.add_column("peak RSS", justify="right")
    for peer in PEERS:
        cells = [
            f"{median(results, peer, f):.2f} ± {100 * spread(results, peer, f):.0f}%"
            for f in FIGURES
        ]
        rss = median(results, peer, "peak_rss_bytes") / size
        table.add_row(peer, *cells, f"{rss:.2f} x state")
    console.print(table)
    for ours, theirs in COMPARED.items():
        for figure in FIGURES[1:]:
            ratio = median(results, ours, figure) / median(results, theirs, figure)
            noise = spread(results, ours, figure) + spread(results, theirs, figure)
            verdict = (
                "faster" if ratio < 1 else ("within noise" if ratio <= 1 + noise else "SLOWER")
            )
            console.print(
                f"{ours} / {theirs}, {figure.removesuffix('_s')}: {ratio:.2f} (noise {noise:.2f}) {verdict}",
                highlight=False,
            )


def main() -> None:
    """Measure, print and store the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--place", type=Path, default=None, help="a folder on the disk to measure")
    parser.add_argument("--output", type=Path, default=Path("build/bench-quick.json"))
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="fwstore-bench-", dir=arguments.place) as place:
        machine = describe_machine(Path(place))
        console.print(", ".join(f"{name}: {value}" for name, value in machine.items()))
        size = int(arguments.gigabytes * 1e9)
        results = measure(size, arguments.repeats, Path(place), console)
    show(results, console)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()
