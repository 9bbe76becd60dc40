"""`make bench`: each part of the work against its reference, in one process, on the same data, with the same threads.

python -m tests.bench [--only PART …] [--quick] [--gpu] [--scaling] [--data MANIFEST] [--out bench.json]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
# umap-learn's numba would start a thread a core, and torch with it: its waiting threads would count as our time.
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from tests.bench import parts, scaling
from tests.bench.timing import Part

ALL = {**parts.PARTS, **scaling.PARTS}
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "umap-learn", "numba", "ray", "mlflow")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 2 where a GPU is asked for and none is there."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[*ALL, "gpu"], help="these parts instead of all")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: times mean nothing")
    parser.add_argument("--gpu", action="store_true", help="the parts that need a GPU as well")
    parser.add_argument("--scaling", action="store_true", help="how cost grows with fold runs and workers as well")
    parser.add_argument("--data", default="synthetic", help="a manifest instead of the synthetic marrow")
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    given = parser.parse_args(arguments)
    console = Console()
    if given.gpu and not torch.cuda.is_available():
        console.print("GPU=1 was asked for, but torch sees no CUDA device; without it the CPU parts run")
        return 2
    named = given.only or [
        *parts.PARTS,
        *(scaling.PARTS if given.scaling else []),
        *(["gpu"] if given.gpu else []),
    ]
    scale = parts.Scale.quick() if given.quick else parts.Scale.full()
    torch.set_num_threads(1)
    # Of the reference, fold after fold: its MLP stops at 200 passes, and rare classes are what we have.
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    warnings.filterwarnings("ignore", message="The least populated class")
    found: list[Part] = []
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        bench = parts.Bench(scale, Path(folder), given.data)
        for name in named:
            for part in {**ALL, "gpu": parts.gpu}[name](bench):
                found.append(part)
                console.print(f"{part.part}{'' if part.d is None else f', d = {part.d}'}: {part.ratio:.3g} x")
    console.print(table(found))
    for part in found:
        if part.note:
            console.print(f"{part.part}{'' if part.d is None else f', d = {part.d}'}: {part.note}", highlight=False)
    written = {
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "gpu": _gpu(), "threads": 1},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "quick": given.quick,
        "parts": [dataclasses.asdict(part) for part in found],
    }
    given.out.write_text(json.dumps(written, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return 0


def table(found: list[Part]) -> Table:
    """Medians and ratios of the parts; how many repeats, and by which clock, is in the file."""
    shown = Table("part", "n", "d", "ref. s", "ours s", "ratio", "low-high", box=box.SIMPLE, pad_edge=False)
    for column in shown.columns[1:]:
        column.no_wrap = True  # the name of a part may break, a number must not
    for part in found:
        shown.add_row(
            part.part,
            str(part.n),
            "" if part.d is None else str(part.d),
            f"{part.reference_s:.3g}",
            f"{part.ours_s:.3g}",
            f"{part.ratio:.3g}",
            f"{part.ratio_low:.3g}-{part.ratio_high:.3g}",
        )
    return shown


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


if __name__ == "__main__":
    sys.exit(main())
