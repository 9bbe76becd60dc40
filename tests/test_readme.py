"""The README's examples: each is understood by the command it names, and the one about digits is played to its end.

What trains for minutes is not trained here: `make` runs with a `python` that only notes what it is asked for, and the
parser of the command must take that.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import analysis.__main__
import guided.__main__
import sweeps.__main__

REPOSITORY = Path(__file__).parent.parent
PARSERS = {
    "guided": guided.__main__.parser,
    "sweeps": sweeps.__main__.parser,
    "analysis": analysis.__main__.parser,
}
CONSOLE = {"guided": "guided", "guided-sweeps": "sweeps", "guided-analysis": "analysis"}


def blocks(language: str, heading: str = "") -> list[str]:
    """Fenced blocks of a language in the README, or in its section `heading` only."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    if heading:
        text = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        assert text, f"the README has a section {heading!r}"
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """One shell command each; a command may go on over several lines."""
    found = []
    for block in blocks("sh"):
        lines = block.replace("\\\n", " ").splitlines()
        while lines:
            command = lines.pop(0)
            while command.count('"') % 2:
                command += "\n" + lines.pop(0)
            if command.strip() and not command.startswith("#"):
                found.append(command)
    return found


def asked_of_python(command: str, folder: Path) -> list[list[str]]:
    """The arguments that the Python programs behind a `make` command are called with."""
    noted, python = folder / "noted", folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        f'#!{sys.executable}\nimport json, sys\nopen({str(noted)!r}, "a").write(json.dumps(sys.argv[1:]) + "\\n")\n'
    )
    python.chmod(0o755)
    ready = [f"BIN={python.parent}", "-o", ".venv/ready", "-f", str(REPOSITORY / "Makefile")]
    words = ["make", *ready, *shlex.split(command)[1:]]
    told = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return [json.loads(line) for line in noted.read_text().splitlines()]


@pytest.mark.parametrize("command", commands())
def test_every_example_is_understood(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        asked = asked_of_python(command, tmp_path)
    elif words[0] in CONSOLE:
        asked = [["-m", CONSOLE[words[0]], *words[1:]]]
    else:
        assert words[0] == "python", f"an example of a program that the tests do not know: {command}"
        asked = [words[1:]]
    for option, what, *rest in asked:
        if option == "-c":
            compile(what, "README", "exec")
        else:
            assert option == "-m"
            PARSERS[what]().parse_args(rest)


def test_the_readme_has_examples_and_a_wrong_one_would_fail(tmp_path: Path) -> None:
    assert any(command.startswith("make sweep") for command in commands())
    (asked,) = asked_of_python("make plan SWEEP=table1 PRESET=paper LIMIT=ten", tmp_path)
    with pytest.raises(SystemExit):
        PARSERS["sweeps"]().parse_args(asked[2:])


@pytest.mark.slow
def test_the_own_problem_from_images_to_predictions(tmp_path: Path) -> None:
    for text in blocks("yaml", "Your own problem"):
        name = re.match(r"# (\S+)\n", text)
        assert name is not None, "the first line of a file is its name"
        path = tmp_path / name[1]
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    script = "\n".join(blocks("sh", "Your own problem"))
    environment = dict(
        os.environ, PYTHONPATH=str(REPOSITORY), PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    told = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert (tmp_path / "runs" / "reports" / "digits" / "report.html").exists()
    table = pd.read_csv(tmp_path / "digits.csv")
    true = table["id"].str.split("/").str[1].astype(int)
    assert set(true) == {3, 9} and (table["class"] == true).mean() > 0.8
    assert (tmp_path / "digits.png").stat().st_size > 10_000
