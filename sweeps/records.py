"""The record of a fold run: content-addressed, written atomically, checked when read. It is the truth; MLflow is its
projection, and what has a record is never trained again.

Layout under OUT: `records/<id>/` holds record.json, predictions.parquet and arrays.npz; `checkpoints/<id>/` the state
of a fold run that is under way; `added/<id>.json` metrics that were computed later.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import pandas as pd

from guided.config import METHOD_VERSION, Config, content_id
from sweeps import schema
from sweeps.attempt import attempts_in
from sweeps.budget import Span, attempt_spans, record_spans
from sweeps.lock import holder

PROGRESS = "progress.json"  # in the checkpoint folder: what `status` shows of a fold run under way
STOP = "stop.txt"  # there too: why a search will have it stop before its next epoch

Status = Literal["finished", "failed", "diverged", "stopped"]
BROKEN = ("failed", "diverged")  # what may be tried again; what a search stopped may not
RECORD_VERSION = 1


@dataclass(frozen=True)
class FoldRun:
    """The unit of work: one variant on one fold of one partition with one seed."""

    variant: str  # label
    config: Config
    data: str  # fingerprint
    guide: str  # hash
    partition: int
    fold: int
    seed: int

    @cached_property
    def id(self) -> str:
        """Sixteen hex digits of everything that may change the result."""
        return content_id(
            {
                "config": self.config.id,
                "data": self.data,
                "guide": self.guide,
                "partition": self.partition,
                "fold": self.fold,
                "seed": self.seed,
                "method": METHOD_VERSION,
            },
            16,
        )

    @property
    def name(self) -> str:
        """What a person reads."""
        return f"{self.variant} · partition {self.partition} · fold {self.fold} · seed {self.seed}"


class CorruptRecord(ValueError):
    """A record that is there but cannot be trusted."""


@dataclass(frozen=True)
class Record:
    """What one fold run left."""

    id: str
    status: Status
    reason: str  # why it is not finished; empty otherwise
    identity: dict[str, Any]  # config, data, guide, partition, fold, seed, method
    metrics: dict[str, float]
    history: list[dict[str, float]]
    details: dict[str, Any]  # classifier, grid, notes, grouping, versions, times, whether the embedding was reused
    folder: Path
    added: str = ""  # digest of the metrics that were computed later, from the kept embedding

    def artifacts(self) -> list[Path]:
        """Files beside record.json."""
        names = (schema.PREDICTIONS, schema.ARRAYS)
        return [self.folder / name for name in names if (self.folder / name).exists()]


class Records:
    """The records under one OUT folder."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.folder = out / "records"
        self._checkpoints = out / "checkpoints"
        self._added = out / "added"

    def checkpoint(self, run_id: str) -> Path:
        """Folder of the state of a fold run under way."""
        return self._checkpoints / run_id

    def ask_stop(self, run_id: str, reason: str) -> None:
        """Leave word for a fold run under way that it shall stop before its next epoch. It is read wherever the fold
        run goes on, so a worker that is lost in between loses nothing of it."""
        folder = self.checkpoint(run_id)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{STOP}-{os.getpid()}"
        temporary.write_text(reason, encoding="utf-8")
        os.replace(temporary, folder / STOP)

    def stop_asked(self, run_id: str) -> str | None:
        """Why a fold run shall stop; None where it may go on."""
        try:
            return (self.checkpoint(run_id) / STOP).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def has(self, run_id: str) -> bool:
        """Whether a record of that id exists (sound or not)."""
        return (self.folder / run_id).exists()

    def read(self, run_id: str) -> Record | None:
        """The record, or None where there is none. Raises CorruptRecord naming the file that is damaged."""
        folder = self.folder / run_id
        return self._read(folder, run_id) if folder.exists() else None

    def _read(self, folder: Path, run_id: str) -> Record:
        path = folder / schema.RECORD
        try:
            sealed = json.loads(path.read_text(encoding="utf-8"))
            content = sealed["content"]
            sound = sealed["seal"] == _seal(content)
        except FileNotFoundError:
            raise CorruptRecord(f"record {path} is missing its file; {_way_out(folder)}") from None
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
            raise CorruptRecord(f"record {path} is damaged; {_way_out(folder)}") from None
        if not sound or content["id"] != run_id:
            raise CorruptRecord(f"record {path} has been altered; {_way_out(folder)}")
        for name, digest in content["files"].items():
            file = folder / name
            if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
                raise CorruptRecord(f"record file {file} is missing or damaged; {_way_out(folder)}")
        added = self._later(run_id)
        return Record(
            id=run_id,
            status=content["status"],
            reason=content["reason"],
            identity=content["identity"],
            metrics={**added, **content["metrics"]},
            history=content["history"],
            details=content["details"],
            folder=folder,
            added=content_id(added) if added else "",
        )

    def _later(self, run_id: str) -> dict[str, float]:
        """The metrics of a fold run that `add` put beside its record."""
        path = self._added / f"{run_id}.json"
        try:
            sealed = json.loads(path.read_text(encoding="utf-8"))
            metrics: dict[str, float] = sealed["content"]["metrics"]
            sound = sealed["seal"] == _seal(sealed["content"]) and sealed["content"]["id"] == run_id
        except FileNotFoundError:
            return {}
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
            sound = False
        if not sound:
            raise CorruptRecord(f"the added metrics {path} are damaged; delete the file and compute them again")
        return metrics

    def add(self, record: Record, metrics: dict[str, float]) -> dict[str, float]:
        """Put metrics beside a record that does not have them, and return those: what is recorded, there or by an
        earlier call, stays as it is. Raises ValueError for a metric that is not finite."""
        new = {key: value for key, value in metrics.items() if key not in record.metrics}
        for key, value in new.items():
            if not np.isfinite(value):
                raise ValueError(f"fold run {record.id}: metric {key!r} is {value}; leave it out")
        if new:
            content = {"id": record.id, "metrics": self._later(record.id) | new}
            text = json.dumps({"seal": _seal(content), "content": content}, indent=1, allow_nan=False)
            self._added.mkdir(parents=True, exist_ok=True)
            temporary = self._added / f".writing-{record.id}-{uuid4().hex[:8]}"
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, self._added / f"{record.id}.json")
        return new

    def read_all(self, run_ids: list[str]) -> dict[str, Record]:
        """The records that exist. Raises CorruptRecord naming every damaged one at once."""
        found, damaged = {}, []
        for run_id in run_ids:
            try:
                record = self.read(run_id)
            except CorruptRecord as error:
                damaged.append(str(error))
                continue
            if record is not None:
                found[run_id] = record
        if damaged:
            raise CorruptRecord("\n".join(damaged))
        return found

    def write(
        self,
        run: FoldRun,
        status: Status,
        *,
        reason: str = "",
        metrics: dict[str, float] | None = None,
        history: list[dict[str, float]] | None = None,
        details: dict[str, Any] | None = None,
        predictions: pd.DataFrame | None = None,
        arrays: dict[str, np.ndarray] | None = None,
    ) -> Path:
        """Write a record whole or not at all; a record that is there already stays as it is.

        Raises ValueError for a metric that is not finite: what is missing is left out, never written as a number.
        """
        metrics, history = metrics or {}, history or []
        for key, value in [*metrics.items(), *(item for epoch in history for item in epoch.items())]:
            if not np.isfinite(value):
                raise ValueError(
                    f"fold run {run.name}: metric {key!r} is {value}; leave it out or mark the run diverged"
                )
        files: dict[str, bytes] = {}
        if predictions is not None:
            buffer = io.BytesIO()
            predictions.to_parquet(buffer, index=False)
            files[schema.PREDICTIONS] = buffer.getvalue()
        if arrays is not None:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **arrays)
            files[schema.ARRAYS] = buffer.getvalue()
        content = {
            "version": RECORD_VERSION,
            "id": run.id,
            "status": status,
            "reason": reason,
            "identity": {
                "variant": run.variant,
                "config": run.config.model_dump(mode="json"),
                "config_id": run.config.id,
                "data": run.data,
                "guide": run.guide,
                "partition": run.partition,
                "fold": run.fold,
                "seed": run.seed,
                "method": METHOD_VERSION,
            },
            "metrics": metrics,
            "history": history,
            "details": details or {},
            "files": {name: hashlib.sha256(body).hexdigest() for name, body in files.items()},
        }
        text = json.dumps({"seal": _seal(content), "content": content}, indent=1, allow_nan=False, ensure_ascii=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / run.id
        temporary = self.folder / f".writing-{run.id}-{uuid4().hex[:8]}"
        temporary.mkdir()
        try:
            for name, body in [*files.items(), (schema.RECORD, text.encode())]:
                with (temporary / name).open("wb") as file:
                    file.write(body)
                    file.flush()
                    os.fsync(file.fileno())
            try:
                os.rename(temporary, target)
            except OSError:
                if not target.exists():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return target

    def set_aside(self, run_id: str) -> Path:
        """Move a record out of the way, so that its fold run is tried again; nothing is deleted."""
        attempt = 1
        while (aside := self.folder / f"{run_id}.attempt{attempt}").exists():
            attempt += 1
        os.rename(self.folder / run_id, aside)
        return aside

    def beside(self, run_ids: Iterable[str]) -> dict[str, list[Span]]:
        """When fold runs were under way without a record to tell of it, by id: those that are under way or broken off,
        and those that failed and were set aside. Raises CorruptRecord naming a damaged one."""
        begun = {path.name for path in self._checkpoints.iterdir()} if self._checkpoints.exists() else set()
        aside = {path.stem for path in self.folder.glob("*.attempt*")}
        return {run_id: spans for run_id in run_ids if run_id in begun | aside and (spans := self.beside_of(run_id))}

    def beside_of(self, run_id: str) -> list[Span]:
        """When one fold run was under way without a record to tell of it."""
        spans = [] if self.has(run_id) else attempt_spans(attempts_in(self.checkpoint(run_id)))
        attempt = 1
        while (aside := self.folder / f"{run_id}.attempt{attempt}").exists():
            record = self._read(aside, run_id)
            spans += record_spans(record) if record.status in BROKEN else []  # what a search stopped is that search's
            attempt += 1
        return spans

    def drop_checkpoint(self, run_id: str) -> None:
        """Free what a finished fold run no longer needs."""
        shutil.rmtree(self.checkpoint(run_id), ignore_errors=True)

    def garbage(self) -> Iterator[tuple[Path, str]]:
        """What may be deleted under OUT, and why. Records, also those set aside, and checkpoints of fold runs without
        a record stay. What a driver at work may still need is left out."""
        if self._checkpoints.exists():
            for path in sorted(self._checkpoints.iterdir()):
                if self.has(path.name):
                    yield path, "checkpoint of a fold run that has its record"
        busy = {folder.name for folder in self._out.glob("studies/*") if holder(folder) is not None}
        for path in sorted(self._out.glob("ray/*")):
            if path.name not in busy and not path.name.startswith("."):
                yield path, "notes of Ray Tune, never read again"
        if not busy:
            writings = ("records/.writing-*", "cache/.writing-*", "studies/*/writing-*", "studies/*/warmups/writing-*")
            for pattern in (*writings, "embeddings/writing-*", "*/.probe-*", ".shared-*"):
                yield from ((path, "a writing that never ended") for path in sorted(self._out.glob(pattern)))


def _seal(content: Any) -> str:
    return content_id(content, 64)


def _way_out(folder: Path) -> str:
    return f"restore it, or delete the folder {folder} to train this fold run again"


def folder_bytes(path: Path) -> int:
    """Size of a file or of everything in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
