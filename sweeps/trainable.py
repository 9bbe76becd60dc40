"""A Ray trial is a fold run: the class Trainable that drives `guided.train.run_fold`, one step an epoch."""

from __future__ import annotations

import json
import os
import platform
import socket
import time
from collections.abc import Generator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ray.tune import Trainable

from guided.train import Diverged, Epoch, FoldResult, run_fold
from sweeps import schema
from sweeps.records import PROGRESS, FoldRun, Records
from sweeps.study import Study, read_study


class FoldRunTrial(Trainable):
    """One fold run. Its configuration is the id of the fold run and the folder of the study.

    A fold run that diverges ends as done, with its record: only real faults raise, because Tune never reuses the actor
    of a trial that raised. Tune's own checkpoints are not used; `run_fold` keeps its own.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._close()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        self._close()

    def _begin(self, config: dict[str, Any]) -> None:
        study, runs = _study(config["study"], config["plan"])
        self._study_of, self._fold_run = study, runs[config["fold_run"]]
        resources = study.sweep.resources
        torch.set_num_threads(resources.cpus)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._records = Records(study.out)
        self._began = time.time()
        fold = study.folds[self._fold_run.partition][self._fold_run.fold]
        self._fold = fold
        self._generator: Generator[Epoch, None, FoldResult] | None = run_fold(
            study.data,
            fold,
            study.guides[self._fold_run.config.id],
            self._fold_run.config,
            seed=self._fold_run.seed,
            device=resources.device,
            checkpoint=self._records.checkpoint(self._fold_run.id),
        )

    def _close(self) -> None:
        if getattr(self, "_generator", None) is not None:
            self._generator.close()  # type: ignore[union-attr]
            self._generator = None

    def step(self) -> dict[str, Any]:
        """One epoch; the step after the last one tests and writes the record."""
        if self._generator is None:
            raise RuntimeError(f"fold run {self._fold_run.name} has ended")
        try:
            epoch = next(self._generator)
        except StopIteration as end:
            return self._finish(end.value)
        except Diverged as error:
            return self._diverge(error)
        return self._report(epoch)

    def _report(self, epoch: Epoch) -> dict[str, Any]:
        folder = self._records.checkpoint(self._fold_run.id)
        told = {"epoch": int(epoch["epoch"]), "val_f1": epoch[schema.VAL_F1], "length": epoch[schema.LENGTH]}
        temporary = folder / f"{PROGRESS}-{os.getpid()}"
        temporary.write_text(json.dumps(told | {"time": time.time()}))
        os.replace(temporary, folder / PROGRESS)
        return told | {"done": False}

    def _finish(self, result: FoldResult) -> dict[str, Any]:
        data, run = self._study_of.data, self._fold_run
        predictions = pd.DataFrame(
            {
                "id": data.ids[result.test_rows],
                "true": np.array(data.classes)[data.labels[result.test_rows]],
                "predicted": np.array(data.classes)[result.predicted],
            }
        )
        scores = pd.DataFrame(result.scores, columns=[f"score/{name}" for name in data.classes])
        self._records.write(
            run,
            "finished",
            metrics=result.metrics,
            history=result.history,
            details={
                **self._details(),
                "classifier": result.classifier,
                "grid": result.grid,
                "notes": result.notes,
            },
            predictions=pd.concat([predictions, scores], axis=1),
            arrays={
                "test_embedding": result.embedding,
                "test_labels": data.labels[result.test_rows],
                "anchors": result.anchors,
                **({} if result.guide is None else {"guide": result.guide}),
                "guide_2d": self._study_of.guides[run.config.id].points,
                "classes": np.array(data.classes),
            },
        )
        self._records.drop_checkpoint(run.id)
        return {
            "epoch": len(result.history) - 1,
            "val_f1": result.metrics[schema.BEST_VAL_F1],
            "length": result.metrics[schema.BEST_LENGTH],
            "done": True,
        }

    def _diverge(self, error: Diverged) -> dict[str, Any]:
        details = {**self._details(), "notes": []}
        self._records.write(self._fold_run, "diverged", reason=str(error), history=error.history, details=details)
        self._records.drop_checkpoint(self._fold_run.id)
        return {"epoch": len(error.history), "done": True}

    def _details(self) -> dict[str, Any]:
        return {
            "grouped_by": self._fold.grouped_by,
            "host": socket.gethostname(),
            "device": _device_name(self._study_of.sweep.resources.device),
            "threads": torch.get_num_threads(),
            "began": self._began,
            "ended": time.time(),
            "versions": _versions(),
        }


@lru_cache(maxsize=2)
def _study(folder: str, plan: str) -> tuple[Study, dict[str, FoldRun]]:
    """The study and its fold runs by id, read once per worker and plan (a plan that grew has another digest)."""
    study = read_study(Path(folder))
    return study, {run.id: run for run in study.fold_runs}


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "umap-learn", "scikit-learn", "numpy", "numba", "ray")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
