"""Every sweep that comes with the package, trained for real on a few cells, from its name to its table."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.spec import load_sweep, shipped_sweeps

TINY = (
    "data.cells=200 data.size=16 train.epochs=4 train.batch_size=32 folds.count=2 backbone.name=densenet_small "
    "classifier.families=[knn] validation.classifier=centroid"
)

SEARCH = " search.variants=4"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shipped")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(shipped_sweeps()))
def test_every_shipped_sweep_ends_in_a_table(out: Path, name: str) -> None:
    sweep = load_sweep(name, preset="laptop")
    module = [sys.executable, "-m"]
    run = [*module, "sweeps", "run", name, "--preset", "laptop", "--out", str(out), "--set", TINY]
    run[-1] += SEARCH if sweep.search else ""
    told = subprocess.run(run, capture_output=True, text=True, timeout=550, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    table = [*module, "analysis", "table", name, "--out", str(out), "--format", "csv"]
    told = subprocess.run(table, capture_output=True, text=True, timeout=100, check=False)
    assert told.returncode == 0, told.stderr
    rows = list(csv.DictReader(io.StringIO(told.stdout)))
    if sweep.search:  # its judgement: the baseline, and the winner unless that is the baseline
        assert rows[0]["verdict"] == "baseline" and len(rows) <= 2
        assert all(row["variant"].startswith("winner: ") for row in rows[1:])
    else:
        assert [row["variant"] for row in rows] == [variant.label for variant in sweep.variants]
    assert all(0 <= float(row["mean"]) <= 1 and row["folds"] == ("3" if sweep.search else "2") for row in rows)
    assert sum(row["difference"] == "" for row in rows) == 1  # the baseline alone
