"""Length of the embedding while it grows (3.3). Epochs count from 0.

Warm-up and growth are two switches of every method:

| warm-up | growing | length | loss |
|---|---|---|---|
| yes | yes | by the rule | guide2D in epochs 0-2, then the method's own (the paper's "growing") |
| yes | no | 2 in epochs 0-2, then n_max | guide2D in epochs 0-2, then the method's own |
| no | yes | by the rule | the method's own from the start |
| no | no | n_max | the method's own from the start (the paper's baselines) |

The rule gives the same lengths with and without a warm-up. All rules but `literal` stay at 2 in epochs 0-2; `literal`
with a factor g > 1 has max(g·epoch, 2) components there, of which guide2D trains the first two.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from guided.config import Embedding, Train

WARMUP_EPOCHS = 3  # "the first three epochs use guide2D directly"
REACHED_AT = 0.6  # share of the epoch budget at which `auto` and `staged` have grown to the full length

Past = Sequence[tuple[int, float]]  # length and validation score of every epoch so far


def length_at(epoch: int, config: Embedding, epochs: int, past: Past = ()) -> int:
    """Length n of the embedding in `epoch` of a budget of `epochs`.

    Growing, by rule, with g the factor and s the step:
    paper: n = min(2 + g·max(epoch - 2, 0), n_max), which is the paper's min(max(epoch, 2), n_max) for g = 1 and keeps
    "the first three epochs" at 2 for every g.
    literal: n = min(max(g·epoch, 2), n_max).
    staged: 2, 2s, 2s², … up to n_max, the growths spread evenly from epoch 2 to 60 % of the budget; in a budget with
    fewer epochs than growths some lengths are passed over.
    plateau: n·s (at most n_max) after a stall, else n. A stall: at the present length, not counting epochs 0-2, the
    best score (its first epoch) is `patience` epochs old. So every length is kept for more than `patience` epochs, and
    a fall of the score caused by growing itself is no stall.
    Not growing: n_max, after a warm-up at 2 where there is one.

    `past` is read by plateau alone: one (length, score) per epoch before this one. The length depends on nothing
    else, so a run that goes on from its records grows as if it had not stopped. Raises ValueError where `past` does
    not hold `epoch` entries.
    """
    if not config.growing or config.length == 2:
        return 2 if is_warmup(epoch, config) else config.length
    if config.rule == "plateau":
        return _plateau(epoch, config, epochs, past)
    if config.rule == "staged":
        growths = growths_needed(config)
        done = max(epoch - (WARMUP_EPOCHS - 1), 0) * growths // (_full_at(epochs) - (WARMUP_EPOCHS - 1))
        return min(2 * config.step ** min(done, growths), config.length)
    factor = growth_factor(config, epochs)
    if config.rule == "literal":
        return min(max(factor * epoch, 2), config.length)
    return min(2 + factor * max(epoch - (WARMUP_EPOCHS - 1), 0), config.length)


def _plateau(epoch: int, config: Embedding, epochs: int, past: Past) -> int:
    if len(past) != epoch:
        raise ValueError(f"rule plateau needs the length and score of all {epoch} epochs so far, got {len(past)}")
    if epoch <= WARMUP_EPOCHS:
        return 2
    length = past[-1][0]
    scores = [score for then, score in past[WARMUP_EPOCHS:] if then == length]
    age = len(scores) - 1 - scores.index(max(scores))
    return min(length * config.step, config.length) if age >= growth_patience(config, epochs) else length


def _full_at(epochs: int) -> int:
    return max(int(REACHED_AT * epochs), WARMUP_EPOCHS)


def growth_factor(config: Embedding, epochs: int) -> int:
    """Components opened per epoch by the rules paper and literal.

    `auto` is the smallest factor that reaches the full length at 60 % of the budget of `epochs`; `paper` is 1, and 4
    from length 1024 on (4.1).
    """
    if config.factor == "paper":
        return 4 if config.length >= 1024 else 1
    if config.factor != "auto":
        return config.factor
    if config.rule == "literal":
        return max(1, ceil(config.length / _full_at(epochs)))
    return max(1, ceil((config.length - 2) / (_full_at(epochs) - (WARMUP_EPOCHS - 1))))


def growths_needed(config: Embedding) -> int:
    """How often the rules staged and plateau multiply the length before it is full."""
    length, count = 2, 0
    while length < config.length:
        length, count = length * config.step, count + 1
    return count


def growth_patience(config: Embedding, epochs: int) -> int:
    """Epochs without a better score that make a stall of the rule plateau.

    `auto` is the largest number, but at least 1, with which a run that stalls whenever it can has its full length at
    60 % of the budget of `epochs`.
    """
    if config.patience != "auto":
        return config.patience
    return max(1, (_full_at(epochs) - WARMUP_EPOCHS) // max(growths_needed(config), 1) - 1)


def is_warmup(epoch: int, config: Embedding) -> bool:
    """Whether `epoch` trains guide2D whatever the method."""
    return config.warmup and epoch < WARMUP_EPOCHS


def reaches_length(config: Embedding, train: Train) -> bool | None:
    """Whether a run over its whole budget ever has the full length; None where its scores decide (rule plateau).

    A plateau does not get there where even a stall at every chance is too slow, nor where early stopping has no more
    patience than growth: the run then ends at its first stall.
    """
    if config.growing and config.rule == "plateau" and config.length > 2:
        patience = growth_patience(config, train.epochs)
        earliest = WARMUP_EPOCHS + growths_needed(config) * (patience + 1)
        return None if earliest < train.epochs and patience < train.patience else False
    return length_at(train.epochs - 1, config, train.epochs) == config.length
