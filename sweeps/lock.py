"""One driver per study, also where two machines see one folder.

`flock` decides on one machine: the kernel frees the lock of a driver that died. Over network file systems it may be
kept by each machine for itself (Lustre with `localflock`, NFS with `nolock`), so the holder also beats: it counts up in
the lock file. Whoever gets the lock of another machine that did not sign off watches for a beat before it takes over.
No clock of another machine is ever read.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

LOCK = "driver.lock"
BEAT = 10.0  # seconds between two beats
WATCH = 3 * BEAT  # how long another machine's lock is watched before it is taken over


class StudyLocked(RuntimeError):
    """Another driver is at work on the study."""


@contextmanager
def driver_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of the study in `folder`. Raises StudyLocked naming the other driver, OSError naming the folder
    where its file system knows no locks."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyLocked(_refusal(folder, _read(file))) from None
        except OSError as error:
            raise OSError(
                error.errno, f"the file system of {folder} cannot lock files ({error.strerror}); choose another OUT"
            ) from None
        before = _read(file)
        if before.get("host", socket.gethostname()) != socket.gethostname() and _beats(file, before):
            raise StudyLocked(_refusal(folder, before))
        _write(file, 0)
        ended = threading.Event()
        heart = threading.Thread(target=_beat, args=(file, ended), name="driver lock", daemon=True)
        heart.start()
        try:
            yield
        finally:
            ended.set()
            heart.join()
            file.truncate(0)  # signed off


def holder(folder: Path) -> str | None:
    """Who is at work on the study, as far as this machine can tell, or None. Writes nothing."""
    path = folder / LOCK
    if not path.exists():
        return None
    with path.open() as file:
        told = _read(file)
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _name(told)
        # The lock is free here; another machine's driver may still hold it there.
        elsewhere = told.get("host", socket.gethostname()) != socket.gethostname()
        return _name(told) if elsewhere and time.time() - path.stat().st_mtime < WATCH else None


def _beat(file: IO[str], ended: threading.Event) -> None:
    count = 0
    while not ended.wait(BEAT):
        count += 1
        _write(file, count)


def _beats(file: IO[str], before: dict[str, Any]) -> bool:
    """Whether the lock file changes while it is watched."""
    deadline = time.monotonic() + WATCH
    while time.monotonic() < deadline:
        time.sleep(WATCH / 30)
        if _read(file) != before:
            return True
    return False


def _write(file: IO[str], count: int) -> None:
    told = json.dumps({"process": os.getpid(), "host": socket.gethostname(), "beat": count})
    file.seek(0)
    file.truncate()
    file.write(told)
    file.flush()


def _read(file: IO[str]) -> dict[str, Any]:
    """What the lock says; empty where it is empty or was caught half written. Only the lock itself decides."""
    file.seek(0)
    try:
        told = json.loads(file.read())
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _name(told: dict[str, Any]) -> str:
    return f"process {told['process']} on {told['host']}" if "process" in told and "host" in told else "another process"


def _refusal(folder: Path, told: dict[str, Any]) -> str:
    return f"study {folder.name} is being run by {_name(told)}; wait for it or stop it"
