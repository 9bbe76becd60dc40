"""The command line of the sweeps: list, new, plan, run, status, sync, remeasure, replay, refit, gc."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from guided.cli import INCOMPLETE, INTERRUPTED, OK, WRONG, add_common, guarded, program
from sweeps import schema
from sweeps.board import duration
from sweeps.spec import PRESETS, Sweep, find_sweep, load_sweep, new_sweep, own_sweeps, shipped_sweeps

if TYPE_CHECKING:
    from sweeps.engine import Outcome
    from sweeps.strategy import Search
    from sweeps.study import Study

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
            command.add_argument("--watch", nargs="?", type=float, const=5.0, metavar="SECONDS", help="again and again")
            command.add_argument("--json", action="store_true", help="for machines")
            command.add_argument("--price", type=float, help="of a GPU-hour, or of a CPU-hour where no GPU is used")
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
        if name == "plan":
            command.add_argument("--json", action="store_true", help="print the plan as JSON")
        if name == "run":
            command.add_argument("--retry-failed", action="store_true", help="try failed and diverged fold runs again")
            store = command.add_mutually_exclusive_group()
            store.add_argument("--uri", help="MLflow tracking URI (default: MLFLOW_TRACKING_URI, else OUT/mlflow.db)")
            store.add_argument("--no-mlflow", action="store_true", help="records only; a later run fills MLflow")

    told = "bring MLflow up to the records of a sweep, all of its studies; what is there already stays"
    sync = commands.add_parser("sync", help=told, description=told)
    sync.add_argument("sweep", help="name of a sweep or path of its file")
    _add_out(sync)
    sync.add_argument("--uri", help="MLflow tracking URI (default: MLFLOW_TRACKING_URI, else OUT/mlflow.db)")

    told = "compute metrics that a sweep's records lack from the embeddings it kept; trains nothing"
    again = commands.add_parser("remeasure", help=told, description=told)
    again.add_argument("sweep", help="name of a sweep that has been run, or the path of its file")
    _add_out(again)
    again.add_argument("--study", help="id of a study (default: the one started last)")
    again.add_argument("--uri", help="MLflow tracking URI (default: MLFLOW_TRACKING_URI, else OUT/mlflow.db)")

    told = "re-play a search over the recorded curves of a finished grid: cost, makespan, how often it chooses well"
    replay = commands.add_parser("replay", help=told, description=told)
    replay.add_argument("out", type=Path, help="folder with the recorded grid, the OUT of its run")
    replay.add_argument("sweep", help="name or file of the ablation that was recorded there")
    replay.add_argument(
        "--strategy",
        action="append",
        metavar="'KEY=VALUE …'",
        help="settings of a search, e.g. 'variants=20 stop.rule=racing'; again for more (default: the default search)",
    )
    replay.add_argument("--workers", type=int, default=1, help="simulated fold runs at a time (default: 1)")
    replay.add_argument("--repeats", type=int, default=200, help="replays of each strategy (default: 200)")
    replay.add_argument("--seeds", type=int, nargs="+", help="seeds the strategy sees (default: the first)")
    replay.add_argument("--judge-seeds", type=int, nargs="+", help="seeds it is judged on (default: all others)")
    replay.add_argument("--metric", default="test/f1_macro", help="what the judge looks at (default: test/f1_macro)")
    replay.add_argument("--json", action="store_true", help="print JSON instead of a table")

    told = "train one variant on all cells, for as long as its folds took, and write the model file that predicts"
    refit = commands.add_parser("refit", help=told, description=told)
    refit.add_argument("sweep", help="name of a sweep that has been run, or the path of its file")
    refit.add_argument("variant", help="label of the variant as the table shows it, e.g. 'lowpass=0.6'")
    _add_out(refit)
    refit.add_argument("--export", type=Path, metavar="FILE", help="copy the model file there as well")
    refit.add_argument("--study", help="id of a study (default: the one started last)")
    refit.add_argument("--device", choices=("cpu", "cuda"), help="default: that of the sweep's fold runs")
    refit.add_argument("--uri", help="MLflow tracking URI (default: MLFLOW_TRACKING_URI, else OUT/mlflow.db)")

    gc = commands.add_parser("gc", help="free what finished fold runs no longer need")
    _add_out(gc)
    gc.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    return add_common(top, COMMAND, commands.choices.values())


def _add_out(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--out", default="runs", type=_folder, help="folder of everything a sweep writes (default: runs)"
    )


def _folder(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is a URI; records are written by rename and locks by the file system, which object stores have "
            "not: mount a shared file system on every node and give its path"
        )
    return Path(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = parser().parse_args(arguments)
    console = Console(highlight=False)
    commands = {
        "list": _list,
        "new": _new,
        "plan": _plan,
        "run": _run,
        "status": _status,
        "sync": _sync,
        "remeasure": _remeasure,
        "replay": _replay,
        "refit": _refit,
        "gc": _gc,
    }
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
        count = len(sweep.variants) if sweep.search is None else sweep.search.settings.variants
        table.add_row(f"{name} (yours)" if name in own else name, str(count), escape(sweep.question))
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
    from sweeps.plan import plan_of, show_plan, size
    from sweeps.study import make_study

    study = make_study(_load(given), given.out.absolute())
    plan = plan_of(study)
    if getattr(given, "json", False):
        print(json.dumps(plan, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        show_plan(plan, study, console)
    needed, free = plan["disk"]["needed"], plan["disk"]["free"]
    if needed > free:
        raise ValueError(f"{study.out} has {size(free)} free, the sweep may need {size(needed)}; give another OUT")
    return study


def _plan(given: argparse.Namespace, console: Console) -> int:
    _study(given, console)
    return OK


def _run(given: argparse.Namespace, console: Console) -> int:
    study = _study(given, console)
    from sweeps.engine import run_study
    from sweeps.tracking import default_uri

    uri = None if given.no_mlflow else given.uri or default_uri(study.out)
    retry, sync = given.retry_failed, _sync_command(given.sweep, given.out, given.uri)
    if study.sweep.search is None:
        return _ended(study, run_study(study, uri, console, retry_failed=retry), uri, sync, console)

    from sweeps.engine import run_search
    from sweeps.judge import earlier_judgements, judgement, winner_of

    searched = run_search(study, study.sweep.search, uri, console, retry_failed=retry)
    search, outcome, settings = searched.search, searched.outcome, study.sweep.search.settings
    ranking = search.ranking()
    _show_ranking(search, [objective.metric for objective in settings.objectives], console)
    code = _ended(searched.study, outcome, uri, sync, console)
    count = sum(not standing.source for standing in ranking)
    if not search.done:
        console.print(f"the search has asked for {count} of {settings.variants} variants and is not done")
        if outcome.limit and not outcome.absent:
            console.print(f"[yellow]{escape(outcome.limit)}[/yellow]", soft_wrap=True)
        failures = study.sweep.max_failures
        if outcome.limit is None or (failures is not None and len(outcome.failed) >= failures):
            return INTERRUPTED if outcome.limit is None else INCOMPLETE
        code = INCOMPLETE
    elif count < settings.variants:
        console.print(f"the space is spent: it has no more variants than these {count}")
    winner = winner_of(ranking)
    if winner is None:
        console.print("[red]nothing to judge[/red]: no variant was trained on every fold")
        return INCOMPLETE
    judged = judgement(searched.study, winner.variant)
    labels = " and ".join(variant.label for variant in judged.sweep.variants)
    groups, seeds = ", ".join(judged.sweep.variants[0].config.folds.holdout), ", ".join(map(str, judged.sweep.seeds))
    console.print(
        f"judging {escape(labels)} on what the search never saw: {escape(groups)}; seeds {seeds}",
        soft_wrap=True,
    )
    if len(judged.sweep.variants) == 1:
        console.print("the search found nothing better than its baseline, which is judged alone")
    if earlier := earlier_judgements(judged):
        console.print(
            f"[yellow]note[/yellow] {earlier} other winners were judged on these groups before; choosing among them by "
            "what is seen here would be optimistic"
        )
    return max(code, _ended(judged, run_study(judged, uri, console, retry_failed=retry), uri, sync, console))


def _show_ranking(search: Search, metrics: Sequence[str], console: Console) -> None:
    """The best of a search, by validation: what the choice was made from, no result. With several objectives, whether
    no other variant is as good in all of them and better in one."""
    ranking, front = search.ranking(), {standing.number for standing in search.front()}
    table = Table(box=None, header_style="bold", pad_edge=False, title="chosen by validation, no result")
    table.add_column("place", justify="right")
    for metric in metrics:
        table.add_column("validation F1" if metric == schema.BEST_VAL_F1 else metric, justify="right")
    if len(metrics) > 1:
        table.add_column("best trade-offs")
    table.add_column("fold runs", justify="right")
    table.add_column("end")
    table.add_column("values")
    for place, standing in enumerate(ranking[:10], 1):
        first = [] if standing.score is None else [standing.score]
        scores = [f"{score:.3f}" for score in (standing.told if standing.end == "finished" else first)]
        cells = [*scores, *[""] * (len(metrics) - len(scores))]
        if len(metrics) > 1:
            cells.append("yes" if standing.number in front else "")
        end = f"as recorded by {standing.source}" if standing.source else standing.end or "under way"
        table.add_row(str(place), *cells, str(standing.blocks), end, escape(standing.variant.label))
    console.print(table)
    if len(metrics) > 1:
        console.print(f"the winner is the best in {metrics[0]}, the first objective", highlight=False)
    if len(ranking) > 10:
        console.print(f"and {len(ranking) - 10} more")


def _sync_command(sweep: str, out: Path, uri: str | None) -> str:
    """What to type so that MLflow gets what it lacks."""
    words = [*program("sweeps", COMMAND).split(), "sync", sweep]
    if out != Path("runs"):
        words += ["--out", str(out)]
    if uri is not None and uri != f"sqlite:///{out.absolute() / 'mlflow.db'}":
        words += ["--uri", schema.without_credentials(uri)]
    return shlex.join(words)


def _ended(study: Study, outcome: Outcome, uri: str | None, sync: str, console: Console) -> int:
    """Say how a study ended; returns the exit code. `sync` is the command that writes what MLflow lacks."""
    for run in outcome.failed:
        record = outcome.records[run.id]
        console.print(f"[red]{record.status}[/red] {escape(run.name)}: {escape(record.reason)}", soft_wrap=True)
    if outcome.failed:
        console.print("failed fold runs are not repeated by themselves; add --retry-failed (make: RETRY=1)")
    for run in outcome.absent:
        if run.id in outcome.hindered:
            told = f"{run.name}: {outcome.hindered[run.id]}"
            console.print(f"[red]not trained[/red] {escape(told)}", soft_wrap=True)
    if outcome.unwritten:
        console.print(
            f"[yellow]MLflow lacks some of the record[/yellow]: {escape(outcome.unwritten)}; nothing is lost, "
            f"`{escape(sync)}` writes it",
            soft_wrap=True,
        )
    console.print(f"[dim]records {study.out / 'records'}[/dim]", soft_wrap=True)
    if uri is not None:
        shown = escape(schema.without_credentials(uri))
        console.print(f"[dim]MLflow  {shown} (look at it with `make ui`)[/dim]", soft_wrap=True)
    if outcome.absent:
        if outcome.limit:
            console.print(f"[yellow]{escape(outcome.limit)}[/yellow]", soft_wrap=True)
        left = f"stopped with {len(outcome.absent)} fold runs left"
        console.print(left if outcome.limit else f"{left}; the same command goes on where it was")
        return INCOMPLETE if outcome.limit else INTERRUPTED
    return INCOMPLETE if outcome.failed or outcome.unwritten else OK


def _status(given: argparse.Namespace, console: Console) -> int:
    from sweeps.status import show_status

    name = find_sweep(given.sweep).stem
    told = show_status(
        given.out.absolute(),
        name,
        console,
        as_json=given.json,
        watch=given.watch,
        price=given.price,
        sync=lambda store: _sync_command(given.sweep, given.out, store),
    )
    return OK if told else WRONG


def _sync(given: argparse.Namespace, console: Console) -> int:
    from sweeps.records import Records
    from sweeps.study import read_study
    from sweeps.tracking import FAILURES, Tracker, default_uri

    out, name = given.out.absolute(), Path(given.sweep).stem
    studies = [read_study(path.parent) for path in sorted((out / "studies").glob(f"{name}-*/study.json"))]
    studies = [study for study in studies if study.sweep.name == name]
    if not studies:
        raise ValueError(f"no study of {name} under {out}; its records would lie there")
    uri = given.uri or default_uri(out)
    for study in studies:
        records = Records(out).read_all([run.id for run in study.fold_runs])
        # A search goes on with what it did not stop.
        stopped = {run.variant for run in study.fold_runs if run.id in records and records[run.id].status == "stopped"}
        given_up = stopped if study.sweep.stage == schema.SEARCH else set()
        try:
            written = Tracker(study, uri).sync(records, given_up)
        except FAILURES as error:
            told = schema.without_credentials(str(error).strip().splitlines()[0])
            console.print(
                f"[yellow]MLflow lacks some of study {study.id}[/yellow] ({escape(told)}); nothing is lost, the same "
                "command writes it later",
                soft_wrap=True,
            )
            return INCOMPLETE
        console.print(f"study {study.id}: {written} fold runs written, {len(records) - written} were there already")
    return OK


def _remeasure(given: argparse.Namespace, console: Console) -> int:
    from sweeps.refit import find_study
    from sweeps.remeasure import remeasure

    study = find_study(given.out.absolute(), Path(given.sweep).stem, given.study)
    told = list(remeasure(study))
    names = dict.fromkeys(name for _, new in told if new for name in new)
    lacking = [run.name for run, new in told if new is None]
    console.print(
        f"{sum(bool(new) for _, new in told)} of {len(told)} fold runs have new metrics: {', '.join(names) or 'none'}",
        soft_wrap=True,
    )
    if lacking:
        console.print(
            f"{len(lacking)} kept no embedding ({escape(lacking[0])} for one); --set 'resources.keep_embeddings=true' "
            "keeps those of a run",
            soft_wrap=True,
        )
    return max(_sync(given, console), INCOMPLETE if lacking else OK)


def _replay(given: argparse.Namespace, console: Console) -> int:
    from sweeps.replay import compare, find_grid, read_grid, show

    for name in ("workers", "repeats"):
        if getattr(given, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(given, name)}")
    study = find_grid(given.out.absolute(), find_sweep(given.sweep).stem)
    seeds = given.seeds or list(study.sweep.seeds[:1])
    judges = given.judge_seeds or [seed for seed in study.sweep.seeds if seed not in seeds]
    grid = read_grid(study, seeds, judges, given.metric)
    rows = compare(grid, given.strategy or [""], given.workers, given.repeats)
    if given.json:
        print(json.dumps([asdict(row) for row in rows], indent=1, allow_nan=False))
        return OK
    console.print(
        f"{len(grid.variants)} variants x {len(grid.blocks)} fold runs of seed {', '.join(map(str, seeds))}; judged by "
        f"{given.metric} of seed {', '.join(map(str, judges))}; the whole grid takes {duration(grid.seconds)}",
        soft_wrap=True,
    )
    show(rows, given.workers, console)
    return OK


def _refit(given: argparse.Namespace, console: Console) -> int:
    from sweeps.refit import find_study, plan_refit, train_refit
    from sweeps.tracking import FAILURES, default_uri, log_refit

    out = given.out.absolute()
    refit = plan_refit(find_study(out, Path(given.sweep).stem, given.study), given.variant)
    console.print(
        f"[bold]{escape(given.variant)}[/bold] on all {len(refit.rows):,} cells of {escape(refit.study.data.name)}: "
        f"{len(refit.lengths)} epochs, the median of the best epochs of {len(refit.records)} fold runs; "
        f"length {refit.length}",
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
    from sweeps.plan import size
    from sweeps.records import Records, folder_bytes

    garbage = list(Records(given.out.absolute()).garbage())
    freed = 0
    for path, reason in garbage:
        held = folder_bytes(path)
        freed += held
        told = f"{'would delete' if given.dry_run else 'deleted'} {path} ({size(held)}): {reason}"
        if not given.dry_run and path.is_dir():
            shutil.rmtree(path)
        elif not given.dry_run:
            path.unlink()
        console.print(escape(told), soft_wrap=True)
    console.print(f"{len(garbage)} found, {size(freed)}{'' if given.dry_run else ' freed'}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
