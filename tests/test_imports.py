"""The house: guided knows nothing of sweeps, sweeps nothing of analysis but its statistics, analysis nothing of sweeps
but the names of the record and nothing of guided but the geometry of an embedding."""

from __future__ import annotations

import subprocess
import sys

import pytest

FORBIDDEN = {
    "guided": ["ray", "mlflow", "optuna", "sweeps", "analysis"],
    "sweeps": ["analysis.runs", "analysis.tables", "analysis.report", "analysis.figures"],
    "analysis": [
        "ray",
        "torch",
        "optuna",
        "guided.train",
        "guided.data",
        "sweeps.spec",
        "sweeps.engine",
        "sweeps.tracking",
    ],
}


def loaded(package: str, also: str = "") -> set[str]:
    """Modules that stand in sys.modules after a clean process has imported every module of `package`."""
    code = (
        f"import importlib, pkgutil, sys, {package}\n"
        f"for module in pkgutil.iter_modules({package}.__path__):\n"
        "    if module.name != '__main__':\n"
        f"        importlib.import_module('{package}.' + module.name)\n"
        f"{also}\n"
        "print('\\n'.join(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(told.stdout.split())


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_follow_the_house(package: str) -> None:
    assert not loaded(package) & set(FORBIDDEN[package])


def test_umap_is_imported_only_where_guide_umap_runs() -> None:
    assert not loaded("guided") & {"umap", "numba", "pynndescent"}


def test_the_check_can_fail() -> None:
    assert "mlflow" in loaded("guided", also="import mlflow")
