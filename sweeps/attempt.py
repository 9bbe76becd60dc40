"""The turns that processes take at one fold run: who has it now, and what each of them trained."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any


class Superseded(RuntimeError):
    """Another process has taken the fold run over."""


class Attempt:
    """One process's turn at a fold run: a file `attempt-<number>.json` beside the checkpoint.

    The highest number holds the fold run. A process that was given up (its node was cut off, its driver died) may live
    on for a while; it finds a higher number, or its own file gone, and stops. What each attempt trained goes into the
    record, so that work done twice can be counted.
    """

    def __init__(self, path: Path, told: dict[str, Any]) -> None:
        self._path, self._told = path, told
        self._write()

    @classmethod
    def begin(cls, folder: Path) -> Attempt:
        """Take the fold run whose checkpoint lies in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        number = max(_attempts(folder), default=0) + 1
        while True:
            path = folder / f"attempt-{number}.json"
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                number += 1  # another process was faster; it is superseded at once
            else:
                return cls(path, {"host": socket.gethostname(), "process": os.getpid(), "began": time.time()})

    def check(self) -> None:
        """Raises Superseded where the fold run is no longer this attempt's."""
        numbers = _attempts(self._path.parent)
        if not numbers or numbers[max(numbers)] != self._path:
            raise Superseded(f"{self._path} is no longer the last attempt; another process has the fold run")

    def trained(self, epoch: int) -> None:
        """Note an epoch as done by this attempt."""
        self._told |= {"first_epoch": self._told.get("first_epoch", epoch), "last_epoch": epoch, "until": time.time()}
        self._write()

    @property
    def first_began(self) -> float:
        """When the first attempt began whose file can be read."""
        return min(attempt["began"] for attempt in [*attempts_in(self._path.parent), self._told] if "began" in attempt)

    def _write(self) -> None:
        temporary = self._path.with_name(f"writing-{self._path.name}")
        temporary.write_text(json.dumps(self._told))
        os.replace(temporary, self._path)


def attempts_in(folder: Path) -> list[dict[str, Any]]:
    """What every attempt noted, in order; one whose file is damaged is listed by its number alone."""
    return [{"attempt": number, **_noted(path)} for number, path in sorted(_attempts(folder).items())]


def _attempts(folder: Path) -> dict[int, Path]:
    return {int(path.stem.split("-")[1]): path for path in folder.glob("attempt-*.json")}


def _noted(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
