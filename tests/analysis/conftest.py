"""A store per test, and one whole study that tests only read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from recorded import SCORES, Recorded, copy_store, write_study


@pytest.fixture
def uri(template: Path, tmp_path: Path) -> str:
    """A fresh store that holds nothing."""
    return copy_store(template, tmp_path)


@pytest.fixture(scope="session")
def whole(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Three variants over five folds, all finished: to be read, not written."""
    uri = copy_store(template, tmp_path_factory.mktemp("whole"))
    return write_study(uri, SCORES, baseline="radius=5", classes={"blast": 0.5, "segmented": 0.9})


@pytest.fixture
def own(whole: Recorded, tmp_path: Path) -> Recorded:
    """A copy of the whole study, to be spoilt."""
    uri = copy_store(Path(whole.uri.removeprefix("sqlite:///")), tmp_path)
    return replace(whole, uri=uri)
