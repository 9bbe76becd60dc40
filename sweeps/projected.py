"""What is known to stand in MLflow: a line for each fold run whose projection has ended well, and for each time that
the store went away and came back. `status` reads it, which must not wait for a store; the projection asks the store.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.records import Record

PROJECTED = "projected.jsonl"  # in the folder of the study


@dataclass(frozen=True)
class Projected:
    """What the store that was written last holds of a study."""

    store: str  # its URI, without credentials
    states: dict[str, str] = field(default_factory=dict)  # by fold run: the state of its record that was written
    away: str | None = None  # why it could not be written when it was tried last
    since: float = 0.0  # when it went away, seconds since the epoch

    def lacking(self, records: Iterable[Record]) -> int:
        """How many of these records it is not known to hold; one that was retried, or got metrics later,
        counts until its newer state is written."""
        return sum(self.states.get(record.id) != _state(record) for record in records)


class ProjectionLog:
    """Writes it. Raises OSError where OUT cannot be written."""

    def __init__(self, folder: Path, store: str) -> None:
        self._path, self._store = folder / PROJECTED, store
        before = read_projected(folder)
        self._known = before if before is not None and before.store == store else Projected(store)
        self._away = self._known.away is not None
        # A line that a kill has cut off must not take the next one with it.
        self._cut = self._path.exists() and not self._path.read_bytes().endswith(b"\n")

    def written(self, record: Record) -> None:
        """A record stands in the store; said again, nothing is added."""
        state = _state(record)
        if self._known.states.get(record.id) != state:
            self._append({"fold_run": record.id, "state": state})
            self._known.states[record.id] = state

    def away(self, reason: str) -> None:
        """The store could not be written."""
        if not self._away:
            self._append({"away": reason, "at": time.time()})
            self._away = True

    def back(self) -> None:
        """The store holds all it was given."""
        if self._away:
            self._append({"back": time.time()})
            self._away = False

    def _append(self, line: dict[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"store": self._store, **line}, ensure_ascii=False)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}\n" if self._cut else f"{text}\n")
        self._cut = False


def read_projected(folder: Path) -> Projected | None:
    """What is known of the store that the study in `folder` was written to last; None where it never was.

    A line that was cut off or damaged is left out: what it told counts as not written, until `sync` says it anew.
    """
    try:
        lines = (folder / PROJECTED).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None
    told = [line for line in map(_line, lines) if line is not None]
    if not told:
        return None
    store = told[-1]["store"]
    states: dict[str, str] = {}
    away, since = None, 0.0
    for line in told:
        if line["store"] != store:
            continue
        if "fold_run" in line:
            states[line["fold_run"]] = line["state"]
        elif "away" in line:
            away, since = line["away"], line["at"]
        else:
            away = None
    return Projected(store, states, away, since)


KINDS = ({"store", "fold_run", "state"}, {"store", "away", "at"}, {"store", "back"})


def _line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and line.keys() in KINDS else None


def _state(record: Record) -> str:
    return f"{ended_at(record)} {record.added}".rstrip()


def ended_at(record: Record) -> int:
    """When a record ended, in milliseconds since the epoch, MLflow's unit."""
    return int(1000 * record.details["ended"])
