"""Faults provoked inside the processes of a real sweep, and a log of every epoch that is trained.

`environment(folder, ...)` makes the environment of a sweep's driver, which its workers inherit. Python imports the
`sitecustomize` written there at start; it waits for `sweeps.worker` and wraps `run_fold` and the writers. Nothing of
this is in the package.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent

HOOK = '''
import importlib.abc, importlib.machinery, json, os, signal, sys, time
from pathlib import Path

FOLDER = Path({folder!r})
FAULTS = json.loads({faults!r})


def once(name):
    """True for the first process that asks."""
    try:
        os.close(os.open(FOLDER / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def strike(where, fold, epoch=None):
    for number, fault in enumerate(FAULTS):
        if fault["where"] != where or fault["fold"] != fold or fault.get("epoch") != epoch:
            continue
        if not fault.get("always") and not once(f"struck-{{number}}"):
            continue
        if fault["how"] == "memory":
            raise MemoryError("provoked")
        if fault["how"] == "wait":
            while not (FOLDER / fault["until"]).exists():
                time.sleep(0.05)
            continue
        if fault["how"] == "pause":
            time.sleep(fault["seconds"])
            continue
        os.kill(os.getpid(), signal.SIGKILL)


def install():
    from guided import train
    from sweeps.records import Records

    Run = train._Run
    epoch, save, write = Run.epoch, Run.save, Records.write

    def logged_epoch(self):
        number = len(self.history)
        with (FOLDER / "executions.log").open("a") as file:
            file.write(json.dumps([self.config.id, self.fold.partition, self.fold.index, self.seed, number]) + "\\n")
        strike("epoch", self.fold.index, number)
        return epoch(self)

    def torn_save(self, folder):
        # What a kill in the middle of a write leaves: half a file. Whole files must stand beside it.
        number = len(self.history)
        torn = folder / "writing-torn"
        torn.write_bytes(bytes(1000))
        strike("checkpoint", self.fold.index, number)
        torn.unlink()
        return save(self, folder)

    def told_write(self, run, *args, **kwargs):
        target = write(self, run, *args, **kwargs)
        strike("record", run.fold)
        return target

    Run.epoch, Run.save, Records.write = logged_epoch, torn_save, told_write


class Loader(importlib.abc.Loader):
    def __init__(self, real):
        self.real = real

    def create_module(self, spec):
        return self.real.create_module(spec)

    def exec_module(self, module):
        self.real.exec_module(module)
        install()


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "sweeps.worker":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        spec.loader = Loader(spec.loader)
        return spec


sys.meta_path.insert(0, Finder())
'''


def environment(folder: Path, *faults: dict[str, Any]) -> dict[str, str]:
    """The environment of a sweep in which each of `faults` strikes: `how` (kill, memory, wait, pause), `where`
    (epoch, checkpoint, record), `fold`, `epoch` (none behind a record), `always` for every time instead of once,
    `until`, the name of a file in `folder`, for what waits, and `seconds` of a pause."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(HOOK.format(folder=str(folder), faults=json.dumps(faults)))
    return {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}


def executions(folder: Path) -> list[tuple[Any, ...]]:
    """(config, partition, fold, seed, epoch) of every epoch that was begun."""
    path = folder / "executions.log"
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
