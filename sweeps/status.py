"""How far a study is, read from its plan, its records and the progress of fold runs under way; from any terminal or
machine that can read OUT. Nothing is written."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sweeps import schema
from sweeps.asked import ASKED, read_log
from sweeps.board import duration
from sweeps.lock import holder
from sweeps.projected import read_projected
from sweeps.records import BROKEN, PROGRESS, CorruptRecord, FoldRun, Record, Records
from sweeps.study import Study, read_study

SCORES = {"search": ("val_f1", schema.BEST_VAL_F1)}  # what is shown of a finished fold run, where no test score
OPEN = ("waiting", "running", "interrupted")  # states of fold runs that are still to be trained
STALE = 600.0  # seconds without an epoch after which a fold run under way is called silent


class Status:
    """The state of every study of one sweep. A record is read once: what is recorded stays."""

    def __init__(self, out: Path, sweep: str, price: float | None = None) -> None:
        self._out, self._sweep, self._price = out, sweep, price
        self._seen: dict[tuple[str, int], Record] = {}

    def read(self) -> list[dict[str, Any]]:
        """One mapping a study, fit for JSON: driver, states, cost, seconds left, what MLflow lacks, variants
        with their fold runs.

        The seconds left of a variant are those of the fold runs that it still needs once they run, as many at a time
        as it has under way now; in a search they are an upper bound, since it may be stopped or raced out.
        """
        folders = sorted((self._out / "studies").glob(f"{self._sweep}-*"))
        return [self._study(read_study(folder)) for folder in folders if (folder / "study.json").exists()]

    def _study(self, study: Study) -> dict[str, Any]:
        variants: list[dict[str, Any]] = [
            {"variant": variant.label, "fold_runs": [self._fold_run(study, run) for run in study.runs_of(variant)]}
            for variant in study.sweep.variants
        ]
        runs = [run for variant in variants for run in variant["fold_runs"]]
        if study.sweep.stage == "search":
            _mark_given_up(read_log(study.folder / ASKED), study, variants)
        seconds, resources = sum(run["seconds"] for run in runs), study.sweep.resources
        cost: dict[str, float] = {"cpu_hours": seconds * resources.cpus / 3600}
        if resources.gpus:
            cost["gpu_hours"] = seconds * resources.gpus / 3600
        if self._price is not None:
            cost["money"] = self._price * cost.get("gpu_hours", cost["cpu_hours"])
        states = Counter(run["state"] for run in runs)
        driver = holder(study.folder)
        pace = _pace(runs) if driver is not None else None
        for variant in variants:
            own = variant["fold_runs"]
            variant["seconds_left"] = None if pace is None else _left(own, _pace(own) or pace)
        return {
            "study": study.id,
            "sweep": study.sweep.name,
            "stage": study.sweep.stage,
            "data": study.data.name,
            "driver": driver,
            "states": dict(states),
            "cost": cost,
            "seconds_left": _left(runs, pace),
            "mlflow": self._mlflow(study),
            "variants": variants,
        }

    def _mlflow(self, study: Study) -> dict[str, Any] | None:
        """What the store lacks of the records; None where none was ever written."""
        known = read_projected(study.folder)
        if known is None:
            return None
        records = []
        for run in study.fold_runs:
            with suppress(CorruptRecord):  # which its variant's row tells
                if (record := self._record(Records(study.out), run.id)) is not None:
                    records.append(record)
        away = None if known.away is None else {"reason": known.away, "seconds": time.time() - known.since}
        return {"store": known.store, "lacks": known.lacking(records), "away": away}

    def _fold_run(self, study: Study, run: FoldRun) -> dict[str, Any]:
        told: dict[str, Any] = {"partition": run.partition, "fold": run.fold, "seed": run.seed}
        epochs = run.config.train.epochs
        records = Records(study.out)
        try:
            record = self._record(records, run.id)
        except CorruptRecord as error:
            return told | {"state": "damaged", "reason": str(error), "epochs": 0, "of": epochs, "seconds": 0.0}
        if record is not None:
            seconds = sum(epoch.get(part, 0.0) for epoch in record.history for part in schema.EPOCH_SECONDS)
            told |= {"state": record.status, "reason": record.reason, "epochs": len(record.history), "of": epochs}
            told |= {"attempts": len(record.details.get("attempts", [])) or 1}
            told |= {"seconds": record.metrics.get(schema.SECONDS, seconds)}
            if record.status == "finished":
                # Who watches a search shall not choose by test cells.
                name, metric = SCORES.get(study.sweep.stage, ("test_f1", schema.TEST_F1))
                told[name] = record.metrics[metric]
            return told
        progress = _progress(records.checkpoint(run.id) / PROGRESS)
        if progress is None:
            return told | {"state": "waiting", "reason": "", "epochs": 0, "of": epochs, "seconds": 0.0}
        silent = time.time() - progress["time"]
        state = "running" if holder(study.folder) is not None and silent < STALE else "interrupted"
        told |= {"state": state, "reason": "", "epochs": progress["epoch"] + 1, "of": epochs, "ago": silent}
        return told | {"seconds": progress.get("seconds", 0.0), "val_f1": progress["val_f1"]}

    def _record(self, records: Records, run_id: str) -> Record | None:
        try:
            stamp = (records.folder / run_id).stat().st_mtime_ns
        except FileNotFoundError:
            return None
        if (run_id, stamp) not in self._seen:
            record = records.read(run_id)
            if record is None:
                return None
            self._seen[run_id, stamp] = record
        return self._seen[run_id, stamp]


def _mark_given_up(log: list[dict[str, Any]], study: Study, variants: list[dict[str, Any]]) -> None:
    """Say of the fold runs that a search will not train any more why it will not."""
    asked = {line["number"]: line["config"] for line in log if line["event"] in ("ask", "warm")}
    ends = {asked[line["number"]]: line for line in log if line["event"] == "told"}
    for variant, shown in zip(study.sweep.variants, variants, strict=True):
        end = ends.get(variant.config.id)
        runs = shown["fold_runs"]
        # What failed or diverged and was set aside is open once more.
        if end is None or (end["end"] in BROKEN and all(run["state"] not in BROKEN for run in runs)):
            continue
        for run in runs:
            if run["state"] == "waiting":
                run |= {"state": "given up", "reason": ""}
        shown["end"], shown["why"] = end["end"], end["why"]


def _progress(path: Path) -> dict[str, Any] | None:
    """What a fold run under way last told; None where it told nothing or was caught half written."""
    try:
        told = json.loads(path.read_text())
        return told if {"epoch", "time", "val_f1"} <= told.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _pace(runs: list[dict[str, Any]]) -> float | None:
    """Seconds an epoch so far; None before the first epochs."""
    done = sum(run["epochs"] for run in runs if run["seconds"] > 0)
    return sum(run["seconds"] for run in runs) / done if done else None


def _left(runs: list[dict[str, Any]], pace: float | None) -> float | None:
    """Seconds until the last epoch, as many fold runs at a time as now; early stops make it less."""
    if pace is None:
        return None
    open_epochs = sum(run["of"] - run["epochs"] for run in runs if run["state"] in OPEN)
    return pace * open_epochs / max(sum(run["state"] == "running" for run in runs), 1)


def show_status(
    out: Path,
    sweep: str,
    console: Console,
    *,
    as_json: bool = False,
    watch: float | None = None,
    price: float | None = None,
    sync: Callable[[str], str],
) -> bool:
    """Print the state of every study of `sweep` under `out`, again every `watch` seconds until Ctrl-C if given.

    `price` is that of an hour of a GPU, or of a CPU where none is used; `sync` gives the command that writes what an
    MLflow store lacks. Returns False where there is no study.
    """
    status = Status(out, sweep, price)
    studies = status.read()
    if as_json:
        console.print_json(json.dumps(studies, allow_nan=False))
        return bool(studies)
    if not studies:
        console.print(f"no study of {escape(sweep)} under {out}; start one with `make sweep SWEEP={escape(sweep)}`")
        return False
    if watch is None:
        console.print(_shown(studies))
        for lack in filter(None, (_lack(study, sync) for study in studies)):
            console.print(lack, style="yellow", markup=False, soft_wrap=True)  # whole, to be copied
        return True

    def drawn() -> Group:
        lacks = filter(None, (_lack(study, sync) for study in studies))
        return Group(_shown(studies), *(Text(lack, style="yellow") for lack in lacks))

    with Live(drawn(), console=console, auto_refresh=False) as live:
        while any(study["driver"] or study["states"].get(state) for study in studies for state in OPEN):
            time.sleep(watch)
            studies = status.read()
            live.update(drawn(), refresh=True)
    return True


def _shown(studies: list[dict[str, Any]]) -> RenderableType:
    return Group(*(part for study in studies for part in _one(study)))


def _one(study: dict[str, Any]) -> list[RenderableType]:
    table = Table(box=None, header_style="bold", pad_edge=False)
    score, shown_as = ("val_f1", "validation F1") if study["stage"] in SCORES else ("test_f1", "test F1")
    for name in ("variant", "finished", shown_as, "time left", "under way", "not finished"):
        table.add_column(name, justify="right" if name in ("finished", shown_as, "time left") else "left")
    for variant in study["variants"]:
        runs = variant["fold_runs"]
        scores = [run[score] for run in runs if run["state"] == "finished"]
        under_way = [
            f"fold {run['fold']} epoch {run['epochs']}/{run['of']}, {duration(run['ago'])} ago"
            for run in runs
            if run["state"] in ("running", "interrupted")
        ]
        bad = [f"fold {run['fold']} {run['state']}: {run['reason']}" for run in runs if run["reason"]]
        if variant.get("end") == "raced out":
            bad.append(f"raced out: {variant['why']}")
        table.add_row(
            Text(variant["variant"]),
            f"{len(scores)}/{len(runs)}",
            f"{np.mean(scores):.3f}" if scores else "–",
            duration(left) if (left := variant["seconds_left"]) else "–",
            ", ".join(under_way),
            Text("; ".join(bad), style="red"),
        )
    states = ", ".join(f"{count} {state}" for state, count in study["states"].items())
    cost = ", ".join(f"{value:.2f} {name.replace('_', '-')}" for name, value in study["cost"].items())
    left = study["seconds_left"]
    driver = "nobody is at work on it" if study["driver"] is None else f"run by {study['driver']}"
    of = " for the variants asked so far" if study["stage"] == "search" else ""
    told = f"{states} · {cost} so far · {driver}" + ("" if left is None else f" · at most {duration(left)} left{of}")
    stage = {"search": ", search: validation scores, no result", "judge": ", judgement"}.get(study["stage"], "")
    head = f" on {study['data']} · study {study['study']}{stage}"
    return [Text.assemble((study["sweep"], "bold"), head), table, Text(told)]


def _lack(study: dict[str, Any], sync: Callable[[str], str]) -> str | None:
    """What MLflow lacks and what becomes of it; None where it lacks nothing."""
    known = study["mlflow"]
    if known is None or not (known["lacks"] or known["away"]):
        return None
    lacks = f"MLflow lacks {'1 fold run' if known['lacks'] == 1 else str(known['lacks']) + ' fold runs'}"
    if study["driver"] is None:
        why = "" if known["away"] is None else f" ({known['away']['reason']})"
        return f"{lacks}{why}; nothing is lost, `{sync(known['store'])}` writes it"
    if known["away"] is None:
        return None  # the driver is about to write it
    away = known["away"]
    return f"{lacks}: away for {duration(away['seconds'])}, tried again meanwhile ({away['reason']})"
