"""Length of the embedding while it grows (3.3). Epochs count from 0."""

from __future__ import annotations

from math import ceil

from guided.config import Embedding

WARMUP_EPOCHS = 3  # "the first three epochs use guide2D directly"
REACHED_AT = 0.6  # share of the epoch budget at which `auto` has grown to the full length


def growth_factor(config: Embedding, epochs: int) -> int:
    """Components opened per epoch.

    `auto` is the smallest factor that reaches the full length at 60 % of the budget of `epochs`; the paper uses 1, and
    4 for length 1024 (4.1).
    """
    if config.factor != "auto":
        return config.factor
    reached = max(int(REACHED_AT * epochs), WARMUP_EPOCHS)
    if config.rule == "literal":
        return max(1, ceil(config.length / reached))
    return max(1, ceil((config.length - 2) / (reached - (WARMUP_EPOCHS - 1))))


def length_at(epoch: int, config: Embedding, epochs: int) -> int:
    """Length n of the embedding in `epoch` of a budget of `epochs`.

    Growing, rule `paper`: n = min(2 + g·max(epoch - 2, 0), n_max), which is the paper's min(max(epoch, 2), n_max) for
    g = 1 and keeps "the first three epochs" at 2 for every g. Rule `literal`: n = min(max(g·epoch, 2), n_max).
    Not growing: n_max, after a warm-up at 2 where there is one.
    """
    if not config.growing:
        return 2 if config.warmup and epoch < WARMUP_EPOCHS else config.length
    factor = growth_factor(config, epochs)
    if config.rule == "literal":
        return min(max(factor * epoch, 2), config.length)
    return min(2 + factor * max(epoch - (WARMUP_EPOCHS - 1), 0), config.length)


def is_warmup(epoch: int, config: Embedding) -> bool:
    """Whether `epoch` trains guide2D whatever the method."""
    return config.warmup and epoch < WARMUP_EPOCHS


def reaches_length(config: Embedding, epochs: int) -> bool:
    """Whether a run over the whole budget ever has the full length."""
    return length_at(epochs - 1, config, epochs) == config.length
