"""A newcomer's afternoon, by commands only: images per class, a guide, a sweep, a report, a model, new cells.

What a person brings is images and a table of lineages; everything else is written by the commands.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from guided.guide import read_guide
from guided.synthetic import render_marrow
from sweeps.spec import load_sweep

REPOSITORY = Path(__file__).parent.parent
LINEAGES = """class,lineage,stage
blast,undifferentiated,0
promyelocyte,neutrophilic,1
myelocyte,neutrophilic,2
segmented_neutrophil,neutrophilic,5
orthochromatic_erythroblast,erythroid,4
lymphocyte,lymphoid,4
"""
SMALL = "data.size=24 data.field=32 train.epochs=6 folds.count=2 classifier.families=[svm] resources.cpus=1"


def render(folder: Path, cells: int, seed: int) -> int:
    """Images of six classes as folder/CLASS/cell NUMBER.png; returns how many."""
    marrow = render_marrow(cells, 32, seed=seed)
    wanted = {line.split(",")[0] for line in LINEAGES.splitlines()[1:]}
    names = np.array(marrow.classes)[marrow.labels]
    rows = [row for row, name in enumerate(names) if name in wanted]
    for row in rows:
        path = folder / names[row] / f"cell {row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(marrow.images[row]).save(path)
    return len(rows)


@pytest.mark.slow
def test_from_a_folder_of_images_to_predictions(tmp_path: Path) -> None:
    def command(*words: str, code: int = 0) -> str:
        environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
        environment.pop("MLFLOW_TRACKING_URI", None)
        told = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        shown = told.stdout + told.stderr
        assert told.returncode == code and "Traceback" not in shown, f"{' '.join(words)}\n{shown}"
        return shown

    render(tmp_path / "my cells", 900, seed=1)
    new = render(tmp_path / "new cells", 150, seed=2)
    (tmp_path / "lineages.csv").write_text(LINEAGES)

    told = command("guided", "data", "check", "my cells")
    assert "blast" in told and "segmented_neutrophil" in told
    command("guided", "guide", "from-tree", "lineages.csv", "--out", "guides/mine.yaml")
    assert set(read_guide(tmp_path / "guides" / "mine.yaml").classes) == {
        line.split(",")[0] for line in LINEAGES.splitlines()[1:]
    }
    command("guided", "guide", "check", "mine", "--data", "my cells")
    command("sweeps", "new", "mine")
    sweep = load_sweep(str(tmp_path / "sweeps" / "mine.yaml"), preset="laptop")
    assert [variant.label for variant in sweep.variants] == ["name=guide2d", "name=distance"]
    setting = ["--preset", "laptop", "--data", "my cells", "--set", f"{SMALL} guide.file=mine"]
    assert "2 variants x 2 folds" in command("sweeps", "plan", "mine", *setting)
    command("sweeps", "run", "mine", *setting)
    assert "name=distance" in command("analysis", "report", "mine")
    assert (tmp_path / "runs" / "reports" / "mine" / "report.html").exists()
    assert "median of the best epochs of 2 fold runs" in command(
        "sweeps", "refit", "mine", "name=guide2d", "--export", "model.npz"
    )
    command("guided", "predict", "--model", "model.npz", "new cells", "--out", "told.csv", "--figure", "where.png")
    table = pd.read_csv(tmp_path / "told.csv")
    true = table["id"].str.split("/").str[1]
    assert len(table) == new and table["confidence"].between(0, 1).all()
    assert (table["class"] == true).mean() > 0.5, "chance is 0.3: the most frequent class"
    assert table.loc[table["lineage"] == "neutrophilic", "maturity"].notna().all()
    assert (tmp_path / "where.png").stat().st_size > 10_000
