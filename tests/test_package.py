"""The package as a user has it: installed, its commands, what they print, and the user's own files beside its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import analysis.__main__
import guided
import guided.__main__
import sweeps.__main__
from guided.config import GuidePoints
from guided.guide import load_guide
from sweeps.spec import find_sweep, load_sweep, own_sweeps, shipped_sweeps

REPOSITORY = Path(__file__).parent.parent
MAINS = {"guided": guided.__main__, "guided-sweeps": sweeps.__main__, "guided-analysis": analysis.__main__}


def test_the_version_stands_in_one_place() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project and 'attr = "guided.__version__"' in project
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"] == guided.__version__
    assert f"## {guided.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("command", sorted(MAINS))
def test_version_and_completion_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        MAINS[command].main(["--version"])
    assert capsys.readouterr().out.split()[-1] == guided.__version__
    with pytest.raises(SystemExit, match="0"):
        MAINS[command].main(["--print-completion", "bash"])
    script = capsys.readouterr().out
    name = re.sub(r"\W", "_", command)
    asked = f"{script}\nCOMP_WORDS=({command} --ver); COMP_CWORD=1; _shtab_{name}; echo ${{COMPREPLY[@]}}"
    told = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=False)
    assert told.stdout.split() == ["--version"], told.stderr


@pytest.mark.parametrize(
    ("command", "words", "told"),
    [
        ("guided", ["embed", "--model", "absent.npz", "x.png"], "no model file absent.npz; `sweeps refit"),
        ("guided-sweeps", ["plan", "ablation_lowpas"], "did you mean 'ablation_lowpass'?"),
        ("guided-sweeps", ["refit", "table1", "CE 2", "--out", "nowhere"], "run the sweep first"),
        ("guided-analysis", ["table", "table1", "--out", "nowhere"], "nowhere"),
    ],
)
def test_errors_end_in_a_line_and_show_their_origin_when_asked(
    command: str,
    words: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert MAINS[command].main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error:") and told in shown.err.splitlines()[-1]
    for asked in (["--debug", *words], [*words, "--debug"]):
        with pytest.raises((ValueError, OSError), match=re.escape(told)):
            MAINS[command].main(asked)


@pytest.mark.parametrize(("no_color", "coloured"), [("1", False), ("", True)])
def test_no_color_is_honoured(
    no_color: str, coloured: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("NO_COLOR", no_color), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    assert sweeps.__main__.main(["plan", "nope"]) == 2
    shown = capsys.readouterr().err
    assert "error:" in shown and bool(re.search(r"\x1b\[[0-9;]*3[0-9]", shown)) is coloured


# --- the user's own files -------------------------------------------------------------------------------------------


def test_own_sweeps_come_before_those_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert own_sweeps() == {} and find_sweep("table1") == shipped_sweeps()["table1"]
    assert sweeps.__main__.main(["new", "mine"]) == 0
    assert load_sweep("mine", preset="laptop").question.endswith("?"), "what `new` writes can be planned as it is"
    assert sweeps.__main__.main(["new", "table1", "--like", "ablation_length"]) == 0
    assert find_sweep("table1") == Path("sweeps/table1.yaml")
    assert load_sweep("table1", preset="laptop").question == load_sweep("ablation_length", preset="laptop").question


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["new", "../evil"], "'../evil' cannot name a sweep"),
        (["new", "table1"], "sweeps/table1.yaml is there already"),
        (["new", "other", "--like", "tabel1"], "did you mean 'table1'?"),
    ],
)
def test_new_neither_escapes_nor_overwrites(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sweeps").mkdir()
    Path("sweeps/table1.yaml").write_text("mine")
    assert sweeps.__main__.main(words) == 2 and told in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*.yaml")] == ["table1.yaml"]
    assert Path("sweeps/table1.yaml").read_text() == "mine"


def test_list_shows_own_sweeps_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sweeps.__main__.main(["new", "zebra"])
    capsys.readouterr()
    assert sweeps.__main__.main(["list"]) == 0
    lines = [line.split("  ")[0].strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == "zebra (yours)" and "table1" in lines


def test_own_guides_come_before_those_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("guides").mkdir()
    text = "classes: {monocyte: {x: 1, y: 0}, lymphocyte: {x: 0, y: 1}}\n"
    shipped = load_guide(GuidePoints(), ["lymphocyte", "monocyte"])
    Path("guides/pbc.yaml").write_text(text)
    own = load_guide(GuidePoints(file="pbc", radius=1.0), ["lymphocyte", "monocyte"])
    assert own.points.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert load_guide(GuidePoints(), ["lymphocyte", "monocyte"]).name == "pbc" != shipped.name
    assert load_guide(GuidePoints(file="marrow"), ["blast", "monocyte"]).name == "marrow"
    with pytest.raises(ValueError, match="'pbc' lacks nothing_known"):
        load_guide(GuidePoints(), ["monocyte", "nothing_known"])


# --- installed ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_installation_has_the_commands_and_the_files_and_no_tests(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("guided", "sweeps", "analysis", "tests"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    told = subprocess.run([*pip, "--target", str(target), str(source)], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert {path.name for path in target.iterdir() if path.is_dir()} == {
        "guided",
        "sweeps",
        "analysis",
        "bin",
        f"guided_sweeps-{guided.__version__}.dist-info",
    }
    for kept in ("guided/guides/marrow.yaml", "sweeps/table1.yaml", "sweeps/presets/laptop.yaml"):
        assert (target / kept).exists(), kept
    assert {path.parent.name for path in target.glob("*/py.typed")} == {"guided", "sweeps", "analysis"}
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "sweeps").mkdir(parents=True)  # a folder of that name must not hide the package
    environment = {**os.environ, "PYTHONPATH": str(target)}
    for command in MAINS:
        words = [str(target / "bin" / command), "--version"]
        told = subprocess.run(words, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
        assert told.stdout == f"{command} {guided.__version__}\n", told.stderr
    told = subprocess.run(
        [str(target / "bin" / "guided-sweeps"), "list"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0 and "ablation_lowpass" in told.stdout and "(yours)" not in told.stdout
