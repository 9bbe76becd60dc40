"""What a sweep would do, before anything is started: for a person, and as JSON for machines."""

from __future__ import annotations

import os
from itertools import islice
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.stats import smallest_detectable_difference
from sweeps.asked import ASKED, read_log
from sweeps.board import duration
from sweeps.budget import exhausted, spent
from sweeps.records import Record, Records
from sweeps.rules import check_settings
from sweeps.space import Space
from sweeps.spec import CORNERS, WARM_NONE, flat
from sweeps.study import Study, disk_report, read_study
from sweeps.warm import recorded_variants

# The paper's sd of fold scores, used for the smallest detectable difference until a study has its own.
PAPER_SD = 0.017
# Records looked at for the time of a fold run.
SAMPLE = 40


def plan_of(study: Study) -> dict[str, Any]:
    """The plan, in JSON's types. Keys are stable; what is not known is null.

    sweep, question, stage, preset, data, training, variants, left_out, baseline, folds, grouped_by, seeds, partitions,
    fold_runs (planned: at most so many for a search; done), reused (of those to come, so many take an embedding that is
    kept or that one of them leaves), judgement (for a search: groups, seeds, fold_runs), space,
    combinations, warm_start (of a search: from, and how many recorded variants compete), resources, disk (bytes),
    smallest_difference (macro-F1, power 0.8 at 5 %; of a search, over the groups of its judgement; null for a single
    one), seconds (per fold run, as recorded in OUT; of how many records; left, with as many workers as this machine
    holds), spent (work without a record included), limit, notes.
    """
    sweep, data, records = study.sweep, study.data, Records(study.out)
    notes = [*data.notes, *study.warnings()]
    first = sweep.variants[0].config
    folds = first.folds.number * len(sweep.partitions)
    search, asked = sweep.search, study
    planned = len(study.fold_runs)
    if search is not None:
        check_settings(search.space, planned, search.settings)
        planned *= search.settings.variants
        if (study.folder / "study.json").exists():
            asked = read_study(study.folder)
        if search.corners_left:
            notes.append(
                f"the space has more than {CORNERS} combinations of its listed values and ends: they were tried two at "
                "a time around the baseline; one that three of them make impossible is found when it is asked for"
            )
    warm, waiting = _warm(study)
    counted = [run.id for run in asked.fold_runs if run.config.id not in warm]
    own = [run_id for run_id in counted if records.has(run_id)]
    reused = len(study.in_turns([run for run in study.fold_runs if not records.has(run.id)])[1])
    space = search.space if search is not None and isinstance(search.space, Space) else None
    listed = None if space is None else space.listed()
    needed, free = disk_report(study)
    compared = len(study.compared_folds)
    known = records.read_all(own)
    seconds, count = _seconds(study, records, known)
    workers = sweep.resources.workers or max(1, len(os.sched_getaffinity(0)) // sweep.resources.cpus)
    left = max(0, planned - len(own) - reused)
    cost = spent(known.values(), sweep.resources.gpus, sweep.budget.price_per_hour, records.beside(counted))
    judged = (
        {
            "groups": list(first.folds.holdout),
            "seeds": list(sweep.judge_seeds),
            "fold_runs": 2 * len(first.folds.holdout) * len(sweep.judge_seeds),
        }
        if search is not None
        else None
    )
    return {
        "sweep": sweep.name,
        "question": sweep.question,
        "stage": sweep.stage,
        "preset": sweep.preset,
        "data": {
            "name": data.name,
            "cells": len(data.labels),
            "classes": len(data.classes),
            "size": sweep.data.size,
            "fingerprint": data.fingerprint,
        },
        "training": {
            "backbone": first.backbone.name,
            "epochs": first.train.epochs,
            "lengths": sorted({variant.config.embedding.length for variant in sweep.variants}),
        },
        "variants": [
            {"label": variant.label, "id": variant.config.id, "values": flat(variant.varied)}
            for variant in sweep.variants
        ],
        "left_out": list(sweep.left_out),
        "baseline": next(variant.label for variant in sweep.variants if variant.baseline),
        "folds": folds,
        "grouped_by": study.folds[sweep.partitions[0]][0].grouped_by,
        "seeds": list(sweep.seeds),
        "partitions": list(sweep.partitions),
        "fold_runs": {"planned": planned, "done": len(own)},
        "reused": reused,
        "judgement": judged,
        "space": None if space is None else {key: axis.told() for key, axis in space.axes.items()},
        "combinations": None if listed is None else len(listed),
        "warm_start": None if search is None else {"from": search.settings.warm_start, "variants": len(warm) + waiting},
        "resources": sweep.resources.model_dump(mode="json"),
        "disk": {"needed": needed, "free": free},
        "smallest_difference": (
            smallest_detectable_difference(compared, study.test_train_ratio, PAPER_SD) if compared > 1 else None
        ),
        "seconds": {
            "fold_run": seconds,
            "records": count,
            "left": None if seconds is None else seconds * left / workers,
            "worker_hours": None if seconds is None else seconds * left / 3600,
        },
        "spent": {"worker_hours": cost.worker_hours, "gpu_hours": cost.gpu_hours, "money": cost.money},
        "budget": sweep.budget.model_dump(mode="json", exclude_none=True),
        "limit": exhausted(sweep.budget, sweep.max_failures, cost),
        "notes": notes,
    }


def _warm(study: Study) -> tuple[set[str], int]:
    """Variants that a search has taken over as recorded by others, by config id, and how many it will take over."""
    log = read_log(study.folder / ASKED) if study.sweep.search is not None else []
    warm = {line["config"] for line in log if line["event"] == "warm"}
    if study.sweep.search is None or any(line["event"] == "ask" for line in log):
        return warm, 0
    found = {one.variant.config.id for one in recorded_variants(study, study.sweep.search)}
    return warm, len(found - warm)


def _seconds(study: Study, records: Records, own: dict[str, Record]) -> tuple[float | None, int]:
    """Median time of a fold run: this study's, else that of others here on the same cells with the same trunk and
    epochs; and of how many records."""
    alike = list(own.values())
    first = study.sweep.variants[0].config
    if not alike and records.folder.exists():
        names = (folder.name for folder in sorted(records.folder.iterdir()) if "." not in folder.name)
        for record in filter(None, map(records.read, islice(names, SAMPLE))):
            config = record.identity["config"]
            if (
                record.identity["data"] == study.data.fingerprint
                and config["backbone"] == first.backbone.model_dump(mode="json")
                and config["train"] == first.train.model_dump(mode="json")
            ):
                alike.append(record)
    trained = [record for record in alike if record.status == "finished" and not record.details.get("reused")]
    took = [record.details["ended"] - record.details["began"] for record in trained]
    return (float(np.median(took)), len(took)) if took else (None, 0)


def show_plan(plan: dict[str, Any], study: Study, console: Console) -> None:
    """Print a plan for a person."""
    console.print(f"[bold]{escape(plan['sweep'])}[/bold]  {escape(plan['question'])}", soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for key, value in _rows(plan, study):
        table.add_row(key, escape(value))
    console.print(table)
    for note in plan["notes"]:
        console.print(f"[yellow]note[/yellow] {escape(note)}", soft_wrap=True)


def _rows(plan: dict[str, Any], study: Study) -> list[tuple[str, str]]:
    data, folds, runs = plan["data"], plan["folds"], plan["fold_runs"]
    by = "single cell" if plan["grouped_by"] == "none" else plan["grouped_by"]
    seeds = f" x {len(plan['seeds'])} seeds" if len(plan["seeds"]) > 1 else ""
    rows = [("data", f"{data['name']}: {data['cells']:,} cells, {data['classes']} classes, {data['size']} px")]
    if plan["space"] is not None:
        settings = study.sweep.search.settings if study.sweep.search else None
        rows += [("space" if at == 0 else "", f"{key}: {told}") for at, (key, told) in enumerate(plan["space"].items())]
        count = "" if plan["combinations"] is None else f" of {plan['combinations']} combinations"
        if settings is not None:
            rows.append(
                (
                    "search",
                    f"{settings.sampler}, up to {settings.variants} variants{count}, stop rule {settings.stop.rule}",
                )
            )
        if (told := plan["warm_start"])["from"] != WARM_NONE:
            rows.append(("warm start", f"{told['variants']} variants, as recorded by {told['from']}"))
        judged = plan["judgement"]
        rows.append(
            (
                "judgement",
                f"winner and baseline on {', '.join(judged['groups'])}, which the search never sees; "
                f"{len(judged['seeds'])} seeds, {judged['fold_runs']} fold runs",
            )
        )
        rows.append(("baseline", plan["baseline"]))
        rows.append(
            (
                "fold runs",
                f"at most {runs['planned']}: {folds} folds by {by}{seeds} a variant; {runs['done']} done",
            )
        )
    else:
        varied = dict.fromkeys(key for variant in plan["variants"] for key in variant["values"])
        rows.append(("variants", f"{len(plan['variants'])} over {', '.join(varied)}; baseline {plan['baseline']}"))
        if plan["left_out"]:
            rows.append(("left out", f"{len(plan['left_out'])} by constraints: {'; '.join(plan['left_out'])}"))
        rows.append(
            (
                "fold runs",
                f"{runs['planned']} = {len(plan['variants'])} variants x {folds} folds by {by}{seeds}; "
                f"{runs['done']} already done",
            )
        )
    if plan["reused"]:
        rows.append(("reused", f"{plan['reused']} of the fold runs to come train nothing: their embedding is kept"))
    lengths = ", ".join(map(str, plan["training"]["lengths"]))
    resources = plan["resources"]
    gpus = f" and {resources['gpus']:g} GPU" if resources["gpus"] else ""
    rows += [
        (
            "training",
            f"{plan['training']['backbone']}, up to {plan['training']['epochs']} epochs, embedding {lengths}, "
            f"preset {plan['preset']}",
        ),
        ("resources", f"{resources['cpus']} CPU{gpus} a fold run, on {resources['device']}"),
        ("disk", f"up to {size(plan['disk']['needed'])} needed, {size(plan['disk']['free'])} free in {study.out}"),
        ("precision", _precision(plan)),
        ("time", _time(plan)),
    ]
    if plan["budget"]:
        limits = ", ".join(f"{key} {value:g}" for key, value in plan["budget"].items())
        beside = "" if plan["judgement"] is None else " (of the search; the judgement comes on top)"
        rows.append(("budget", f"{limits}{beside}; {plan['limit'] or 'not spent'}"))
    return rows


def _precision(plan: dict[str, Any]) -> str:
    where = "" if plan["judgement"] is None else f" in the judgement, over {len(plan['judgement']['groups'])} groups"
    if plan["smallest_difference"] is None:
        return "none: with a single locked group no difference has an interval; lock two or more"
    return (
        f"a true difference of {plan['smallest_difference']:.3f} macro-F1 is found in 80 % of cases{where}, a smaller "
        f"one less often (5 % level, if fold differences vary by {PAPER_SD} as in the paper)"
    )


def _time(plan: dict[str, Any]) -> str:
    seconds, runs = plan["seconds"], plan["fold_runs"]
    if runs["done"] >= runs["planned"]:
        return "nothing left to train"
    if seconds["fold_run"] is None:
        return "known after the first epochs"
    price = plan["budget"].get("price_per_hour")
    money = "" if price is None else f", {seconds['worker_hours'] * price:.2f} at {price:g} an hour"
    return (
        f"about {duration(seconds['left'])} on this machine ({seconds['worker_hours']:.2g} worker-hours{money}); "
        f"a fold run took {seconds['fold_run']:.0f} s in {seconds['records']} records"
    )


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
