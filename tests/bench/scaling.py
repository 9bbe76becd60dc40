"""How cost grows with fold runs and workers. Wall time; rows of growth stand beside linear growth from a tenth as many.

A row of growth has as reference the time of a tenth of the fold runs, ten times: a ratio of 1 is linear growth, above
it slower; the first size has itself.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from analysis.runs import load_study
from guided.config import Config
from guided.data import Dataset
from guided.folds import make_folds
from guided.train import _Run
from sweeps import schema
from sweeps.plan import plan_of
from sweeps.records import Record, Records
from sweeps.replay import Course, Grid, full_grid
from sweeps.spec import load_sweep
from sweeps.strategy import End
from sweeps.study import Study, make_study, read_study
from tests.bench.parts import Bench, plain_run
from tests.bench.timing import Part, compare, of_pairs

SIMULATED = (8, 64, 512)  # workers
REPLAYED = 2000  # fold runs
DRIVEN = (100, 300)  # fold runs through Ray
FOLDS = 5


def sizes(bench: Bench) -> tuple[int, ...]:
    """Fold runs of the rows of growth."""
    return (100, 1_000, 10_000) if bench.scale.repeats > 1 else (10, 20)


def growth(part: str, measured: Sequence[tuple[int, float]], told: str) -> Iterator[Part]:
    """The rows of (fold runs, seconds), the exponent of growth in the note of the last."""
    counts, seconds = np.array(measured).T
    exponent = np.polyfit(np.log(counts), np.log(seconds), 1)[0]
    before = (int(counts[0]), float(seconds[0]))
    for count, took in measured:
        note = f"n: fold runs; {told}; {1000 * took / count:.2f} ms each"
        if count == counts[-1]:
            note += f"; time grows as n^{exponent:.2f}"
        yield of_pairs(part, [(before[1] * count / before[0], took)], n=count, clock="wall", note=note)
        before = (count, took)


# --- five folds ---------------------------------------------------------------------------------------------------


def five(bench: Bench) -> Iterator[Part]:
    """guideUMAP at 64, ResNet-18, the grid after every epoch, six epochs, all folds: the plain implementation, fold
    after fold with a thread a core, and `sweeps run` of the same, from command to report, on as many workers as cores
    of a thread each and on one worker of all threads."""
    full = bench.scale.repeats > 1
    config = bench.config(train={"epochs": 6 if full else 4, "batch_size": 64})
    size, limit = bench.scale.size, bench.scale.protocol
    data = bench.limited(limit, size)
    cores = len(os.sched_getaffinity(0))
    # A process of its own: in this one numba, and through it torch, is held to one thread.
    threads = {name: str(cores) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    with mock.patch.dict(os.environ, threads), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        began = time.perf_counter()
        folds = [pool.submit(plain_run, bench, data, fold, config).result() for fold in make_folds(data, config.folds)]
        plainly = time.perf_counter() - began
    told = ", ".join(f"{part} {sum(fold[part] for fold in folds):.0f}" for part in ("train", "embed", "refresh"))
    theirs = np.mean([fold["f1"] for fold in folds])
    for count, cpus in ((cores, 1), (1, cores))[: 2 if full else 1]:
        folder = Path(tempfile.mkdtemp(dir=bench.folder))
        began = time.perf_counter()
        found = _swept(bench, folder, config, data, count, cpus)
        took = time.perf_counter() - began
        ours = np.mean([record.metrics["test/f1_macro"] for record in found])
        yield of_pairs(
            f"five folds, {count} x {cpus} threads",
            [(plainly, took)],
            n=len(data.images),
            d=64,
            clock="wall",
            note=f"macro-F1 {theirs:.3f} / {ours:.3f}; CPU seconds of the reference: {told}; training of ours took "
            f"{spanned(found):.0f} s, the rest is Ray's start, MLflow and its end",
        )


def _swept(bench: Bench, folder: Path, config: Config, data: Dataset, workers: int, cpus: int) -> list[Record]:
    """The records of a sweep over one variant, `config`, on the cells of `data`."""
    told = config.model_dump(mode="json", exclude={"folds": {"holdout"}})
    base = {f"{section}.{key}": value for section, values in told.items() for key, value in values.items()}
    file = folder / "five.yaml"
    only = {"loss.lowpass": base.pop("loss.lowpass")}
    varied = {name: [value] for name, value in only.items()}
    sweep = {"question": "How long?", "kind": "ablation", "base": base, "vary": varied, "baseline": only}
    file.write_text(json.dumps(sweep))
    settings = f"data.size={data.images.shape[1]} resources.workers={workers} resources.cpus={cpus}"
    if bench.source == "synthetic":
        return _ran(file, folder / "out", "--set", f"{settings} data.cells={len(data.images)}")
    of = ["--data", bench.source, "--limit", str(bench.scale.protocol)]
    return _ran(file, folder / "out", "--set", settings, *of)


def _ran(file: Path, out: Path, *arguments: str) -> list[Record]:
    """The records of a sweep file, run from the command line."""
    command = [sys.executable, "-m", "sweeps", "run", str(file), "--preset", "laptop", "--out", str(out)]
    subprocess.run([*command, *arguments], check=True, capture_output=True)
    (study_folder,) = (out / "studies").iterdir()
    study = read_study(study_folder)
    return list(Records(out).read_all([run.id for run in study.fold_runs]).values())


# --- workers and threads --------------------------------------------------------------------------------------------


def finished(bench: Bench, folder: Path, workers: int, cpus: int) -> list[Record]:
    """The records of a fixed set of fold runs (two variants, five folds) trained by so many workers of so many
    threads."""
    file = folder / "workers.yaml"
    file.write_text(
        "question: How long?\nkind: ablation\nbase: {loss.name: guide_umap}\n"
        "vary: {loss.lowpass: [0.0, 0.6]}\nbaseline: {loss.lowpass: 0.6}\n"
    )
    full = bench.scale.repeats > 1
    cells = "data.cells=1200 train.epochs=4" if full else "data.cells=400 data.size=16 train.epochs=4"
    settings = f"{cells} resources.workers={workers} resources.cpus={cpus}"
    return _ran(file, folder / f"{workers}x{cpus}", "--set", settings)


def spanned(records: Sequence[Record]) -> float:
    """Seconds from the first fold run's beginning to the last one's end: without the start of Ray and its workers."""
    return max(r.details["ended"] for r in records) - min(r.details["began"] for r in records)


def workers(bench: Bench) -> Iterator[Part]:
    """A fixed set of fold runs on 1 worker of a thread, 2 workers of a thread, 1 worker of two threads; by replay of
    their times on more workers."""
    folder = Path(tempfile.mkdtemp(dir=bench.folder))
    cores = len(os.sched_getaffinity(0))
    one = finished(bench, folder, 1, 1)
    if cores >= 2:
        two, wide = finished(bench, folder, 2, 1), finished(bench, folder, 1, 2)
        rate = {name: 3600 * len(found) / spanned(found) for name, found in (("2x1", two), ("1x2", wide))}
        told = f"n: fold runs; {3600 * len(one) / spanned(one):.0f} fold runs an hour on one worker of one thread"
        yield of_pairs("2 workers for 1", [(spanned(one), spanned(two))], n=len(one), clock="wall", note=told)
        told = (
            f"n: fold runs; the reference is one worker of two threads, {rate['1x2']:.0f} fold runs an hour, ours are "
            f"two workers of one thread, {rate['2x1']:.0f}; the laptop preset has the latter"
        )
        pairs = [(spanned(wide), spanned(two))]
        yield of_pairs("2 workers x 1 thread", pairs, n=len(one), clock="wall", note=told)
    grid = _grid(folder, [sum(epoch[part] for part in schema.EPOCH_SECONDS) for r in one for epoch in r.history])
    for count in SIMULATED:
        makespan = full_grid(grid, count).makespan
        yield of_pairs(
            f"{count} simulated workers",
            [(grid.seconds, makespan)],
            n=len(grid.courses),
            clock="wall",
            note=f"n: fold runs, times drawn from those above; {grid.seconds / count / makespan:.0%} of the workers' "
            "time is training",
        )


def _grid(folder: Path, epochs: Sequence[float]) -> Grid:
    """A grid whose fold runs take four epochs of times drawn from `epochs`."""
    file = folder / "replayed.yaml"
    radii = [1.0 + index for index in range(REPLAYED // FOLDS)]
    file.write_text(
        f"question: How long?\nkind: ablation\nvary: {{guide.radius: {radii}}}\nbaseline: {{guide.radius: 1.0}}\n"
    )
    variants = load_sweep(str(file), preset="laptop").variants
    rng, end = np.random.default_rng(0), End("finished", (0.5,) * 4, values=(0.5,))
    blocks = tuple((0, fold, 0) for fold in range(FOLDS))
    courses = {
        (variant.config.id, *block): Course(end, tuple(rng.choice(epochs, 4)), 0.1)
        for variant in variants
        for block in blocks
    }
    return Grid(variants, blocks, courses, {})


def bf16(bench: Bench) -> Iterator[Part]:
    """A training step of the laptop's trunk in fp32 and in bf16."""
    data = bench.data(bench.scale.cells, bench.scale.size)
    able = torch.backends.cpu.get_cpu_capability()
    for trunk in ("resnet18", "densenet_small"):
        runs = {
            precision: bench.run(
                bench.config(backbone={"name": trunk}, train={"epochs": 4, "precision": precision}), data
            )
            for precision in ("fp32", "bf16")
        }
        rows = runs["fp32"].fold.train[:192].reshape(-1, 64)

        def step(precision: str, runs: dict[str, _Run] = runs, rows: np.ndarray = rows) -> None:
            run = runs[precision]
            run.net.train()
            run.optimizers.prepare(1e-3, 64)
            for part in rows:
                with run._precision():
                    p = run.net(run.images.batch(part), 64)
                run.optimizers.step(run.loss(p, run.labels[torch.from_numpy(part)]))

        yield compare(
            f"training step in bf16, {trunk}",
            lambda step=step: step("fp32"),  # type: ignore[misc]
            lambda step=step: step("bf16"),  # type: ignore[misc]
            n=rows.size,
            d=64,
            repeats=bench.scale.repeats,
            note=f"the reference is ours in fp32; {able}; off by default, because it changes results",
        )


# --- fold runs ------------------------------------------------------------------------------------------------------


def _sweep(folder: Path, fold_runs: int) -> Path:
    file = folder / f"of_{fold_runs}.yaml"
    radii = [1.0 + index for index in range(fold_runs // FOLDS)]
    file.write_text(
        "question: What does a sweep cost?\nkind: ablation\nbase: {loss.name: guide2d, embedding.length: 4}\n"
        f"vary: {{guide.radius: {radii}}}\nbaseline: {{guide.radius: 1.0}}\n"
    )
    return file


SMALL = "data.cells=400 data.size=16 train.epochs=4 train.batch_size=32"


def _study(folder: Path, fold_runs: int) -> Study:
    sweep = load_sweep(str(_sweep(folder, fold_runs)), preset="laptop", settings=SMALL)
    return make_study(sweep, folder / "out", progress=False)


def planning(bench: Bench) -> Iterator[Part]:
    """From a sweep file to the plan that is shown."""
    folder = Path(tempfile.mkdtemp(dir=bench.folder))
    _study(folder, sizes(bench)[0])  # renders the cells

    def plan(count: int) -> None:
        plan_of(_study(folder, count))

    yield from growth("planning", [(count, _took(lambda c=count: plan(c))) for count in sizes(bench)], "file to plan")  # type: ignore[misc]


def records(bench: Bench) -> Iterator[Part]:
    """Writing a record (synced to the disk, at the first size) and reading all of a sweep, digests checked."""
    folder = Path(tempfile.mkdtemp(dir=bench.folder))
    history = [{name: 0.5 for name in (*schema.EPOCH_SECONDS, schema.VAL_F1, schema.LENGTH)} for _ in range(10)]
    metrics = {f"test/f1/{index}": 0.5 for index in range(100)}
    read = []
    for count in sizes(bench):
        study = _study(folder, count)
        own = Records(folder / f"records-{count}")

        def write(study: Study = study, own: Records = own) -> None:
            for run in study.fold_runs:
                own.write(run, "finished", metrics=metrics, history=history, details={"began": 0.0, "ended": 1.0})

        if count == sizes(bench)[0]:
            took = _took(write)
            note = f"n: fold runs; no reference; {1000 * took / count:.1f} ms each, synced to the disk"
            yield of_pairs("writing records", [(took, took)], n=count, clock="wall", note=note)
        else:
            with mock.patch("os.fsync"):  # minutes of syncing would only say how fast the disk is
                write()
        ids = [run.id for run in study.fold_runs]
        read.append((count, _took(lambda own=own, ids=ids: own.read_all(ids))))  # type: ignore[misc]
    yield from growth("reading records", read, "each seal checked")


def reading(bench: Bench) -> Iterator[Part]:
    """A study out of MLflow's SQLite: one real fold run and its variant, copied inside the database."""
    folder = Path(tempfile.mkdtemp(dir=bench.folder))
    out = folder / "out"
    command = [sys.executable, "-m", "sweeps", "run", str(_sweep(folder, FOLDS)), "--preset", "laptop"]
    subprocess.run([*command, "--out", str(out), "--set", SMALL], check=True, capture_output=True)
    measured, have = [], FOLDS
    load_study(f"sqlite:///{out / 'mlflow.db'}", f"of_{FOLDS}")  # its imports
    for count in sizes(bench):
        _copy(out / "mlflow.db", have // FOLDS, count // FOLDS)
        have = count
        measured.append((count, _took(lambda: load_study(f"sqlite:///{out / 'mlflow.db'}", f"of_{FOLDS}"))))
    yield from growth("reading a study", measured, "from SQLite to the tidy frame")


def _copy(path: Path, have: int, wanted: int) -> None:
    """Copy the first variant of the store with its fold runs, from number `have` on until there are `wanted`."""
    with closing(sqlite3.connect(path)) as store, store:
        query = "select run_uuid from tags where key = ? and value = ? order by rowid"
        ((parent,), *_) = store.execute(query, (schema.ROLE, schema.VARIANT_ROLE))
        runs = [parent, *(run for (run,) in store.execute(query, ("mlflow.parentRunId", parent)))]
        own = {schema.VARIANT, schema.VARIANT_ID, schema.FOLD_RUN}
        for table in ("runs", "tags", "params", "latest_metrics"):
            names = [row[1] for row in store.execute(f"pragma table_info({table})")]
            marks = ",".join("?" * len(runs))
            rows = list(store.execute(f"select * from {table} where run_uuid in ({marks})", runs))
            copies = []
            for index in range(have, wanted):
                for row in rows:
                    told = dict(zip(names, row, strict=True))
                    told["run_uuid"] = f"{index:08x}{told['run_uuid'][8:]}"
                    key = told.get("key")
                    if table == "tags" and key in own:
                        told["value"] += f" {index}"
                    elif table == "tags" and key == "mlflow.parentRunId":
                        told["value"] = f"{index:08x}{parent[8:]}"
                    elif table == "tags" and key in (schema.ORDER, schema.BASELINE):
                        told["value"] = str(index) if key == schema.ORDER else "false"
                    copies.append(tuple(told.values()))
            store.executemany(f"insert into {table} values ({','.join('?' * len(names))})", copies)


def driver(bench: Bench) -> Iterator[Part]:
    """Fold runs that only sleep, through Ray Tune into records: what is around them, on two workers. 10,000 would take
    a quarter of an hour: the exponent tells what to expect."""
    measured, cpu = [], 0.0
    for count in DRIVEN if bench.scale.repeats > 1 else DRIVEN[:1]:
        command = [sys.executable, "-m", "tests.sweeps.overhead", str(count), "0.2"]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        measured.append((count, told["warm_s"] - told["pure_s"]))
        cpu = told["driver_cpu_ms_per_fold_run"]
    said = f"beyond two workers asleep; {cpu:.0f} ms of CPU a fold run at the most"
    if len(measured) > 1:
        yield from growth("driver", measured, said)
    else:
        ((count, took),) = measured
        yield of_pairs("driver", [(took, took)], n=count, clock="wall", note=f"n: fold runs; {said}")


def _took(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


PARTS: dict[str, Callable[[Bench], Iterator[Part]]] = {
    "five": five,
    "workers": workers,
    "bf16": bf16,
    "planning": planning,
    "driver": driver,
    "records": records,
    "reading": reading,
}
