"""What a sweep costs beyond its training: fold runs that only sleep, through Ray Tune into records.

    python -m tests.sweeps.overhead [FOLD_RUNS] [SECONDS]

`measure` gives the wall time of the whole, its warm part (from the first record to the last) against the pure time of
`workers` sleeping side by side, CPU seconds of the driver, and how its memory grows per fold run.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console

from guided.train import Epoch, FoldResult
from sweeps import engine, trainable
from sweeps.engine import run_study
from sweeps.records import Records
from sweeps.spec import load_sweep
from sweeps.study import make_study
from sweeps.worker import Work

SWEEP = """question: What does a sweep cost?
kind: ablation
base: {{loss.name: guide2d, embedding.length: 4}}
vary: {{guide.radius: {radii}}}
baseline: {{guide.radius: 1.0}}
"""
SETTINGS = "data.cells=400 data.size=16 train.epochs=1 train.batch_size=32 folds.count=5 resources.workers=2"


def sleeping(seconds: float, test_rows: np.ndarray, classes: int) -> Generator[Epoch, None, FoldResult]:
    """A fold run of one epoch that sleeps and leaves a record of the usual shape."""
    time.sleep(seconds)
    history = [{"epoch": 0.0, "val/f1_macro": 0.5, "embedding/length": 4.0}]
    yield history[0] | {name: 0.0 for name in ("time/train", "time/embed", "time/validate", "time/refresh")}
    cells = len(test_rows)
    return FoldResult(
        metrics={"test/f1_macro": 0.5, "best/val_f1_macro": 0.5, "best/length": 4.0, "time/total": seconds},
        history=history,
        classifier="knn",
        grid=[],
        test_rows=test_rows,
        predicted=np.zeros(cells, dtype=np.int64),
        scores=np.zeros((cells, classes), dtype=np.float32),
        embedding=np.zeros((cells, 4), dtype=np.float16),
        anchors=np.zeros((classes, 4), dtype=np.float32),
        guide=None,
    )


def measure(fold_runs: int, seconds: float, out: Path, workers: int = 2) -> dict[str, float]:
    """Run `fold_runs` (a multiple of 5) sleeping fold runs; the figures by name. Tracking is off."""

    class SleepingWork(Work):
        def _begin(self, config: dict[str, Any]) -> None:
            super()._begin(config)
            data = self._study_of.data
            self._generator = sleeping(seconds, self._fold.test, len(data.classes))

    class SleepingTrial(trainable.FoldRunTrial):
        def setup(self, config: dict[str, Any]) -> None:
            self._work = SleepingWork(alone=False)
            self._work.ask(config)

    path = out / "overhead.yaml"
    path.write_text(SWEEP.format(radii=[1.0 + index for index in range(fold_runs // 5)]))
    began = time.perf_counter()
    study = make_study(load_sweep(str(path), preset="laptop", settings=SETTINGS), out / "out", progress=False)
    planned = time.perf_counter() - began
    engine.FoldRunTrial = SleepingTrial  # type: ignore[misc]  # pickled by value into the workers
    driver = psutil.Process()
    records, over = Records(study.out), threading.Event()
    memory: list[tuple[int, int]] = []  # fold runs recorded, bytes of the driver

    def sample() -> None:
        while not over.wait(0.25):
            memory.append((len(list(records.folder.glob("[!.]*"))), driver.memory_info().rss))

    sampler = threading.Thread(target=sample)
    cpu, began = sum(driver.cpu_times()[:2]), time.perf_counter()
    sampler.start()
    try:
        with (out / "printed").open("w") as printed:
            outcome = run_study(study, None, Console(file=printed))
    finally:
        over.set()
        sampler.join()
    wall = time.perf_counter() - began
    ended = sorted(record.details["ended"] for record in records.read_all(list(outcome.records)).values())
    # From the first record of each worker on, both are warm.
    warm = ended[-1] - ended[workers - 1]
    # The slope of the last three quarters: what Ray itself loads at first is no growth.
    done, size = np.array([at for at in memory if len(ended) / 4 <= at[0] < len(ended)], dtype=float).T
    return {
        "fold_runs": len(ended),
        "plan_s": planned,
        "wall_s": wall,
        "warm_s": warm,
        "pure_s": (len(ended) - workers) * seconds / workers,
        "ratio": warm / ((len(ended) - workers) * seconds / workers),
        "driver_cpu_ms_per_fold_run": 1000 * (sum(driver.cpu_times()[:2]) - cpu) / len(ended),
        "driver_memory_kb_per_fold_run": float(np.polyfit(done, size, 1)[0]) / 1000,
    }


if __name__ == "__main__":
    count, pause = int(sys.argv[1]) if len(sys.argv) > 1 else 200, float(sys.argv[2]) if len(sys.argv) > 2 else 0.2
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(count, pause, Path(folder)), indent=1))
