"""The driver itself: what it reports must be what the page did."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Browser

PAGE = """<!doctype html><title>driver</title><meta name="viewport" content="width=device-width">
<button id="b" style="width:80px">0</button><input id="i">
<script>b.onclick = () => { b.textContent++; }; i.onkeydown = e => { document.title = e.key; };
addEventListener("mousemove", e => { window.at = [e.clientX, e.clientY]; });</script>"""


@pytest.mark.browser
def test_clicks_keys_and_errors_are_seen(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(PAGE, encoding="utf-8")
    page = browser.open(path.as_uri(), width=390, height=500)
    assert page.evaluate("innerWidth") == 390 and page.errors == [] and page.requests == [path.as_uri()]
    page.click("#b")
    page.click("#b")
    assert page.evaluate("b.textContent") == "2"
    page.move(17, 23)
    assert page.evaluate("at") == [17, 23]
    page.click("#i")
    page.type("typed")
    page.key("ArrowLeft")
    assert page.evaluate("[i.value, document.title]") == ["typed", "ArrowLeft"]
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    page.evaluate("setTimeout(() => { throw new TypeError('wrong turn'); }), console.error('told', 5)")
    page.evaluate("new Promise(done => setTimeout(done, 20))")
    told = page.errors
    assert any("TypeError: wrong turn" in line for line in told) and "told 5" in told
    with pytest.raises(ValueError, match="the page has no #nothing"):
        page.centre("#nothing")
    page.close()
