"""The report's page in a real browser: the explorer's hover, keys and filters; names that try to be markup."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser import Browser, Page
from recorded import CLASSES, copy_store, write_cells, write_study

from analysis.evidence import gather
from analysis.explorer import as_json, payload
from analysis.report import write_report
from analysis.runs import load_study
from analysis.tables import compare

SCORES = {"plain": (0.7, 0.71), "long": (0.72, 0.74)}
HOSTILE = '<img src=x onerror="window.hit=1">'


@pytest.fixture(scope="module")
def page_of(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 200 cells whose classes, ids, variants and question try to run a script."""
    folder = tmp_path_factory.mktemp("page")
    uri = copy_store(template, folder)
    scores = {f"{name}</script>{HOSTILE}": values for name, values in SCORES.items()}
    recorded = write_study(uri, scores, baseline=next(iter(scores)), data=f"a {HOSTILE}")
    classes = {f"{name}</script>{HOSTILE}" if name == "blast" else name: told for name, told in CLASSES.items()}
    write_cells(recorded, folder, cells=200, length=6, guided=False, classes=classes, ids="</script>" + HOSTILE + "{}")
    comparison = compare(load_study(uri, "radius"))
    return write_report(comparison, folder / "report", evidence=gather(uri, comparison))


def shown(page: Page) -> int:
    """Cells on the canvas."""
    return int(page.evaluate("document.getElementById('plot').cells().length"))


def at(page: Page, number: int) -> tuple[float, float]:
    """Where a cell lies in the window."""
    page.centre("#plot")
    x, y = page.evaluate(
        "(() => { const canvas = document.getElementById('plot'), box = canvas.getBoundingClientRect(),"
        f"at = canvas.cells()[{number}].at; return [box.x + at[0], box.y + at[1]]; }})()"
    )
    return float(x), float(y)


def text(page: Page, name: str) -> str:
    return str(page.evaluate(f"document.getElementById('{name}').textContent"))


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_explorer_works(browser: Browser, page_of: Path, width: int, dark: bool) -> None:
    page = browser.open(page_of.as_uri(), width=width, dark=dark)
    page.wait("document.getElementById('count').textContent !== ''")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert shown(page) == 100 and text(page, "count").startswith("100 cells shown, 10 of them mistaken")
    if width < 600:
        page.click(*at(page, 0))
    else:
        page.move(*at(page, 0))
    first = page.evaluate(
        "document.getElementById('plot').cells().find(c => c.id === document.getElementById('id').textContent)"
    )
    assert not page.evaluate("document.getElementById('card').hidden") and first is not None
    assert text(page, "where") == "fold 0" and float(text(page, "distance")) > 0
    assert "to the mean of its class" in text(page, "to")
    # The thumbnail is the cell's own: its grey tells its number.
    grey = page.evaluate("document.getElementById('picture').getContext('2d').getImageData(70, 70, 1, 1).data[0]")
    number = int(first["id"].rsplit(">", 1)[1])
    assert grey == pytest.approx(40 + 8 * (number % 25), abs=2)
    page.click("#none")
    assert shown(page) == 0 and page.evaluate("document.getElementById('card').hidden")
    page.click("#legend label:nth-of-type(1)")
    assert shown(page) == 20
    page.click("#all")
    page.click("#mistakes")
    assert shown(page) == 10 and text(page, "count").startswith("10 cells shown, 10 of them")
    page.click("#mistakes")
    page.evaluate("document.getElementById('fold').value = 'all'")
    page.evaluate("document.getElementById('fold').dispatchEvent(new Event('change'))")
    assert shown(page) == 200
    page.evaluate("document.getElementById('plot').focus()")
    page.key("ArrowRight")
    before = text(page, "id")
    page.key("ArrowUp")
    page.key("+")
    assert before and text(page, "id") not in ("", before)
    page.key("Escape")
    assert page.evaluate("document.getElementById('card').hidden")
    assert page.errors == [] and page.evaluate("window.hit") is None
    assert all(url.startswith(("file:", "data:")) for url in page.requests)
    page.close()


@pytest.mark.browser
def test_no_name_becomes_markup(browser: Browser, page_of: Path) -> None:
    page = browser.open(page_of.as_uri())
    assert page.evaluate("window.hit") is None and page.errors == []
    assert page.evaluate("[...document.images].length") == 0  # of HTML; those of figures are SVG's
    page.move(*at(page, 0))
    assert text(page, "id").startswith("</script><img src=x onerror")
    assert page.evaluate("document.getElementById('variant').options[0].textContent").startswith("plain</script><img")
    # Were a name markup all the same, the policy would still keep its script from running.
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"window.hit=1\">')")
    page.evaluate("new Promise(done => setTimeout(done, 50))")
    assert page.evaluate("window.hit") is None and any("Content Security Policy" in told for told in page.errors)
    page.close()


def test_fifteen_hundred_cells_fit_in_fifteen_megabytes(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = copy_store(template, tmp_path)
    recorded = write_study(uri, {"a": (0.5, 0.6, 0.5, 0.6, 0.5)}, baseline="a")
    write_cells(recorded, tmp_path, cells=1500)
    comparison = compare(load_study(uri, "radius"))
    evidence = gather(uri, comparison)
    content = payload(evidence, "a")
    assert len(content["cells"]["id"]) == 1500 and min(content["cells"]["thumbnail"]) == 0
    # Eight variants instead of one, and pictures that do not compress: 36 px of noise take about 2 kB.
    assert 8 * len(as_json(content["variants"])) + 4 / 3 * 1500 * 2000 < 10e6  # type: ignore[arg-type]


def test_json_ends_no_script() -> None:
    text = as_json({"a": "</script><!--\u2028&"})
    assert not set("<>&\u2028") & set(text) and json.loads(text) == {"a": "</script><!--\u2028&"}
