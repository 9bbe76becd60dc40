"""The decisions of a search: which fold run is next, which is stopped, and what Optuna is told. Knows nothing of Ray:
the engine and the replay drive the same code.

A search asks Optuna for variants and trains each on the same blocks (partition, fold, seed), in one order. Everything
is keyed by (config id, partition, fold, seed). What Optuna hears of a variant, once, when its end is known:

| end of the variant | when | Optuna hears |
|---|---|---|
| finished | every block finished | COMPLETE: mean of each objective over all blocks |
| failed | a block failed (fault, out of memory, lost for good) | FAIL: the variant is incomplete, no 4-fold mean |
| diverged | a block diverged | COMPLETE with 0, the worst macro-F1; FAIL with several objectives |
| raced out | dropped by `racing` or `halving` before the last block | COMPLETE: fold-adjusted estimate (`adjusted`) |
| stopped | `asha` halted one of its fold runs | PRUNED with the validation curve of that fold run, up to the rung |
| refused | values that make no configuration or break a constraint, or that were asked before | FAIL |

A diverged variant is told the worst value, because a sampler that ignores it would ask its neighbours again; a failed
one is ignored, because a fault of the machine says nothing of the values.

**Warm start.** A variant that another study has recorded on every block stands in the log as `warm`, with that study,
before the first ask. It is finished from the start, teaches the sampler, races with the others and may win.

**Restart.** Every decision goes to a log before it takes effect. The state is a function of the log, the ends (the
records) and the curves of fold runs under way (the checkpoints): a search made from the same three decides the same.
A sampler is made anew for each ask, seeded by (seed, number of the ask), so nothing of a random state is kept.

**Stop rules**, for searches only:

- `none`: every variant is trained on every block.
- `racing`: a variant starts with `first` blocks; after them, and again after each further one, it goes on only if the
  mean of its fold-paired differences to the best variant on the same blocks is at least -`margin`.
- `halving`: asynchronous successive halving over fold runs. A variant starts with `first` blocks and is judged after
  first · eta^k of them, before its last: it goes on if its mean is among the best 1/eta of the variants that have those
  blocks too. The blocks come in an order drawn from the seed of the search, so that seeds and partitions are mixed.
- `asha`: asynchronous successive halving over epochs, among fold runs of one block and one loss only (others have
  other folds, or start short). Rungs lie at warm-up + min_epochs · eta^k epochs of a fold run's own count (`rungs`);
  one goes on if its best validation score so far is among the best 1/eta of those that have reached the rung.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import TrialState

from sweeps import schema
from sweeps.records import Record, Status
from sweeps.rules import Block, adjusted, behind, check_settings, goes_on, make_sampler, rungs
from sweeps.spec import Asha, Halving, Racing, SearchSettings, SearchSpace, SpecError, Variant

Key = tuple[str, int, int, int]  # config id, partition, fold, seed
Decision = dict[str, Any]  # a line of the log
VariantEnd = Literal["finished", "failed", "diverged", "raced out", "stopped"]

# Refused answers in a row before a space is spent; a listed one gives the nearest of its rest after the first.
REFUSALS = 200
WORST_F1 = 0.0

optuna.logging.set_verbosity(optuna.logging.WARNING)  # else a line for every study and trial


@dataclass(frozen=True)
class End:
    """How a fold run ended. `values` are the objectives, in order, of a finished one; the first is what rules compare.

    `curve` is the validation macro-F1 of each epoch.
    """

    status: Status
    curve: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Job:
    """A fold run to train: variant `number` on a block, known by its key."""

    number: int
    variant: Variant
    block: Block
    key: Key


@dataclass(frozen=True)
class Standing:
    """A variant in the ranking. `score` is the mean over its finished blocks, `told` what Optuna heard of it."""

    number: int
    variant: Variant
    values: dict[str, Any]
    end: VariantEnd | None  # None: under way
    blocks: int  # finished
    score: float | None
    told: tuple[float, ...]
    why: str
    source: str = ""  # of a warm start: the study that recorded it


@dataclass
class _Asked:
    """A variant that was asked. `cleared` counts the blocks it may be trained on."""

    number: int
    variant: Variant
    config: str  # id, which takes a hash to compute
    values: dict[str, Any]
    trial: optuna.Trial
    cleared: int
    end: VariantEnd | None = None
    told: tuple[float, ...] = ()
    why: str = ""
    verdicts: dict[Block, dict[int, bool]] = field(default_factory=dict)  # rungs passed: whether it was stopped there
    source: str = ""  # of a warm start: the study that recorded it

    def key(self, block: Block) -> Key:
        return (self.config, *block)


def end_of(record: Record, objectives: Sequence[str]) -> End:
    """The end that a record tells; `objectives` are names of its metrics.

    Raises ValueError for a finished record without one of them, and for a metric of the test cells: a search hears
    validation only.
    """
    tested = [name for name in objectives if name.startswith("test/")]
    if tested:
        raise ValueError(f"objective {tested[0]!r} reads the test cells; a search selects on validation only")
    values: tuple[float, ...] = ()
    if record.status == "finished":
        missing = [name for name in objectives if name not in record.metrics]
        if missing:
            raise ValueError(f"record {record.id} has no metric {missing[0]!r}, which the search was to judge by")
        values = tuple(record.metrics[name] for name in objectives)
    curve = tuple(epoch[schema.VAL_F1] for epoch in record.history)
    return End(record.status, curve, values, record.reason)


class Search:
    """The state of a search. See the head of the module for what it decides and how a restart finds its state.

    `log`, `ended` and `curves` are what an earlier driver left: its decisions, the ends of fold runs by key, and the
    validation curves of those under way. `record` is called with each new decision before it takes effect.
    `first` are the values asked first, whatever the sampler: those of the baseline.
    `resolve` makes a variant of values; it raises SpecError for values that make none.
    Raises ValueError for settings that cannot work together, and for a log that is not of this search.
    """

    def __init__(
        self,
        space: SearchSpace,
        blocks: Sequence[Block],
        settings: SearchSettings,
        resolve: Callable[[dict[str, Any]], Variant],
        *,
        log: Iterable[Decision] = (),
        ended: Mapping[Key, End] | None = None,
        curves: Mapping[Key, Sequence[float]] | None = None,
        record: Callable[[Decision], None] | None = None,
        first: dict[str, Any] | None = None,
    ) -> None:
        self._first = first
        self._space, self._blocks, self._settings, self._resolve = space, tuple(blocks), settings, resolve
        self._racing = settings.stop if isinstance(settings.stop, Racing) else None
        self._halving = settings.stop if isinstance(settings.stop, Halving) else None
        self._asha = settings.stop if isinstance(settings.stop, Asha) else None
        if self._halving:
            order = np.random.default_rng(settings.seed).permutation(len(self._blocks))
            self._blocks = tuple(self._blocks[place] for place in order)
        self._directions = [objective.direction for objective in settings.objectives]
        self._listed = space.listed()
        self._record = record or (lambda decision: None)
        check_settings(space, len(self._blocks), settings)
        self._study = optuna.create_study(directions=self._directions, sampler=make_sampler(settings, 0))
        self._trials: list[optuna.Trial] = []  # by number
        self._refusals = 0  # in a row
        self._refused: dict[str, Any] = {}  # the last of them
        self._asked: dict[int, _Asked] = {}
        self._numbers: dict[str, int] = {}  # by config id
        self._open: dict[int, _Asked] = {}  # asked, not yet told
        self._started: dict[Key, None] = {}  # in order
        self._interrupted: list[Key] = []  # under way when an earlier driver stopped: they go on first
        self._running: set[Key] = set()
        self._ends: dict[Key, End] = dict(ended or {})
        self._curves: dict[Key, list[float]] = {}
        self._spent = False
        for decision in log:
            try:
                self._apply(decision)
            except (KeyError, TypeError, IndexError) as error:
                raise ValueError(f"the log of the search holds {decision!r}, which is no decision ({error})") from None
        for key, curve in (curves or {}).items():
            if key not in self._ends:
                self._curves[key] = list(curve)
        self._interrupted = [key for key in self._started if key not in self._ends]
        for asked in list(self._open.values()):
            for block in self._blocks:
                self._judge_rungs(asked, block)
        self._settle()

    # --- what the driver asks and says ------------------------------------------------------------------------------

    def next(self) -> Job | None:
        """The fold run to start now, or None: nothing can start until another has ended, or the search is done."""
        if self._interrupted:
            return self._start(self._interrupted.pop(0))
        for asked in self._open.values():
            for block in self._blocks[: asked.cleared]:
                key = asked.key(block)
                if key not in self._started and key not in self._ends:
                    self._decide({"event": "start", "number": asked.number, "block": list(block)})
                    return self._start(key)
        while len(self._own) < self._settings.variants and not self._spent:
            if self._ask():
                return self.next()
        return None

    def _start(self, key: Key) -> Job:
        asked = self._of(key)
        self._running.add(key)
        return Job(asked.number, asked.variant, key[1:], key)

    @property
    def done(self) -> bool:
        """Whether every variant has its end and nothing runs. True only after `next` has returned None."""
        return not self._running and not self._open and (self._spent or len(self._own) >= self._settings.variants)

    def epoch(self, key: Key, epoch: int, score: float) -> str | None:
        """A fold run has ended an epoch (from 0) with that validation score; returns why it shall stop now, or None.

        An epoch heard before, as after the loss of a worker, changes nothing. Raises ValueError where one is missing.
        """
        asked = self._of(key)
        curve = self._curves.setdefault(key, [])
        if epoch > len(curve):
            raise ValueError(f"fold run {key} tells epoch {epoch} after {len(curve)} epochs")
        if epoch == len(curve):
            curve.append(score)
            self._judge_rungs(asked, key[1:])
            self._settle()
        return self.halted(key)

    def halted(self, key: Key) -> str | None:
        """Why this fold run must not go on; None where it may."""
        asked = self._of(key)
        return asked.why if asked.end == "stopped" else None

    def ended(self, key: Key, end: End) -> None:
        """A fold run has ended. Raises ValueError for one that was never asked or has ended before."""
        self._of(key)
        if key in self._ends:
            raise ValueError(f"fold run {key} has ended twice")
        self._running.discard(key)
        self._ends[key] = end
        self._curves.pop(key, None)
        self._settle()

    def warm_start(self, values: dict[str, Any], source: str, ends: Mapping[Key, End]) -> None:
        """Take in a variant that `source` has recorded on every block, with the ends of its fold runs. It competes like
        any other and teaches the sampler, and is none of the `variants` that the search asks for.

        Raises ValueError after the first ask, and for a variant known already.
        """
        variant, refused = self._variant(values)
        if self.begun or variant is None:
            raise ValueError(f"{source} cannot start the search with {values}: {refused or 'it has begun'}")
        self._ends |= ends
        number, config = len(self._trials), variant.config.id
        self._decide({"event": "warm", "number": number, "values": values, "config": config, "source": source})
        self._settle()

    @property
    def begun(self) -> bool:
        """Whether anything was asked."""
        return bool(self._own or self._refusals)

    def knows(self, config: str) -> bool:
        """Whether the variant with that configuration id competes."""
        return config in self._numbers

    def ranking(self) -> list[Standing]:
        """Every variant asked: the finished ones by the mean of the first objective, best first, then the others by
        what Optuna was told."""
        sign = -1.0 if self._directions[0] == "maximize" else 1.0

        def place(standing: Standing) -> tuple[bool, bool, float, int]:
            first = standing.told[0] if standing.told else 0.0
            return standing.end != "finished", not standing.told, sign * first, standing.number

        return sorted((self._standing(asked) for asked in self._asked.values()), key=place)

    def front(self) -> list[Standing]:
        """Finished variants that no other finished one dominates; with one objective, the best. What Optuna was told
        of a variant that did not finish is an estimate, and never wins."""
        finished = [standing for standing in self.ranking() if standing.end == "finished"]
        signs = np.array([1.0 if direction == "maximize" else -1.0 for direction in self._directions])
        told = np.array([standing.told for standing in finished]).reshape(len(finished), len(signs)) * signs
        return [
            standing
            for standing, own in zip(finished, told, strict=True)
            if not ((told >= own).all(axis=1) & (told > own).any(axis=1)).any()
        ]

    def started(self) -> list[Key]:
        """Every fold run that was started, in order."""
        return list(self._started)

    def variants(self) -> list[Variant]:
        """Every variant asked, in order."""
        return [asked.variant for asked in self._asked.values()]

    # --- decisions --------------------------------------------------------------------------------------------------

    @property
    def _own(self) -> list[int]:
        """Numbers of the variants that the search asked for itself."""
        return [number for number, asked in self._asked.items() if not asked.source]

    def _of(self, key: Key) -> _Asked:
        if key[0] not in self._numbers:
            raise ValueError(f"the search never asked for fold run {key}")
        return self._asked[self._numbers[key[0]]]

    def _standing(self, asked: _Asked) -> Standing:
        scores = list(self._scores(asked).values())
        score = float(np.mean(scores)) if scores else None
        return Standing(
            number=asked.number,
            variant=asked.variant,
            values=asked.values,
            end=asked.end,
            blocks=len(scores),
            score=score,
            told=asked.told,
            why=asked.why,
            source=asked.source,
        )

    def _scores(self, asked: _Asked) -> dict[Block, float]:
        """First objective of the finished blocks."""
        ends = {block: self._ends.get(asked.key(block)) for block in self._blocks}
        return {block: end.values[0] for block, end in ends.items() if end is not None and end.status == "finished"}

    def _rivals(self, asked: _Asked) -> list[dict[Block, float]]:
        """Scores of the other variants, without those that broke."""
        return [
            self._scores(other)
            for other in self._asked.values()
            if other is not asked and other.end not in ("failed", "diverged")
        ]

    def _decide(self, decision: Decision) -> None:
        self._record(decision)
        self._apply(decision)

    def _apply(self, decision: Decision) -> None:
        event = decision["event"]
        if event == "ask":
            if len(self._trials) <= decision["number"]:  # else it was asked here, and is to be entered only
                self._again(decision)
            self._enter(decision)
        elif event == "warm":
            self._again(decision)
            self._enter({**decision, "refused": ""})
        elif event == "start":
            self._started[self._asked[decision["number"]].key(tuple(decision["block"]))] = None
        elif event == "cleared":
            self._asked[decision["number"]].cleared = decision["blocks"]
        elif event == "rung":
            asked = self._asked[decision["number"]]
            asked.verdicts.setdefault(tuple(decision["block"]), {})[decision["epochs"]] = decision["stop"]
        elif event == "told":
            self._tell(decision)
        elif event == "spent":
            self._spent = True
        else:
            raise KeyError(f"unknown event {event!r}")

    def _ask(self) -> bool:
        """Ask Optuna once; returns whether a variant came of it."""
        number = len(self._trials)
        chosen = None if self.begun or self._first is None or self._variant(self._first)[0] is None else self._first
        if self._refusals and self._listed is not None:
            rest = self._rest()
            chosen = self._nearest(rest, number) if rest else None
            spent = not rest
        else:
            spent = self._refusals >= REFUSALS
        if spent:
            self._decide({"event": "spent"})
            return False
        values = self._try(chosen)
        variant, refused = self._variant(values)
        config = "" if variant is None else variant.config.id
        self._decide({"event": "ask", "number": number, "values": values, "config": config, "refused": refused})
        return variant is not None

    def _try(self, values: dict[str, Any] | None) -> dict[str, Any]:
        """A new trial of the study: with these values, or with those that the sampler gives."""
        if values is not None:
            self._study.enqueue_trial(self._space.as_trial(values)[0])
        self._study.sampler = make_sampler(self._settings, len(self._trials))
        trial = self._study.ask()
        if self._settings.sampler in ("qmc", "cmaes"):
            _ = trial.relative_params  # these two count what they gave, and values that are given pass them by
        self._trials.append(trial)
        return self._space.suggest(trial)

    def _variant(self, values: dict[str, Any]) -> tuple[Variant | None, str]:
        """The variant of these values, or why there is none to train."""
        try:
            variant = self._resolve(values)
        except SpecError as error:
            return None, "; ".join(error.problems)
        if variant.config.id in self._numbers:
            return None, f"asked before, as {self._numbers[variant.config.id]}"
        return variant, ""

    def _rest(self) -> list[dict[str, Any]]:
        """Choices of a listed space that make a variant not yet asked."""
        return [values for values in self._listed or [] if self._variant(values)[0] is not None]

    def _nearest(self, rest: list[dict[str, Any]], number: int) -> dict[str, Any]:
        """The choice of `rest` that has most values in common with the one refused last; the lot decides a tie."""
        near = [sum(self._refused.get(key) == value for key, value in values.items()) for values in rest]
        rng = np.random.default_rng([self._settings.seed, number])
        return rest[int(rng.choice(np.flatnonzero(np.equal(near, max(near)))))]

    def _again(self, decision: Decision) -> None:
        """Ask what an earlier driver asked, so that the study knows the same trials."""
        if decision["number"] != len(self._trials):
            raise ValueError(f"the log of the search goes from ask {len(self._trials)} to {decision['number']}")
        self._try(decision["values"])

    def _enter(self, decision: Decision) -> None:
        number, values, trial = decision["number"], decision["values"], self._trials[decision["number"]]
        if decision["refused"]:
            self._refusals += 1
            self._refused = values
            self._study.tell(trial, state=TrialState.FAIL)
            return
        self._refusals = 0
        variant, refused = self._variant(values)
        if variant is None or variant.config.id != decision["config"]:
            now = refused if variant is None else f"configuration {variant.config.id}"
            raise ValueError(
                f"ask {number} of the search, {values}, made configuration {decision['config']} and now makes {now}: "
                "the sweep file or the code has changed; give the changed sweep another name"
            )
        by_folds = self._racing or self._halving
        cleared = by_folds.first if by_folds else len(self._blocks)
        asked = _Asked(number, variant, decision["config"], values, trial, cleared, source=decision.get("source", ""))
        self._asked[number] = self._open[number] = asked
        self._numbers[asked.config] = number

    def _settle(self) -> None:
        """Take every decision that the ends and curves allow."""
        for asked in list(self._open.values()):
            while asked.end is None and (decision := self._verdict(asked)) is not None:
                self._decide(decision)

    def _verdict(self, asked: _Asked) -> Decision | None:
        ends = {block: end for block in self._blocks if (end := self._ends.get(asked.key(block))) is not None}
        for block, end in ends.items():
            if end.status == "failed":
                return _told(asked, "failed", why=f"{_name(block)} failed: {end.reason}")
        for block, end in ends.items():
            if end.status == "diverged":
                worst = len(self._directions) == 1 and self._directions[0] == "maximize"
                why = f"{_name(block)} diverged: {end.reason}"
                return _told(asked, "diverged", [WORST_F1] if worst else [], why=why)
        for block in self._blocks:
            for rung, stop in asked.verdicts.get(block, {}).items():
                if stop:
                    curve = list(self._curve(asked.key(block))[:rung])
                    why = f"{_name(block)}: not among the best of its loss after {rung} epochs"
                    return _told(asked, "stopped", curve=curve, why=why)
        if len(ends) == len(self._blocks):
            means = np.mean([end.values for end in ends.values()], axis=0)
            return _told(asked, "finished", means.tolist())
        if self._racing and all(block in ends for block in self._blocks[: asked.cleared]):
            return self._race(asked, self._racing.margin)
        if self._halving and all(block in ends for block in self._blocks[: asked.cleared]):
            return self._halve(asked, self._halving.eta)
        return None

    def _race(self, asked: _Asked, margin: float) -> Decision:
        own, rivals = self._scores(asked), self._rivals(asked)
        lag = behind(own, rivals, self._directions[0])
        if lag <= margin:
            return {"event": "cleared", "number": asked.number, "blocks": asked.cleared + 1}
        why = f"{lag:.3f} behind the best on the same {len(own)} folds"
        return _told(asked, "raced out", [adjusted(own, rivals, self._blocks)], why=why)

    def _halve(self, asked: _Asked, eta: int) -> Decision:
        own, rivals = self._scores(asked), self._rivals(asked)
        sign = 1.0 if self._directions[0] == "maximize" else -1.0
        level = sign * float(np.mean(list(own.values())))
        levels = [
            sign * float(np.mean([other[block] for block in own])) for other in rivals if own.keys() <= other.keys()
        ]
        if goes_on(level, levels, eta):
            return {"event": "cleared", "number": asked.number, "blocks": min(asked.cleared * eta, len(self._blocks))}
        why = f"not among the best 1/{eta} of {len(levels) + 1} variants after {len(own)} fold runs"
        return _told(asked, "raced out", [adjusted(own, rivals, self._blocks)], why=why)

    def _judge_rungs(self, asked: _Asked, block: Block) -> None:
        """Judge a fold run under way at every rung that it has reached."""
        key = asked.key(block)
        if self._asha is None or asked.end is not None or key in self._ends:
            return
        curve, passed = self._curve(key), asked.verdicts.setdefault(block, {})
        for rung in rungs(asked.variant, self._asha.min_epochs, self._asha.eta):
            if rung in passed or len(curve) < rung:
                continue
            rivals = self._at_rung(asked, block, rung)
            stop = not goes_on(max(curve[:rung]), rivals, self._asha.eta)
            decision = {"event": "rung", "number": asked.number, "block": list(block), "epochs": rung, "stop": stop}
            self._decide(decision)
            if stop:
                return

    def _at_rung(self, asked: _Asked, block: Block, rung: int) -> list[float]:
        """Best scores up to the rung of the other variants of the same loss on the same block that have come so far.

        One that ended by itself before it, its patience spent, counts with its best.
        """
        loss, scores = asked.variant.config.loss.name, []
        for other in self._asked.values():
            if other is asked or other.variant.config.loss.name != loss:
                continue
            key = other.key(block)
            curve, end = self._curve(key), self._ends.get(key)
            if len(curve) >= rung or (end is not None and end.status == "finished"):
                scores.append(max(curve[:rung]))
        return scores

    def _curve(self, key: Key) -> Sequence[float]:
        return self._ends[key].curve if key in self._ends else self._curves.get(key, ())

    def _tell(self, decision: Decision) -> None:
        asked = self._asked[decision["number"]]
        end, told, curve = decision["end"], decision["told"], decision["curve"]
        broken = {self._ends[key].status for block in self._blocks if (key := asked.key(block)) in self._ends}
        if asked.end is not None or (end in ("failed", "diverged") and end not in broken):
            return  # its records were set aside to be tried again: the variant was, or is, open once more
        if end == "stopped":
            for step, score in enumerate(curve):
                asked.trial.report(score, step)
            self._study.tell(asked.trial, state=TrialState.PRUNED)
        elif told:
            self._study.tell(asked.trial, told)
        else:
            self._study.tell(asked.trial, state=TrialState.FAIL)
        asked.end, asked.told, asked.why = end, tuple(told) or tuple(curve[-1:]), decision["why"]
        del self._open[asked.number]


def _told(
    asked: _Asked, end: VariantEnd, told: Sequence[float] = (), *, curve: Sequence[float] = (), why: str = ""
) -> Decision:
    return {
        "event": "told",
        "number": asked.number,
        "end": end,
        "told": [float(value) for value in told],
        "curve": [float(score) for score in curve],
        "why": why,
    }


def _name(block: Block) -> str:
    partition, fold, seed = block
    return f"partition {partition}, fold {fold}, seed {seed}"
