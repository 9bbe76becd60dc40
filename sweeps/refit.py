"""The chosen variant trained once on all cells: a model to use, never "the best fold's".

The folds have said how well the variant does and how long it trains; here nothing is held out, so nothing is measured.
Epochs, confidence and distances therefore come from the records of the fold runs.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import Progress

from guided.classify import grid_search
from guided.config import METHOD_VERSION, content_id
from guided.folds import holdout_rows
from guided.growth import length_at
from guided.model import Calibration, GuidedModel, HeldOut, calibrate, load_model, make_model, save_model
from guided.train import Epoch, fit_all
from sweeps import schema
from sweeps.records import Record, Records
from sweeps.spec import Variant, did_you_mean
from sweeps.study import Study, read_study


@dataclass(frozen=True)
class Refit:
    """What a refit of a variant will do, from the records of its fold runs."""

    study: Study
    variant: Variant
    records: dict[str, Record]  # of its fold runs, all finished
    seed: int
    lengths: tuple[int, ...]  # of the embedding in each epoch: as many epochs as it trains
    rows: np.ndarray  # (N,) cells it trains on: all but the hold-out
    calibration: Calibration

    @property
    def id(self) -> str:
        """Sixteen hex digits of everything that may change the model."""
        run = self.study.runs_of(self.variant)[0]
        return content_id(
            {
                "config": run.config.id,
                "data": run.data,
                "guide": run.guide,
                "seed": self.seed,
                "lengths": list(self.lengths),
                "cells": len(self.rows),
                "fold runs": sorted(self.records),
                "method": METHOD_VERSION,
            },
            16,
        )

    @property
    def length(self) -> int:
        """Of the embedding that the model gives."""
        return self.variant.config.seen(self.lengths[-1])

    @property
    def path(self) -> Path:
        """The model file in OUT."""
        return self.study.out / "models" / f"{self.id}.npz"

    def train(self, device: str, checkpoint: Path) -> Generator[Epoch, None, None]:
        """Train, choose the classifier on all cells, write the file; yields the record of each epoch."""
        study, config = self.study, self.variant.config
        guide, data = study.guides[config.id], study.data
        if data.field is None:
            raise ValueError(
                f"the cache {data.directory} does not say how many px of an image a patch covers; delete it, run "
                "`sweeps plan` on the same data to decode them again, then refit"
            )
        fitted = yield from fit_all(
            data, self.rows, guide, config, self.lengths, seed=self.seed, device=device, checkpoint=checkpoint
        )
        labels = data.labels[self.rows]
        chosen = grid_search(fitted.embedding, labels, len(data.classes), config.classifier, seed=self.seed)
        about = self._about() | {"classifier": chosen.label, "history": fitted.history}
        model = make_model(
            fitted,
            labels,
            guide,
            chosen,
            self.calibration,
            trunk=config.backbone.name,
            size=study.sweep.data.size,
            field=data.field,
            about=about,
        )
        save_model(model, self.path)
        shutil.rmtree(checkpoint, ignore_errors=True)

    def _about(self) -> dict[str, Any]:
        study = self.study
        scores = [record.metrics[study.sweep.metric] for record in self.records.values()]
        return {
            "refit": self.id,
            "sweep": study.sweep.name,
            "study": study.id,
            "variant": self.variant.label,
            "config": self.variant.config.model_dump(mode="json"),
            "config_id": self.variant.config.id,
            "data": study.data.name,
            "data_fingerprint": study.data.fingerprint,
            "guide_hash": study.guides[self.variant.config.id].hash,
            "cells": len(self.rows),
            "seed": self.seed,
            "epochs": len(self.lengths),
            "length": self.length,
            "fold_runs": sorted(self.records),
            "held_out": {"metric": study.sweep.metric, "mean": float(np.mean(scores)), "fold_runs": len(scores)},
            "method": METHOD_VERSION,
        }


def find_study(out: Path, sweep: str, study: str | None) -> Study:
    """The study of `sweep` under `out` with the id `study`; without one, that started last.

    Raises ValueError where there is none.
    """
    folders = [folder for folder in sorted((out / "studies").glob(f"{sweep}-*")) if (folder / "study.json").exists()]
    studies = [found for folder in folders if (found := read_study(folder)).sweep.name == sweep]
    if study is not None:
        chosen = [found for found in studies if found.id == study]
        if not chosen:
            known = ", ".join(found.id for found in studies) or "none"
            raise ValueError(f"sweep {sweep!r} has no study {study!r} in {out}; there are: {known}")
        return chosen[0]
    if not studies:
        raise ValueError(f"no study of {sweep!r} in {out}; run the sweep first: `sweeps run {sweep}`")
    return max(studies, key=lambda found: found.started)


def plan_refit(study: Study, label: str) -> Refit:
    """The refit of the variant `label`.

    It trains for as many epochs as the median of its fold runs took to their best one, with the lengths that the folds
    had in these epochs (the lower median where a plateau made them differ), and with the first seed. Raises ValueError
    for a variant that the study does not have, and where one of its fold runs is missing, failed or without the class
    means that the calibration needs.
    """
    variants = {variant.label: variant for variant in study.sweep.variants}
    if label not in variants:
        raise ValueError(
            f"sweep {study.sweep.name!r} has no variant {label!r}{did_you_mean(label, variants)} "
            f"(there are: {', '.join(variants)})"
        )
    variant, runs = variants[label], study.runs_of(variants[label])
    records = Records(study.out).read_all([run.id for run in runs])
    lacking = [run.name for run in runs if run.id not in records or records[run.id].status != "finished"]
    if lacking:
        raise ValueError(
            f"{len(lacking)} of {len(runs)} fold runs of {label!r} are not finished ({lacking[0]}); run the sweep to "
            "its end first: how long to train and how sure to be is known from its folds"
        )
    best = [int(record.metrics[schema.BEST_EPOCH]) for record in records.values()]
    epochs = statistics.median_high(best) + 1  # they count from 0
    return Refit(
        study=study,
        variant=variant,
        records=records,
        seed=study.sweep.seeds[0],
        lengths=tuple(_length(variant, epoch, records) for epoch in range(epochs)),
        rows=np.setdiff1d(np.arange(len(study.data.labels)), holdout_rows(study.data, variant.config.folds)),
        calibration=calibrate([_held_out(record, study) for record in records.values()]),
    )


def _length(variant: Variant, epoch: int, records: dict[str, Record]) -> int:
    embedding, epochs = variant.config.embedding, variant.config.train.epochs
    if not (embedding.growing and embedding.rule == "plateau"):
        return length_at(epoch, embedding, epochs)
    # A plateau grows where validation stalls: here nothing validates, so the folds say when. The running maximum,
    # because the median may fall where a fold run ends, and an embedding never shrinks.
    reached = [record.history for record in records.values()]
    return max(
        int(statistics.median_low([history[e][schema.LENGTH] for history in reached if e < len(history)]))
        for e in range(epoch + 1)
    )


def _held_out(record: Record, study: Study) -> HeldOut:
    with np.load(record.folder / schema.ARRAYS, allow_pickle=False) as arrays:
        if "anchors" not in arrays:
            raise ValueError(
                f"the record {record.folder} is from before fold runs kept their class means, which confidence and "
                "distance are calibrated on; set the folder aside and run the sweep again to train that fold run anew"
            )
        embedding, labels, anchors = (arrays[name] for name in ("test_embedding", "test_labels", "anchors"))
    predicted = pd.read_parquet(record.folder / schema.PREDICTIONS, columns=["predicted"])["predicted"]
    number_of = {name: number for number, name in enumerate(study.data.classes)}
    return HeldOut(embedding, labels, predicted.map(number_of).to_numpy(), anchors)


def train_refit(refit: Refit, device: str, console: Console) -> GuidedModel:
    """The model of a refit, trained into its file unless that is there.

    A training that was stopped goes on from its last epoch. Raises ValueError where the file is damaged.
    """
    if refit.path.exists():
        console.print("the model is there already; nothing to train")
        return load_model(refit.path)
    torch.set_num_threads(refit.study.sweep.resources.cpus)  # as in the fold runs
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=len(refit.lengths))
        for epoch in refit.train(device, Records(refit.study.out).checkpoint(f"refit-{refit.id}")):
            bar.update(task, completed=epoch["epoch"] + 1)
    return load_model(refit.path)
