"""What a worker does: it drives `guided.train.run_fold`, one step an epoch, and writes the records."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import socket
import sys
import time
from collections.abc import Generator
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from guided.data import Dataset
from guided.train import Diverged, Epoch, FoldResult, run_fold, saved_history, warmup_key
from sweeps import schema
from sweeps.attempt import Attempt, attempts_in
from sweeps.place import NODE_DATA, node_copy
from sweeps.records import PROGRESS, FoldRun, Records
from sweeps.study import Study, read_study
from sweeps.usage import Usage, with_usage

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # what another try would meet again
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h
CONTEXT_BYTES = 700 * 2**20  # what a process's CUDA context takes of the GPU besides torch's memory


class Work:
    """One fold run after another, step by step. What is asked for is the id of a fold run and the folder and digest of
    the plan that it stands in.

    A fold run that diverges ends as done, with its record: only real faults raise, because Tune never reuses the actor
    of a trial that raised. Tune's own checkpoints are not used; `run_fold` keeps its own.
    """

    def __init__(self, *, alone: bool) -> None:
        self._alone = alone  # whether nothing else runs beside it
        self._asked: dict[str, Any] | None = None
        self._generator: Generator[Epoch, None, FoldResult] | None = None

    def ask(self, config: dict[str, Any]) -> None:
        """Turn to another fold run. It is begun by the first step: what goes wrong there is an error of the fold run
        with its cause, not of the actor."""
        self.close()
        self._asked = config

    def _begin(self, config: dict[str, Any]) -> None:
        study, runs = _study(config["study"], config["plan"])
        self._study_of, self._fold_run = study, runs[config["fold_run"]]
        resources = study.sweep.resources
        limit_threads(resources.cpus)
        keep_memory()
        if resources.device == "cuda" and torch.cuda.is_available():
            torch.cuda.empty_cache()
            limit_gpu_memory(1.0 if self._alone else min(resources.gpus, 1.0))
        self._records = Records(study.out)
        self._seconds = 0.0  # trained by this attempt
        fold = study.folds[self._fold_run.partition][self._fold_run.fold]
        self._fold = fold
        self._generator = run_fold(
            study.data,
            fold,
            study.guides[self._fold_run.config.id],
            self._fold_run.config,
            seed=self._fold_run.seed,
            device=resources.device,
            checkpoint=self._records.checkpoint(self._fold_run.id),
            warmups=study.warmups if self._shares_warmup() else None,
            embeddings=study.embeddings,
            keep=study.keeps(self._fold_run.config),
        )
        checkpoint = self._records.checkpoint(self._fold_run.id)
        self._attempt = Attempt.begin(checkpoint)
        self._usage = Usage(checkpoint, resources.device) if resources.system_metrics else None

    def _shares_warmup(self) -> bool:
        """Whether another variant of the study passes through the same warm-up, on every fold."""
        key = warmup_key(self._fold_run.config)
        alike = [variant for variant in self._study_of.sweep.variants if warmup_key(variant.config) == key]
        return key is not None and len(alike) > 1

    def close(self) -> None:
        if self._generator is not None:
            self._generator.close()
            self._generator = None

    def step(self) -> dict[str, Any]:
        """One epoch; the step after the last one tests and writes the record. A fold run that a search wants stopped
        writes its record instead of another epoch."""
        try:
            return self._step()
        except OSError as error:
            if error.errno not in FULL:
                raise
            self.close()
            return {"hindered": f"{type(error).__name__}: {error}", "done": True}

    def _step(self) -> dict[str, Any]:
        if self._asked is not None:
            self._begin(self._asked)
            self._asked = None
        if self._generator is None:
            raise RuntimeError(f"fold run {self._fold_run.name} has ended")
        if self._records.has(self._fold_run.id):
            return {"done": True}  # this or another process wrote it and died before it could tell
        self._attempt.check()
        reason = self._records.stop_asked(self._fold_run.id)
        if reason is not None:
            return self._halt(reason)
        try:
            epoch = next(self._generator)
        except StopIteration as end:
            return self._finish(end.value)
        except Diverged as error:
            return self._diverge(error)
        except (MemoryError, RuntimeError) as error:
            if self._alone or not out_of_memory(error):
                raise
            told = f"{type(error).__name__}: {error}"
            self.close()
            return {"out_of_memory": told, "done": True}
        return self._report(epoch)

    def _report(self, epoch: Epoch) -> dict[str, Any]:
        folder = self._records.checkpoint(self._fold_run.id)
        self._attempt.trained(int(epoch["epoch"]))
        if self._usage is not None:
            self._usage.note(int(epoch["epoch"]))
        told = {"epoch": int(epoch["epoch"]), "val_f1": epoch[schema.VAL_F1], "length": epoch[schema.LENGTH]}
        temporary = folder / f"{PROGRESS}-{os.getpid()}"
        self._seconds += sum(epoch[part] for part in schema.EPOCH_SECONDS)
        temporary.write_text(json.dumps(told | {"time": time.time(), "seconds": self._seconds}))
        os.replace(temporary, folder / PROGRESS)
        return told | {"done": False}

    def _finish(self, result: FoldResult) -> dict[str, Any]:
        self._attempt.check()
        data, run = self._study_of.data, self._fold_run
        predictions = pd.DataFrame(
            {
                "id": data.ids[result.test_rows],
                "true": np.array(data.classes)[data.labels[result.test_rows]],
                "predicted": np.array(data.classes)[result.predicted],
            }
        )
        for name, of_cells in ((schema.REGION, data.region), (schema.PATIENT, data.patient)):
            if of_cells is not None:
                predictions[name] = of_cells[result.test_rows]
        scores = pd.DataFrame(result.scores, columns=[f"score/{name}" for name in data.classes])
        details = self._details()
        self._records.write(
            run,
            "finished",
            metrics=result.metrics,
            history=self._measured(result.history),
            details={
                **details,
                "classifier": result.classifier,
                "grid": result.grid,
                "notes": result.notes,
                "reused": not any("first_epoch" in attempt for attempt in details["attempts"]),
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
        history = self._measured(error.history)
        self._records.write(self._fold_run, "diverged", reason=str(error), history=history, details=details)
        self._records.drop_checkpoint(self._fold_run.id)
        return {"epoch": len(error.history), "done": True}

    def _halt(self, reason: str) -> dict[str, Any]:
        self.close()
        history = saved_history(self._records.checkpoint(self._fold_run.id))
        details = {**self._details(), "notes": []}
        measured = self._measured(history)
        self._records.write(self._fold_run, "stopped", reason=reason, history=measured, details=details)
        self._records.drop_checkpoint(self._fold_run.id)
        return {"epoch": len(history), "done": True}

    def _measured(self, history: list[dict[str, float]]) -> list[dict[str, float]]:
        return with_usage(history, self._records.checkpoint(self._fold_run.id))

    def _details(self) -> dict[str, Any]:
        return {
            "grouped_by": self._fold.grouped_by,
            "host": socket.gethostname(),
            "device": _device_name(self._study_of.sweep.resources.device),
            "threads": torch.get_num_threads(),
            "attempts": attempts_in(self._records.checkpoint(self._fold_run.id)),
            "began": self._attempt.first_began,
            "ended": time.time(),
            "versions": _versions(),
        }


def limit_threads(cpus: int) -> None:
    """Let every library of this process use `cpus` threads, loaded (torch, BLAS, OpenMP) or not yet (numba)."""
    torch.set_num_threads(cpus)
    threadpool_limits(cpus)
    if "numba" not in sys.modules:
        os.environ["NUMBA_NUM_THREADS"] = str(cpus)  # numba reads it once, when it is imported
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(cpus)  # for what is loaded later


def keep_memory() -> None:
    """Let glibc keep what is freed up to 1 GB. By default what is larger than 32 MB, as activations are, goes back to
    the system each time and comes again page by page, which takes about 4 % of the passes (NOTES.md)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # One that refuses the first must not be given the second: it would stop to adapt, and map all that is large.
    if mallopt is not None and mallopt(MMAP_THRESHOLD, 2**30):
        mallopt(TRIM_THRESHOLD, 2**31 - 1)


def limit_gpu_memory(share: float) -> None:
    """Cap torch's memory on the GPU at `share` of it, a CUDA context included; Ray's shares only count."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0 if share == 1 else max(share - CONTEXT_BYTES / total, 0.0))


def out_of_memory(error: BaseException) -> bool:
    """Whether host or device memory ran out, by kind or (torch's CPU allocator, cuBLAS) by message."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error)
        for words in ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )


@lru_cache(maxsize=2)
def _study(folder: str, plan: str) -> tuple[Study, dict[str, FoldRun]]:
    """The study and its fold runs by id, read once per worker and plan (a plan that grew has another digest)."""
    study = read_study(Path(folder))
    if os.environ.get(NODE_DATA):
        study = replace(study, data=Dataset.open(node_copy(study.data.directory)))
    return study, {run.id: run for run in study.fold_runs}


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "umap-learn", "scikit-learn", "numpy", "numba", "ray")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
