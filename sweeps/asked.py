"""The log of a search: a line for each decision, on disk before the decision takes effect."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sweeps.strategy import Decision

ASKED = "asked.jsonl"  # in the folder of the study

# What each decision tells.
KEYS = {
    "ask": {"number", "values", "config", "refused"},
    "warm": {"number", "values", "config", "source"},
    "start": {"number", "block"},
    "cleared": {"number", "blocks"},
    "rung": {"number", "block", "epochs", "stop"},
    "told": {"number", "end", "told", "curve", "why"},
    "spent": set[str](),
}


def _is_decision(line: Any) -> bool:
    if not isinstance(line, dict):
        return False
    event = line.get("event")
    return isinstance(event, str) and event in KEYS and line.keys() == KEYS[event] | {"event"}


def read_log(path: Path) -> list[Decision]:
    """The decisions of earlier drivers; empty where there were none.

    A last line that was cut off does not count: a decision takes effect only after its line is on disk. Raises
    ValueError naming the line for any other that is no decision.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    decisions = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            decision = json.loads(line)
        except ValueError:
            decision = None
        if not _is_decision(decision):
            raise ValueError(
                f"line {number} of {path} is damaged; restore the file, or delete it to ask the search anew "
                "(recorded fold runs are kept)"
            )
        decisions.append(decision)
    return decisions


def append_to(path: Path) -> Callable[[Decision], None]:
    """A function that writes a decision as the next line of `path` and has it on disk when it returns. A last line
    that was cut off is dropped first."""
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)

    def record(decision: Decision) -> None:
        line = json.dumps(decision, allow_nan=False, ensure_ascii=False)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    return record
