"""The guide editor: one page, served on 127.0.0.1 to whoever has its address, that writes one file."""

from __future__ import annotations

import difflib
import hashlib
import hmac
import io
import json
import secrets
import webbrowser
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from guided.cli import OK
from guided.data_check import class_tiles
from guided.guide import Drawing, read_drawing
from guided.guide_check import check_drawing, lineage_lines
from guided.guide_file import guide_text, with_points, write_text
from guided.guide_plot import lineage_colours

LARGEST = 1_000_000  # bytes of a request, and the largest coordinate
PAGES = {
    "": ("editor.html", "text/html; charset=utf-8"),
    "editor.js": ("editor.js", "text/javascript; charset=utf-8"),
    "editor.css": ("editor.css", "text/css; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Changed(Exception):
    """The guide file is no longer the one that the page shows."""


class Guide:
    """The one file that is edited. All answers are made from what stands on disk at that moment."""

    def __init__(self, path: Path, tiles: dict[str, list[Image.Image]]) -> None:
        self.path = path
        self.tiles = {label: [_jpeg(tile) for tile in shown] for label, shown in tiles.items()}
        self.drawing = read_drawing(path)

    def _text(self) -> tuple[str, str]:
        """Content of the file and its version, a hash."""
        content = self.path.read_bytes()
        return content.decode("utf-8"), hashlib.sha256(content).hexdigest()

    def state(self) -> dict[str, Any]:
        """What the page shows: classes with points, lines between stages, colours, how many pictures there are."""
        _, version = self._text()
        self.drawing = read_drawing(self.path)
        colours = lineage_colours(self.drawing.lineages)
        classes = [
            {"label": label, "x": x, "y": y, "lineage": lineage, "stage": stage, "colour": colours[lineage]}
            | {"tiles": len(self.tiles.get(label, []))}
            for label, (x, y), lineage, stage in zip(
                self.drawing.classes,
                np.nan_to_num(self.drawing.points).tolist(),
                self.drawing.lineages,
                self.drawing.stages,
                strict=True,
            )
        ]
        lines = [{"rows": rows, "colour": colours[lineage]} for lineage, rows in lineage_lines(self.drawing)]
        told = {"name": self.drawing.name, "file": str(self.path), "version": version}
        return {**told, "classes": classes, "lines": lines}

    def check(self, points: np.ndarray) -> dict[str, Any]:
        """Findings on moved points, and the version of the file as it is now. Missing and extra classes are told where
        the pictures of a data set are shown."""
        wanted = list(self.tiles) or None
        findings = check_drawing(self._moved(points), wanted)
        told = [{**asdict(finding), "text": str(finding)} for finding in findings]
        return {"findings": told, "version": self._text()[1]}

    def diff(self, points: np.ndarray, version: str) -> dict[str, Any]:
        """The file as it would be written, as a unified diff, and a note where its comments cannot be kept."""
        before, after, note = self._edited(points, version)
        lines = difflib.unified_diff(
            before.splitlines(), after.splitlines(), str(self.path), f"{self.path} (new)", lineterm="", n=1
        )
        return {"diff": list(lines), "note": note}

    def save(self, points: np.ndarray, version: str) -> dict[str, Any]:
        """Write the file in one step. Raises Changed where it is not the one the page has read."""
        before, after, _ = self._edited(points, version)
        if after != before:
            write_text(self.path, after)
        return {"version": self._text()[1]}

    def _edited(self, points: np.ndarray, version: str) -> tuple[str, str, str]:
        before, now = self._text()
        if now != version:
            raise Changed(f"{self.path} has been changed on disk since the page read it")
        moved = {label: (float(x), float(y)) for label, (x, y) in zip(self.drawing.classes, points, strict=True)}
        try:
            return before, with_points(before, moved), ""
        except ValueError as error:
            note = f"The file is written anew and loses its comments: {error}."
            return before, guide_text(self._moved(points)), note

    def _moved(self, points: np.ndarray) -> Drawing:
        return self.drawing._replace(points=points)


def _jpeg(tile: Image.Image) -> bytes:
    file = io.BytesIO()
    tile.save(file, "JPEG", quality=85)
    return file.getvalue()


class EditorServer(ThreadingHTTPServer):
    """Serves the editor of one guide file on 127.0.0.1, to requests that know its token."""

    daemon_threads = True

    def __init__(self, guide: Guide, port: int = 0) -> None:
        self.guide = guide
        self.token = secrets.token_urlsafe(24)
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """Address of the page, token included."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    server: EditorServer
    server_version, sys_version = "guide-editor", ""
    timeout = 30  # seconds for a request to arrive

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: an address in a log would give the token away."""

    def do_GET(self) -> None:
        """The page, its state and the pictures."""
        place = self._place()
        if place is None:
            return
        if place in PAGES:
            name, kind = PAGES[place]
            self._answer(200, files("guided.app").joinpath(name).read_bytes(), kind)
        elif place == "state":
            self._told(lambda: self.server.guide.state())
        elif (tile := self._tile(place)) is not None:
            self._answer(200, tile, "image/jpeg")
        else:
            self._json(404, {"error": "there is no such page"})

    def do_POST(self) -> None:
        """check, diff, save: a JSON object with `points`, one (x, y) a class, and `version`."""
        place = self._place()
        if place is None:
            return
        guide = self.server.guide
        if self.headers.get_content_type() != "application/json" or not self._same_origin():
            self._json(403, {"error": "only the page itself may ask for that"})
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST:
            self._json(413, {"error": f"a request has a length of at most {LARGEST} bytes"})
            return
        body = self.rfile.read(int(length))

        def answer() -> dict[str, Any]:
            points, version = _request(body, len(guide.drawing.classes))
            if place == "check":
                return guide.check(points)
            return guide.diff(points, version) if place == "diff" else guide.save(points, version)

        if place in ("check", "diff", "save"):
            self._told(answer)
        else:
            self._json(404, {"error": "there is no such page"})

    def _place(self) -> str | None:
        """What is asked for behind the token; answers 403 itself to a request without it or for another host."""
        host = self.headers.get("Host", "")
        token, slash, place = self.path.removeprefix("/").partition("?")[0].partition("/")
        known = hmac.compare_digest(token.encode(), self.server.token.encode()) and slash
        # A page elsewhere whose name is made to point here sends its own name as host.
        if not known or host not in (f"127.0.0.1:{self.server.server_port}", f"localhost:{self.server.server_port}"):
            self._json(403, {"error": "this address is not complete; take the one that the command printed"})
            return None
        return place

    def _same_origin(self) -> bool:
        origin = self.headers.get("Origin")
        return origin is None or origin == f"http://{self.headers['Host']}"

    def _tile(self, place: str) -> bytes | None:
        kind, *numbers = place.split("/")
        if kind != "tile" or len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
            return None
        row, number = map(int, numbers)
        classes = self.server.guide.drawing.classes
        tiles = self.server.guide.tiles.get(classes[row], []) if row < len(classes) else []
        return tiles[number] if number < len(tiles) else None

    def _told(self, answer: Any) -> None:
        try:
            self._json(200, answer())
        except Changed as error:
            self._json(409, {"error": str(error)})
        except (ValueError, OSError) as error:
            self._json(400, {"error": str(error)})

    def _json(self, status: int, content: dict[str, Any]) -> None:
        self._answer(status, json.dumps(content, allow_nan=False).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _request(body: bytes, classes: int) -> tuple[np.ndarray, str]:
    """Points (classes, 2) and version of a request. Raises ValueError for anything else."""
    try:
        told = json.loads(body)
        points = np.array(told["points"], dtype=np.float64)
        version = str(told.get("version", ""))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        raise ValueError("the request is no JSON object with points") from None
    if points.shape != (classes, 2) or not (np.abs(points) <= LARGEST).all():
        raise ValueError(f"the request needs {classes} points of two numbers up to {LARGEST}")
    return points, version


def serve_editor(path: Path, data: Path | None, *, port: int, show: bool, console: Console) -> int:
    """Serve the editor of a guide file until Ctrl-C, with pictures of the classes of `data`; opens it in the browser
    with `show`. Raises ValueError for a file that is no guide, OSError for a port that is taken."""
    if not 0 <= port < 65536:
        raise ValueError(f"--port is {port}; it must be between 0 (a free one) and 65535")
    guide = Guide(path, {} if data is None else class_tiles(data))
    with EditorServer(guide, port) as server:
        console.print(f"editing {path}", markup=False, soft_wrap=True)
        console.print(server.url, markup=False, soft_wrap=True)
        console.print("only this machine can open it, and only by the whole address; Ctrl-C ends it")
        if show:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("stopped")
    return OK
