"""The embedding of a fold run at its best epoch, kept: all that is scored after training depends on nothing else.

Another classifier grid, a truncation or a metric that did not exist yet is so had without training. Imports no torch.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guided.config import METHOD_VERSION, Classifier, Config, content_id
from guided.data import Dataset
from guided.folds import Fold
from guided.guide import EmbeddingGuide
from guided.sealed import read_sealed, sealed


@dataclass(frozen=True)
class Embedded:
    """A fold's cells at the best epoch, and what else its result takes from the training."""

    train: np.ndarray  # (N, n) float32, without augmentation, as those below
    validation: np.ndarray  # (V, n)
    test: np.ndarray  # (T, n)
    points: np.ndarray | None  # (C, n) where the loss drew the cells; None: it draws to none
    by_head: np.ndarray | None  # (T,) classes of the test cells by the loss's own head; None: it has none
    epoch: int
    val_f1: float
    history: list[dict[str, float]]

    @property
    def length(self) -> int:
        """n, the length of the embedding in that epoch."""
        return int(self.train.shape[1])


def embedding_key(config: Config) -> str:
    """What the embedding at the best epoch depends on, as hex digits.

    The classifier comes after it. Only where the whole grid scores every epoch (validation.classifier: grid) does the
    grid choose the epoch; how many components the classifier sees never does.
    """
    after = Classifier()
    if config.validation.classifier == "grid":
        after = config.classifier.model_copy(update={"components": "all"})
    return config.model_copy(update={"classifier": after}).id


def kept_path(
    folder: Path, data: Dataset, fold: Fold, guide: EmbeddingGuide, config: Config, *, seed: int, device: str
) -> Path:
    """Where in `folder` the embedding of this fold run lies, if it has been kept.

    Bits differ from one kind of device to another, so each has its own.
    """
    rows = [hashlib.sha256(part.tobytes()).hexdigest() for part in (fold.train, fold.validation, fold.test)]
    place = [fold.partition, fold.index, seed, device.partition(":")[0]]
    content = [embedding_key(config), METHOD_VERSION, data.fingerprint, guide.points.tolist(), *rows, *place]
    return folder / f"{content_id(content, 16)}.npz"


def write_kept(path: Path, embedded: Embedded) -> None:
    """Put it in place whole or not at all."""
    arrays = {name: getattr(embedded, name) for name in ("train", "validation", "test")}
    arrays |= {name: value for name in ("points", "by_head") if (value := getattr(embedded, name)) is not None}
    told = {"epoch": embedded.epoch, "val_f1": embedded.val_f1, "history": embedded.history}
    buffer = io.BytesIO()  # numpy writes to nothing that it could not read
    np.savez(buffer, allow_pickle=False, told=np.array(json.dumps(told, allow_nan=False)), **arrays)
    with sealed(path) as file:
        file.write(buffer.getbuffer())


def read_kept(path: Path) -> Embedded | None:
    """What `write_kept` put there; None where there is nothing, or it is damaged."""
    try:
        payload = read_sealed(path)
    except FileNotFoundError:
        return None
    if payload is None:
        return None
    with np.load(io.BytesIO(payload), allow_pickle=False) as file:
        arrays = dict(file)
    told = json.loads(str(arrays.pop("told")))
    return Embedded(**{"points": None, "by_head": None, **arrays}, **told)
