"""What METHOD_VERSION stands for: the first epochs of every loss, as numbers. A change that moves them makes other
results of the same configuration, so it must raise the version, and then these numbers."""

from __future__ import annotations

import json

import pytest

from guided.config import METHOD_VERSION, Config
from guided.data import Dataset
from guided.folds import make_folds
from guided.guide import load_guide
from guided.losses import LOSSES
from guided.train import run_fold

GOLDEN = {
    "ce": [2.6836, 2.4995],
    "ctl": [0.4111, 0.3705],
    "distance": [3.8708, 3.4243],
    "guide2d": [4.0365, 3.5975],
    "guide_umap": [4.0365, 2.3879],
    "hierarchical_ce": [2.6873, 2.5105],
    "prototype": [3.4848, 2.9675],
    "supcon": [4.6694, 3.4699],
    "triplet": [0.7477, 0.4814],
}


def training_losses(marrow: Dataset, loss: str) -> list[float]:
    """Training loss of the first two epochs of a small variant that grows without warm-up."""
    values = {
        "loss": {"name": loss},
        "embedding": {"length": 6, "warmup": False},
        "backbone": {"name": "densenet_small"},
        "train": {"epochs": 4, "batch_size": 32, "learning_rate": 0.003},
        "classifier": {"families": ["knn"]},
        "validation": {"classifier": "centroid"},
    }
    config = Config.model_validate_json(json.dumps(values))
    fold = make_folds(marrow, config.folds)[0]
    epochs = run_fold(marrow, fold, load_guide(config.guide, marrow.classes), config, seed=0)
    return [next(epochs)["train/loss"] for _ in range(2)]


def test_the_golden_values_are_those_of_this_method_version() -> None:
    assert METHOD_VERSION == 5 and GOLDEN.keys() == LOSSES.keys()


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_the_method_gives_its_golden_values(marrow: Dataset, loss: str) -> None:
    # Other processors round otherwise, and rounding grows from step to step; a changed method moves more than this.
    assert training_losses(marrow, loss) == pytest.approx(GOLDEN[loss], rel=0.02)
