"""What a fold run takes of its machine, epoch by epoch, where `resources.system_metrics` asks for it.

MLflow's own system metrics are of a whole machine and are logged by the process that trains; here that process has no
MLflow, and several fold runs share a machine. So the process of the fold run is measured, into its record.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import torch

from sweeps import schema

USAGE = "usage.jsonl"  # in the checkpoint folder


class Usage:
    """Measures this process from one epoch to the next. What it notes lies beside the checkpoint, so that a fold run
    that goes on elsewhere keeps it."""

    def __init__(self, folder: Path, device: str) -> None:
        self._path, self._gpu = folder / USAGE, device == "cuda"
        self._process = psutil.Process()
        self._restart()

    def _restart(self) -> None:
        self._since, self._cpu = time.monotonic(), self._cpu_seconds()
        if self._gpu:
            torch.cuda.reset_peak_memory_stats()

    def _cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def note(self, epoch: int) -> None:
        """An epoch has ended."""
        seconds = time.monotonic() - self._since
        used = {
            schema.CPU_USE: 100 * (self._cpu_seconds() - self._cpu) / seconds,
            schema.MEMORY_USE: self._process.memory_info().rss / 1e6,
        }
        if self._gpu:
            used[schema.GPU_MEMORY_USE] = torch.cuda.max_memory_allocated() / 1e6
        with self._path.open("a") as file:
            file.write(json.dumps({"epoch": epoch, **used}) + "\n")
        self._restart()


def with_usage(history: list[dict[str, float]], folder: Path) -> list[dict[str, float]]:
    """The epochs of a fold run with what was noted of them; of an epoch that was trained twice, the second time. A line
    that a kill has cut off is left out."""
    path = folder / USAGE
    used: dict[int, dict[str, float]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            told = json.loads(line)
        except ValueError:
            continue
        used[told.pop("epoch")] = told
    return [{**epoch, **used.get(int(epoch["epoch"]), {})} for epoch in history]
