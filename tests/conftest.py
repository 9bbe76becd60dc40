"""Shared by all tests: small real data sets, and Ray kept to this machine."""

from __future__ import annotations

import os

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
from browser import browser as browser

from guided.config import Config, Data
from guided.data import Dataset, load_dataset

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def marrow(cache: Path) -> Dataset:
    """A small synthetic marrow: 600 cells of 24 px."""
    return load_dataset(Data(source="synthetic", size=24, cells=600), cache, progress=False)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow store, to be copied: making one from nothing takes seconds."""
    from mlflow import MlflowClient  # slow to import, and most tests need none

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def quick() -> Config:
    """A variant that trains in seconds and passes through warm-up, growth and refresh."""
    return Config.model_validate_json(
        """{"loss": {"name": "guide_umap", "fit_epochs": 10, "n_neighbors": 8},
            "embedding": {"length": 6},
            "backbone": {"name": "densenet_small"},
            "train": {"epochs": 6, "patience": 6, "batch_size": 32, "learning_rate": 0.003},
            "classifier": {"families": ["svm", "knn"]},
            "validation": {"classifier": "centroid"}}"""
    )
