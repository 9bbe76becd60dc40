"""The command line of the sweeps: list, new, plan, run, status, refit, gc."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.stats import smallest_detectable_difference
from guided.cli import INCOMPLETE, INTERRUPTED, OK, WRONG, add_common, guarded, program
from sweeps.spec import PRESETS, Sweep, find_sweep, flat, load_sweep, new_sweep, own_sweeps, shipped_sweeps

if TYPE_CHECKING:
    from sweeps.study import Study

# The paper's sd of fold scores, used for the plan's smallest detectable difference until a study has its own.
PAPER_SD = 0.017


COMMAND = "guided-sweeps"


def parser() -> argparse.ArgumentParser:
    """The arguments of `python -m sweeps`."""
    top = argparse.ArgumentParser(
        prog=program("sweeps", COMMAND),
        description="Hyper-parameter and ablation sweeps for guided representation learning.",
        epilog="Run the same command again to go on after a stop: fold runs that are finished are not repeated.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    commands.add_parser("list", help="the sweeps at hand, yours and those of the package, and the question of each")

    told = "write a sweep file to ./sweeps, to be filled in"
    new = commands.add_parser("new", help=told, description=told)
    new.add_argument("name", help="its name, which `run` then knows")
    new.add_argument("--like", metavar="SWEEP", help="start from a copy of another sweep")

    for name, told in (
        ("plan", "what a sweep would do: variants, fold runs, what is done, disk, smallest difference; starts nothing"),
        ("run", "train what has no record yet and log every fold run to MLflow"),
        ("status", "how far a sweep is, from another terminal"),
    ):
        command = commands.add_parser(name, help=told, description=told)
        command.add_argument("sweep", help="name of a sweep (see `list`) or path of a sweep file")
        _add_out(command)
        if name == "status":
            continue
        presets = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yaml")))
        command.add_argument("--preset", help=f"one of {presets} (default: gpu where there is one, else laptop)")
        command.add_argument(
            "--set",
            default="",
            metavar="'KEY=VALUE …'",
            dest="settings",
            help="settings over preset and sweep file, e.g. 'train.epochs=4 guide.radius=2 data.size=32'",
        )
        command.add_argument(
            "--data",
            help="manifest (.csv), folder per class, .parquet or MedMNIST .npz; default: synthetic marrow",
        )
        command.add_argument("--limit", type=int, help="at most so many cells per class, a seeded sample")
        command.add_argument("--where", help="rows of the manifest to use, e.g. \"acquisition == 'A'\"")
        command.add_argument("--skip-bad", action="store_true", help="go on without rows that cannot be read")
        if name == "run":
            command.add_argument("--retry-failed", action="store_true", help="try failed and diverged fold runs again")
            command.add_argument("--uri", help="MLflow tracking URI (default: MLFLOW_TRACKING_URI, else OUT/mlflow.db)")

    told = "train one variant on all cells, for as long as its folds took, and write the model file that predicts"
    refit = commands.add_parser("refit", help=told, description=told)
    refit.add_argument("sweep", help="name of a sweep that has been run, or the path of its file")
    refit.add_argument("variant", help="label of the variant as the table shows it, e.g. 'lowpass=0.6'")
    _add_out(refit)
    refit.add_argument("--export", type=Path, metavar="FILE", help="copy the model file there as well")
    refit.add_argument("--study", help="id of a study (default: the one started last)")
    refit.add_argument("--device", choices=("cpu", "cuda"), help="default: that of the sweep's fold runs")
    refit.add_argument("--uri", help="MLflow tracking URI (default: MLFLOW_TRACKING_URI, else OUT/mlflow.db)")

    gc = commands.add_parser("gc", help="free checkpoints that finished fold runs no longer need")
    _add_out(gc)
    gc.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    return add_common(top, COMMAND, commands.choices.values())


def _add_out(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", default="runs", type=Path, help="folder of everything a sweep writes (default: runs)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = parser().parse_args(arguments)
    console = Console(highlight=False)
    commands = {"list": _list, "new": _new, "plan": _plan, "run": _run, "status": _status, "refit": _refit, "gc": _gc}
    return guarded(
        lambda: commands[given.command](given, console),
        debug=given.debug,
        stopped="stopped; the same command goes on where it was",
    )


def _list(given: argparse.Namespace, console: Console) -> int:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("sweep", no_wrap=True)
    table.add_column("variants", justify="right")
    table.add_column("question")
    own = own_sweeps()
    for name in {**own, **shipped_sweeps()}:
        sweep = load_sweep(name, preset="laptop")
        table.add_row(f"{name} (yours)" if name in own else name, str(len(sweep.variants)), escape(sweep.question))
    console.print(table)
    return OK


def _new(given: argparse.Namespace, console: Console) -> int:
    path = new_sweep(given.name, given.like)
    console.print(f"wrote {path}; fill it in, then `{program('sweeps', COMMAND)} plan {given.name}`", soft_wrap=True)
    return OK


def _load(given: argparse.Namespace) -> Sweep:
    data: dict[str, Any] = {}
    if given.data:
        data["source"] = str(Path(given.data).absolute())
    if given.limit is not None:
        data["limit"] = given.limit
    if given.where:
        data["where"] = given.where
    if given.skip_bad:
        data["skip_bad"] = True
    return load_sweep(given.sweep, preset=given.preset, settings=given.settings, data=data)


def _study(given: argparse.Namespace, console: Console) -> Study:
    from sweeps.study import make_study

    sweep = _load(given)
    study = make_study(sweep, given.out.absolute())
    _show_plan(study, console)
    return study


def _plan(given: argparse.Namespace, console: Console) -> int:
    _study(given, console)
    return OK


def _show_plan(study: Study, console: Console) -> None:
    from sweeps.records import Records

    sweep, data = study.sweep, study.data
    records = Records(study.out)
    done = sum(records.has(run.id) for run in study.fold_runs)
    first = sweep.variants[0].config
    needed, free = _disk(study)
    folds = first.folds.count * len(sweep.partitions)
    detectable = smallest_detectable_difference(folds, study.test_train_ratio, PAPER_SD)
    grouped = study.folds[sweep.partitions[0]][0].grouped_by
    by = "single cell" if grouped == "none" else grouped
    varied = dict.fromkeys(key for variant in sweep.variants for key in flat(variant.varied))
    baseline = next(variant for variant in sweep.variants if variant.baseline)
    lengths = ", ".join(map(str, sorted({variant.config.embedding.length for variant in sweep.variants})))
    console.print(f"[bold]{escape(sweep.name)}[/bold]  {escape(sweep.question)}", soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    rows = [
        ("data", f"{data.name}: {len(data.labels):,} cells, {len(data.classes)} classes, {sweep.data.size} px"),
        (
            "variants",
            f"{len(sweep.variants)} over {', '.join(varied)}; baseline {baseline.label}",
        ),
        (
            "fold runs",
            f"{len(study.fold_runs)} = {len(sweep.variants)} variants x {folds} folds by {by}"
            + (f" x {len(sweep.seeds)} seeds" if len(sweep.seeds) > 1 else "")
            + f"; {done} already done",
        ),
        (
            "training",
            f"{first.backbone.name}, up to {first.train.epochs} epochs, embedding {lengths}, preset {sweep.preset}",
        ),
        ("resources", _resources(sweep)),
        ("disk", f"up to {_size(needed)} needed, {_size(free)} free in {study.out}"),
        (
            "precision",
            f"a true difference of {detectable:.3f} macro-F1 is found in 80 % of cases, a smaller one less often "
            f"(5 % level, if fold differences vary by {PAPER_SD} as in the paper)",
        ),
        ("time", "known after the first epochs" if done < len(study.fold_runs) else "nothing left to train"),
    ]
    for key, value in rows:
        table.add_row(key, escape(value))
    console.print(table)
    for note in (*data.notes, *study.warnings()):
        console.print(f"[yellow]note[/yellow] {escape(note)}", soft_wrap=True)
    if needed > free:
        raise ValueError(f"{study.out} has {_size(free)} free, the sweep may need {_size(needed)}; give another OUT")


def _disk(study: Study) -> tuple[int, int]:
    from sweeps.study import disk_report

    return disk_report(study)


def _resources(sweep: Sweep) -> str:
    resources = sweep.resources
    gpus = f" and {resources.gpus:g} GPU" if resources.gpus else ""
    return f"{resources.cpus} CPU{gpus} a fold run, on {resources.device}"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _run(given: argparse.Namespace, console: Console) -> int:
    study = _study(given, console)
    from sweeps.engine import run_study
    from sweeps.tracking import default_uri

    uri = given.uri or default_uri(study.out)
    outcome = run_study(study, uri, console, retry_failed=given.retry_failed)
    for run in outcome.failed:
        record = outcome.records[run.id]
        console.print(f"[red]{record.status}[/red] {escape(run.name)}: {escape(record.reason)}", soft_wrap=True)
    if outcome.failed:
        console.print("failed fold runs are not repeated by themselves; add --retry-failed (make: RETRY=1)")
    if outcome.unwritten:
        console.print(
            f"[yellow]MLflow lacks some of the record[/yellow] ({escape(outcome.unwritten)}); nothing is lost, "
            "the same command writes it later",
            soft_wrap=True,
        )
    console.print(f"[dim]records {study.out / 'records'}[/dim]", soft_wrap=True)
    console.print(f"[dim]MLflow  {escape(uri)} (look at it with `make ui`)[/dim]", soft_wrap=True)
    if outcome.absent:
        console.print(f"stopped with {len(outcome.absent)} fold runs left; the same command goes on where it was")
        return INTERRUPTED
    return INCOMPLETE if outcome.failed or outcome.unwritten else OK


def _status(given: argparse.Namespace, console: Console) -> int:
    from sweeps.status import show_status

    name = find_sweep(given.sweep).stem
    return OK if show_status(given.out.absolute(), name, console) else WRONG


def _refit(given: argparse.Namespace, console: Console) -> int:
    from sweeps.refit import find_study, plan_refit, train_refit
    from sweeps.tracking import FAILURES, default_uri, log_refit

    out = given.out.absolute()
    refit = plan_refit(find_study(out, Path(given.sweep).stem, given.study), given.variant)
    console.print(
        f"[bold]{escape(given.variant)}[/bold] on all {len(refit.rows):,} cells of {escape(refit.study.data.name)}: "
        f"{len(refit.lengths)} epochs, the median of the best epochs of {len(refit.records)} fold runs; "
        f"length {refit.lengths[-1]}",
        soft_wrap=True,
    )
    model = train_refit(refit, given.device or refit.study.sweep.resources.device, console)
    calibration = model.calibration
    console.print(
        f"calibrated on {calibration.cells:,} held-out cells: expected calibration error {calibration.error:.3f}"
    )
    if given.export is not None:
        given.export.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(refit.path, given.export)
    told = given.export or refit.path
    console.print(
        f"[dim]model   {escape(str(told))} (use it with `python -m guided predict --model`)[/dim]", soft_wrap=True
    )
    uri = given.uri or default_uri(out)
    try:
        run_id = log_refit(refit, model, uri)
    except FAILURES as error:
        console.print(
            f"[yellow]MLflow lacks the model[/yellow] ({escape(str(error).strip().splitlines()[0])}); "
            "the same command writes it later",
            soft_wrap=True,
        )
        return INCOMPLETE
    console.print(
        f"[dim]MLflow  runs:/{run_id}/model for mlflow.pytorch.load_model, in {escape(uri)}[/dim]", soft_wrap=True
    )
    return OK


def _gc(given: argparse.Namespace, console: Console) -> int:
    from sweeps.records import Records, folder_bytes

    garbage = list(Records(given.out.absolute()).garbage())
    freed = sum(folder_bytes(path) for path in garbage)
    for path in garbage:
        console.print(f"{'would delete' if given.dry_run else 'deleted'} {path}", soft_wrap=True)
        if not given.dry_run:
            shutil.rmtree(path)
    console.print(f"{len(garbage)} folders, {_size(freed)}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
