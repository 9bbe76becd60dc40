"""What a person sees while a sweep runs: one live table, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sweeps import schema
from sweeps.records import FoldRun, Record
from sweeps.study import Study


@dataclass
class _State:
    run: FoldRun
    state: str = "waiting"  # waiting | running | finished | failed | diverged | stopped
    epoch: int = -1
    length: int = 0
    val_f1: float | None = None
    reason: str = ""


class Board:
    """State of every fold run of a study, fed by the driver, drawn by rich."""

    def __init__(self, study: Study, records: dict[str, Record], workers: int, console: Console) -> None:
        self._study, self._console, self._workers = study, console, workers
        self._states: dict[str, _State] = {}
        self.grow(study)
        for run_id, record in records.items():
            self._end(run_id, record)
        self._started = time.monotonic()
        self._epochs_here = 0
        self._first_epoch: float | None = None
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Board:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()
            self._console.print(self.render())

    def grow(self, study: Study) -> None:
        """Take in the fold runs of variants that a search has added."""
        self._states |= {run.id: _State(run) for run in study.fold_runs if run.id not in self._states}

    def epoch(self, run_id: str, epoch: int, val_f1: float, length: int) -> None:
        """A fold run has ended an epoch."""
        state = self._states[run_id]
        now = time.monotonic()
        if self._first_epoch is None:
            self._first_epoch = now
            if not self._console.is_terminal:
                self._console.print(f"first epoch after {now - self._started:.0f} s")
        else:
            self._epochs_here += 1
        state.state, state.epoch, state.val_f1, state.length = "running", epoch, val_f1, length

    def waits(self, run_id: str, reason: str) -> None:
        """A fold run has stopped without a record and will be tried again."""
        state = self._states[run_id]
        state.state, state.reason = "waiting", reason
        if not self._console.is_terminal:
            self._console.print(f"{state.run.name}: {reason}", highlight=False, markup=False, soft_wrap=True)

    def ended(self, run_id: str, record: Record) -> None:
        """A fold run has left its record."""
        self._end(run_id, record)
        if not self._console.is_terminal:
            state = self._states[run_id]
            done = sum(other.state not in ("waiting", "running") for other in self._states.values())
            told = state.reason if state.state != "finished" else self._score(record)
            self._console.print(
                f"[{done}/{len(self._states)}] {state.run.name}: {state.state}, {told}; {self._left()}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    def _score(self, record: Record) -> str:
        # Who watches a search shall not choose by test cells either.
        if self._study.sweep.stage == "search":
            return f"validation macro-F1 {record.metrics[schema.BEST_VAL_F1]:.3f}"
        return f"test macro-F1 {record.metrics[schema.TEST_F1]:.3f}"

    def _end(self, run_id: str, record: Record) -> None:
        state = self._states[run_id]
        state.state, state.reason = record.status, record.reason
        if record.status == "finished":
            state.epoch = len(record.history) - 1
            state.val_f1 = record.metrics[schema.BEST_VAL_F1]

    def _left(self) -> str:
        if self._first_epoch is None or self._epochs_here == 0:
            return "time left: known after the first epochs"
        seconds = (time.monotonic() - self._first_epoch) / self._epochs_here
        left = sum(
            state.run.config.train.epochs - 1 - state.epoch
            for state in self._states.values()
            if state.state in ("waiting", "running")
        )
        return f"about {duration(seconds * left)} left" if left else "done"

    def render(self) -> Group:
        """The table: a row per variant."""
        by_variant: dict[str, list[_State]] = defaultdict(list)
        for state in self._states.values():
            by_variant[state.run.variant].append(state)
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("variant")
        table.add_column("folds done", justify="right")
        table.add_column("validation F1", justify="right")
        table.add_column("under way")
        table.add_column("")
        for variant, states in by_variant.items():
            done = [state for state in states if state.state == "finished"]
            bad = [state for state in states if state.state in ("failed", "diverged")]
            stopped = [state for state in states if state.state == "stopped"]
            scores = [state.val_f1 for state in done if state.val_f1 is not None]
            running = [
                f"fold {state.run.fold} epoch {state.epoch + 1}/{state.run.config.train.epochs} n={state.length}"
                for state in states
                if state.state == "running"
            ]
            table.add_row(
                variant,
                f"{len(done)}/{len(states)}",
                f"{np.mean(scores):.3f}" if scores else "–",
                ", ".join(running),
                Text(", ".join(f"fold {state.run.fold} {state.state}" for state in bad), style="red").append(
                    " ".join(f"fold {state.run.fold} stopped" for state in stopped), style="dim"
                ),
            )
        ended = sum(state.state not in ("waiting", "running") for state in self._states.values())
        elapsed = duration(time.monotonic() - self._started)
        foot = f"{ended} of {len(self._states)} fold runs · {self._workers} at a time · {elapsed} · {self._left()}"
        return Group(table, Text(foot, style="dim"))


def duration(seconds: float) -> str:
    """90 → "1 min 30 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
