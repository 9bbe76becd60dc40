"""A Ray trial is a fold run: what Ray Tune starts in a worker."""

from __future__ import annotations

from typing import Any

from ray.tune import Trainable


class FoldRunTrial(Trainable):
    """One fold run, and when it has ended the next one (`sweeps.worker.Work`)."""

    alone = False  # whether nothing else runs beside it

    def setup(self, config: dict[str, Any]) -> None:
        # The driver only names this class to Ray: it does without torch, which takes seconds to import.
        from sweeps.worker import Work

        self._work = Work(alone=self.alone)
        self._work.ask(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._work.ask(new_config)
        return True

    def cleanup(self) -> None:
        self._work.close()

    def step(self) -> dict[str, Any]:
        return self._work.step()


class LoneFoldRunTrial(FoldRunTrial):
    """The second chance of a fold run that ran out of memory: nothing runs beside it, it may fill its GPU, and
    another failure is its own."""

    alone = True
