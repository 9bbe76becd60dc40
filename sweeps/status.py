"""How far a study is, read from its plan, its records and the progress of fold runs under way; from any terminal."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sweeps import schema
from sweeps.board import duration
from sweeps.records import PROGRESS, Records
from sweeps.study import Study, read_study


def show_status(out: Path, sweep: str, console: Console) -> bool:
    """Print the state of every study of `sweep` under `out`. Returns False where there is none."""
    folders = sorted((out / "studies").glob(f"{sweep}-*"))
    studies = [read_study(folder) for folder in folders if (folder / "study.json").exists()]
    if not studies:
        console.print(f"no study of {escape(sweep)} under {out}; start one with `make sweep SWEEP={escape(sweep)}`")
        return False
    for study in studies:
        _show(study, console)
    return True


def _show(study: Study, console: Console) -> None:
    records = Records(study.out)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("variant", "finished", "test F1", "under way", "failed"):
        table.add_column(name, justify="right" if name in ("finished", "test F1") else "left")
    for variant in study.sweep.variants:
        runs = study.runs_of(variant)
        found = records.read_all([run.id for run in runs])
        finished = [record for record in found.values() if record.status == "finished"]
        under_way = [
            told for run in runs if run.id not in found if (told := _progress(records.checkpoint(run.id), run.fold))
        ]
        failed = [
            f"fold {run.fold} {found[run.id].status}: {found[run.id].reason}"
            for run in runs
            if run.id in found and found[run.id].status != "finished"
        ]
        mean = f"{np.mean([record.metrics[schema.TEST_F1] for record in finished]):.3f}" if finished else "–"
        table.add_row(
            variant.label,
            f"{len(finished)}/{len(runs)}",
            mean,
            ", ".join(under_way),
            escape("; ".join(failed)),
        )
    console.print(f"[bold]{escape(study.sweep.name)}[/bold] on {escape(study.data.name)} · study {study.id}")
    console.print(table)


def _progress(folder: Path, fold: int) -> str:
    try:
        told = json.loads((folder / PROGRESS).read_text())
    except (OSError, ValueError):
        return ""
    return f"fold {fold} epoch {told['epoch'] + 1}, {duration(time.time() - told['time'])} ago"
