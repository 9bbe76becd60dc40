"""The benchmark in its quick mode: what it writes, not how long it takes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tests.bench.__main__ import main
from tests.bench.scaling import growth

EACH = {"part", "n", "d", "reference_s", "ours_s", "ratio", "ratio_low", "ratio_high", "repeats", "clock", "note"}


def written(tmp_path: Path, *arguments: str) -> dict:  # type: ignore[type-arg]
    out = tmp_path / "bench.json"
    assert main(["--quick", "--out", str(out), *arguments]) == 0
    return json.loads(out.read_text())


def check(found: dict) -> None:  # type: ignore[type-arg]
    assert found["machine"]["cores"] >= 1 and {"torch", "umap-learn", "scikit-learn"} <= found["versions"].keys()
    for part in found["parts"]:
        assert part.keys() == EACH and part["repeats"] >= 1 and part["n"] >= 1
        assert 0 < part["ratio_low"] <= part["ratio"] <= part["ratio_high"]
        assert part["reference_s"] > 0 and part["ours_s"] > 0


def test_the_file_has_the_machine_and_a_row_for_each_part(tmp_path: Path) -> None:
    found = written(tmp_path, "--only", "data", "grid")
    check(found)
    names = [part["part"] for part in found["parts"]]
    assert names == ["data path", "final grid, knn", "final grid, svm", "final grid, mlp"]
    note = found["parts"][1]["note"]
    assert note.startswith("winner the same") and float(note.split("macro-F1 ")[1].split(",")[0]) < 1e-12, (
        "kNN scores equal scikit-learn's"
    )


@pytest.mark.slow
def test_every_part_runs(tmp_path: Path) -> None:
    found = written(tmp_path)
    check(found)
    names = {part["part"].split(",")[0] for part in found["parts"]}
    assert names == {
        "data path", "training step", "embedding pass", "guide refresh", "validation", "final grid", "checkpoint",
        "start of a fold run", "whole fold run", "around the passes", "whole sweep", "tracking of a fold run",
    }  # fmt: skip


@pytest.mark.slow
def test_the_rows_of_growth(tmp_path: Path) -> None:
    found = written(tmp_path, "--only", "planning", "records", "reading", "bf16", "five")
    check(found)
    assert found["parts"][-1]["part"] == f"five folds, {len(os.sched_getaffinity(0))} x 1 threads"
    assert [(part["part"], part["n"]) for part in found["parts"][:7]] == [
        ("planning", 10), ("planning", 20), ("writing records", 10), ("reading records", 10), ("reading records", 20),
        ("reading a study", 10), ("reading a study", 20),
    ]  # fmt: skip


def test_growth_stands_beside_linear_growth() -> None:
    """1 s for 10, 20 s for 100 and 100 s for 1000: twice as much as linear, then half."""
    first, second, third = growth("planning", [(10, 1.0), (100, 20.0), (1000, 100.0)], "told")
    assert (first.ratio, second.ratio, third.ratio) == (1.0, 0.5, 2.0) and second.reference_s == 10.0
    assert second.note == "n: fold runs; told; 200.00 ms each"
    assert third.note == "n: fold runs; told; 100.00 ms each; time grows as n^1.00"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_gpu_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--gpu", "--quick", "--out", str(tmp_path / "bench.json")]) == 2
    assert "no CUDA device" in capsys.readouterr().out and not (tmp_path / "bench.json").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the GPU parts have never run here")
def test_the_gpu_parts_run(tmp_path: Path) -> None:
    check(written(tmp_path, "--only", "gpu"))
