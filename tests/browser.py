"""Headless Chromium for tests of pages, driven over the DevTools protocol through a pipe: no package, no port.

    def test_my_page(browser, tmp_path):
        page = browser.open("http://127.0.0.1:8000/" or path.as_uri(), width=390)
        page.wait("document.querySelector('canvas') !== null")
        page.move(*page.centre("#plot"))
        assert page.evaluate("document.title") == "…" and page.errors == []

The fixture `browser` skips where there is no Chromium, and fails there if REQUIRE_BROWSER is set (as in CI).
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
PATIENCE = 30.0  # seconds; a loaded machine starts Chromium in five


class Browser:
    """One Chromium process; each page is a tab of its own."""

    def __init__(self, program: str, folder: Path) -> None:
        commands, self._out = os.pipe()
        self._in, answers = os.pipe()
        # Chromium reads its orders from descriptor 3 and answers on 4: above them nothing is overwritten on the way.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands, answers)]
        redirect = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}'
        with (folder / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", redirect, "chromium", program, *FLAGS, f"--user-data-dir={folder / 'profile'}"],
                pass_fds=ends,
                stdout=log,
                stderr=log,
            )
        for end in (commands, answers, *ends):
            os.close(end)
        self._buffer = b""
        self._last = 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, parameters: dict[str, Any] | None = None, session: str | None = None) -> dict[str, Any]:
        """Give an order and wait for its answer; what happens meanwhile is kept in `events`."""
        self._last += 1
        order = {"id": self._last, "method": method, "params": parameters or {}}
        if session is not None:
            order["sessionId"] = session
        os.write(self._out, json.dumps(order).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            message = self._receive(deadline - time.monotonic(), method)
            if message.get("id") != self._last:
                self.events.append(message)
            elif "error" in message:
                raise RuntimeError(f"{method}: {message['error']['message']}")
            else:
                return message["result"]

    def _receive(self, seconds: float, waiting_for: str) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))[0]
            read = os.read(self._in, 1 << 20) if ready else b""
            if not read:
                raise TimeoutError(f"Chromium did not answer {waiting_for}")
            self._buffer += read
        text, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(text)

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """A new tab of that size at `url`, loaded."""
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        page.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.send("Emulation.setEmulatedMedia", {"features": [scheme]})
        page.send("Page.navigate", {"url": url})
        page.wait("location.href !== 'about:blank' && document.readyState === 'complete'")
        return page

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)


class Page:
    """A tab. `errors` are uncaught exceptions, console errors and whatever the browser itself logs as an error."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def send(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        """An order of the DevTools protocol to this tab."""
        return self._browser.send(method, parameters, self._session)

    def _events(self, method: str) -> list[dict[str, Any]]:
        self.send("Runtime.evaluate", {"expression": "0"})  # whatever happened before is told before this answer
        own = [event for event in self._browser.events if event.get("sessionId") == self._session]
        return [event["params"] for event in own if event["method"] == method]

    @property
    def errors(self) -> list[str]:
        """What went wrong so far, in words."""
        thrown = [told["exceptionDetails"] for told in self._events("Runtime.exceptionThrown")]
        found = [each.get("exception", {}).get("description", each["text"]) for each in thrown]
        for call in self._events("Runtime.consoleAPICalled"):
            if call["type"] in ("error", "assert"):
                found.append(" ".join(str(each.get("value", each.get("description"))) for each in call["args"]))
        entries = [event["entry"] for event in self._events("Log.entryAdded")]
        return found + [entry["text"] for entry in entries if entry["level"] == "error"]

    @property
    def requests(self) -> list[str]:
        """URLs that the page asked for, itself included."""
        return [event["request"]["url"] for event in self._events("Network.requestWillBeSent")]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression (a promise is awaited)."""
        order = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self.send("Runtime.evaluate", order)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = PATIENCE) -> None:
        """Until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(f"still not true after {seconds:g} s: {expression}")
            time.sleep(0.03)

    def centre(self, selector: str) -> tuple[float, float]:
        """Middle of the first element of a selector, scrolled into view, in CSS pixels of the window."""
        box = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null;"
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        if box is None:
            raise ValueError(f"the page has no {selector}")
        return float(box[0]), float(box[1])

    def move(self, x: float, y: float) -> None:
        """Move the mouse there."""
        self.send("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})

    def drag(self, start: tuple[float, float], end: tuple[float, float], steps: int = 5) -> None:
        """Press at `start`, move to `end`, release."""
        self._press("mousePressed", *start)
        for step in range(1, steps + 1):
            share = step / steps
            x, y = (a + share * (b - a) for a, b in zip(start, end, strict=True))
            self.send("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y, "buttons": 1})
        self._press("mouseReleased", *end)

    def click(self, x: float | str, y: float | None = None) -> None:
        """Click at a point, or in the middle of a selector."""
        place = self.centre(x) if isinstance(x, str) else (x, float(y or 0))
        self.move(*place)
        self._press("mousePressed", *place)
        self._press("mouseReleased", *place)

    def _press(self, kind: str, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1})

    def key(self, name: str) -> None:
        """Press a key by its DOM name: Tab, Enter, ArrowLeft, Escape, a …"""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Delete": 46, "Backspace": 8}
        text = {"Enter": "\r"}.get(name, name if len(name) == 1 else "")
        order: dict[str, Any] = {
            "key": name,
            "code": name,
            "windowsVirtualKeyCode": codes.get(name, ord(name[0].upper())),
        }
        self.send("Input.dispatchKeyEvent", {"type": "keyDown", **order, **({"text": text} if text else {})})
        self.send("Input.dispatchKeyEvent", {"type": "keyUp", **order})

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.send("Input.insertText", {"text": text})

    def resize(self, width: int, height: int) -> None:
        """Size of the window in CSS pixels; a narrow one counts as a phone."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", size)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """PNG of the window, or of the whole page."""
        shot = self.send("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole})
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """Close the tab."""
        self.send("Page.close")


def chromium() -> str | None:
    """Path of a Chromium on this machine, if there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A running Chromium, shared by all tests."""
    program = chromium()
    if program is None:
        told = "no Chromium on this machine (Debian: apt-get install chromium)"
        pytest.fail(f"{told}, and REQUIRE_BROWSER is set") if os.environ.get("REQUIRE_BROWSER") else pytest.skip(told)
    made = Browser(program, tmp_path_factory.mktemp("chromium"))
    try:
        yield made
    finally:
        made.close()
