"""The guide editor: what the server refuses, what it writes, and the page itself in Chromium."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from guided.app.editor import EditorServer, Guide
from guided.guide import SHIPPED, read_guide

HOSTILE = "<img src=x onerror=document.title='run'>"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(SHIPPED / "pbc.yaml", tmp_path / "pbc.yaml"))


def tiles(*labels: str) -> dict[str, list[Image.Image]]:
    return {label: [Image.new("RGB", (32, 32), (200, 40 * n, 90)) for n in range(3)] for label in labels}


def serve(path: Path, pictures: dict[str, list[Image.Image]] | None = None) -> Iterator[EditorServer]:
    server = EditorServer(Guide(path, pictures or {}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server(path: Path) -> Iterator[EditorServer]:
    yield from serve(path, tiles(*read_guide(path).classes))


class Answer:
    def __init__(self, status: int, body: bytes, headers: http.client.HTTPMessage) -> None:
        self.status, self.body, self.headers = status, body, headers

    @property
    def told(self) -> dict[str, Any]:
        return json.loads(self.body)


def ask(server: EditorServer, place: str, body: Any = None, *, token: bool = True, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    told = {"Content-Type": "application/json"} if body is not None else {}
    told |= {name.replace("_", "-"): value for name, value in headers.items()}
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request("GET" if body is None else "POST", f"/{server.token}/{place}" if token else place, content, told)
    answer = connection.getresponse()
    found = Answer(answer.status, answer.read(), answer.headers)
    connection.close()
    return found


def points(server: EditorServer) -> list[list[float]]:
    return [[entry["x"], entry["y"]] for entry in ask(server, "state").told["classes"]]


# --- who may ask


@pytest.mark.parametrize("place", ["/", "/state", "/editor.js", "//state", "/x/state", "/%2e%2e/state"])
def test_a_request_without_the_token_is_refused(server: EditorServer, place: str) -> None:
    assert ask(server, place, token=False).status == 403
    assert ask(server, place, {"points": points(server)}, token=False).status == 403


def test_a_wrong_or_incomplete_token_is_refused(server: EditorServer) -> None:
    for wrong in (server.token[:-1], server.token + "x", server.token.swapcase(), ""):
        assert ask(server, f"/{wrong}/state", token=False).status == 403
    assert ask(server, f"/{server.token}", token=False).status == 403
    assert len(server.token) >= 32 and server.url.startswith("http://127.0.0.1:")


def test_another_host_or_origin_is_refused(server: EditorServer, path: Path) -> None:
    assert ask(server, "state", Host=f"evil.example:{server.server_port}").status == 403
    assert ask(server, "state", Host="127.0.0.1").status == 403
    assert ask(server, "state", Host=f"localhost:{server.server_port}").status == 200
    before, state = path.read_bytes(), ask(server, "state").told
    body = {"points": [[n, n * n] for n in range(len(state["classes"]))], "version": state["version"]}
    assert ask(server, "save", body, Origin="http://evil.example").status == 403
    assert ask(server, "save", body, Content_Type="text/plain").status == 403
    assert path.read_bytes() == before


def test_it_listens_on_this_machine_only(server: EditorServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "place",
    ["../pbc.yaml", "..%2fpbc.yaml", "tile/0/99", "tile/-1/0", "tile/999/0", "tile/../../0", "editor.py", "tile/0"],
)
def test_only_its_own_pages_are_served(server: EditorServer, place: str) -> None:
    assert ask(server, place).status == 404


def test_the_page_may_load_nothing_from_elsewhere(server: EditorServer) -> None:
    page = ask(server, "")
    assert page.status == 200 and b"http" not in page.body
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'") and "unsafe" not in policy
    assert page.headers["Referrer-Policy"] == "no-referrer"  # the address holds the token
    row = ask(server, "state").told["classes"]
    (basophil,) = [number for number, entry in enumerate(row) if entry["label"] == "basophil"]
    assert ask(server, f"tile/{basophil}/2").body.startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"points": 3}', b'{"points": [[1, 2]]}', b'{"points": [["a", "b"]]}', b"[" * 5000,
     b'{"points": [[1e999, 0]]}', b"\xff"],
)  # fmt: skip
def test_odd_requests_are_answered_not_obeyed(server: EditorServer, path: Path, body: bytes) -> None:
    before = path.read_bytes()
    for place in ("check", "diff", "save"):
        answer = ask(server, place, body)
        assert answer.status == 400 and answer.told["error"]
    assert path.read_bytes() == before


def test_points_that_are_no_numbers_or_too_many_bytes_are_refused(server: EditorServer) -> None:
    moved = points(server)
    moved[0][0] = 1e7
    assert "two numbers up to" in ask(server, "save", {"points": moved}).told["error"]
    assert ask(server, "check", b"x", Content_Length="1000001").status == 413


# --- what it writes


def test_a_save_moves_the_points_and_nothing_else(server: EditorServer, path: Path) -> None:
    before = path.read_text(encoding="utf-8")
    state = ask(server, "state").told
    moved = points(server)
    moved[2] = [0.1234, -0.5]
    body = {"points": moved, "version": state["version"]}
    diff = ask(server, "diff", body).told
    assert [line[:16] for line in diff["diff"] if line[0] in "+-" and line[:3] not in ("+++", "---")] == [
        "-  metamyelocyte", "+  metamyelocyte",
    ]  # fmt: skip
    assert path.read_text(encoding="utf-8") == before and diff["note"] == ""
    saved = ask(server, "save", body)
    assert saved.status == 200 and saved.told["version"] != state["version"]
    after = read_guide(path)
    assert after.points[2].tolist() == [0.1234, -0.5]
    assert [line for line in path.read_text("utf-8").splitlines() if line not in before.splitlines()] == [
        line for line in path.read_text("utf-8").splitlines() if "metamyelocyte" in line
    ]
    assert [entry.name for entry in path.parent.iterdir()] == ["pbc.yaml"]
    # A second save from the same page goes on from the version it was told.
    moved[2] = [0.2, -0.5]
    assert ask(server, "save", {"points": moved, "version": saved.told["version"]}).status == 200


def test_a_file_changed_meanwhile_is_not_overwritten(server: EditorServer, path: Path) -> None:
    state, moved = ask(server, "state").told, points(server)
    moved[0] = [0.5, 0.5]
    changed = path.read_text(encoding="utf-8").replace("0.779", "0.7")
    path.write_text(changed, encoding="utf-8")
    for place in ("diff", "save"):
        answer = ask(server, place, {"points": moved, "version": state["version"]})
        assert answer.status == 409 and "has been changed on disk" in answer.told["error"]
    assert path.read_text(encoding="utf-8") == changed
    assert ask(server, "check", {"points": moved}).told["version"] != state["version"]
    assert ask(server, "state").told["version"] != state["version"]


def test_a_file_whose_points_are_shared_loses_its_comments_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "anchors.yaml"
    path.write_text(
        "# mine\nname: a\nclasses:\n  a: {x: &n 1.0, y: 0.0}\n  b: {x: *n, y: 1.0}\n  c: {x: 0.0, y: 0.5}\n"
    )
    for server in serve(path):
        body = {"points": [[0.9, 0.0], [1.0, 1.0], [0.0, 0.5]], "version": ask(server, "state").told["version"]}
        assert "loses its comments" in ask(server, "diff", body).told["note"]
        assert ask(server, "save", body).status == 200
    assert read_guide(path).points.tolist() == body["points"]


def test_checks_are_those_of_the_command(server: EditorServer) -> None:
    moved = points(server)
    moved[0] = moved[1]
    findings = ask(server, "check", {"points": moved}).told["findings"]
    assert findings[0]["rule"] == "same point" and findings[0]["classes"] == ["promyelocyte", "myelocyte"]
    with_pictures_of_two = Guide(server.guide.path, tiles("basophil", "macrophage")).check(np.array(moved))
    assert {(each["rule"], each["level"]) for each in with_pictures_of_two["findings"]} == {
        ("missing", "refused"),
        ("extra", "doubtful"),
    }


def test_a_guide_that_training_refuses_can_be_mended(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("classes:\n  a: {x: 0.0, y: 0.0}\n  b: {x: 0.0, y: 0.0}\n  c: {x: 1.0, y: 0.0}\n")
    for server in serve(path):
        state = ask(server, "state").told
        findings = ask(server, "check", {"points": points(server)}).told["findings"]
        assert {finding["rule"] for finding in findings} >= {"same point", "constant axis"}
        assert ask(server, "save", {"points": [[0, 0], [0, 1], [1, 0]], "version": state["version"]}).status == 200
    assert read_guide(path).classes == ("a", "b", "c")


# --- the page


@pytest.mark.browser
def test_a_point_dragged_and_saved_lands_in_the_file(browser: Any, server: EditorServer, path: Path) -> None:
    before = read_guide(path)
    page = browser.open(server.url)
    page.wait("document.querySelectorAll('.point').length === 13")
    lymphocyte = before.classes.index("lymphocyte")
    dot = f".point[data-row='{lymphocyte}'] .dot"
    x, y = page.centre(dot)
    page.drag((x, y), (x + 80, y - 40))
    page.wait("!document.querySelector('#save').disabled")
    moved = page.evaluate(f"points[{lymphocyte}]")
    assert moved[0] > 0.1 and moved[1] > before.points[lymphocyte][1] + 0.05
    page.click("#save")
    page.wait("document.querySelector('#review').open")
    assert "lymphocyte" in page.evaluate("document.querySelector('#diff').textContent")
    assert np.array_equal(read_guide(path).points, before.points)  # nothing is written before it is confirmed
    page.click("#write")
    page.wait("document.querySelector('#message').textContent === 'Written.'")
    after = read_guide(path)
    assert after.points[lymphocyte].tolist() == moved
    assert np.array_equal(np.delete(after.points, lymphocyte, 0), np.delete(before.points, lymphocyte, 0))
    assert page.evaluate("document.querySelector('#save').disabled")
    # Every request went to the editor itself.
    assert all(url.startswith((server.url, "data:")) for url in page.requests) and page.errors == []
    page.close()


@pytest.mark.browser
def test_keys_move_a_point_and_undo_and_redo_it(browser: Any, server: EditorServer) -> None:
    page = browser.open(server.url)
    page.wait("document.querySelectorAll('.point').length === 13")
    start = page.evaluate("points[0]")
    page.evaluate("document.querySelector('.point[data-row=\"0\"]').focus()")
    for name in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.key(name)
    moved = page.evaluate("points[0]")
    assert moved == pytest.approx([start[0] + 0.02, start[1] - 0.01])
    page.click("#undo")
    assert page.evaluate("points[0]") == start and page.evaluate("document.querySelector('#save').disabled")
    page.click("#redo")
    assert page.evaluate("points[0]") == moved
    # Typed coordinates; then onto another class: the check says so without being asked.
    page.evaluate("document.querySelector('.point[data-row=\"0\"]').focus()")
    for axis, value in zip("xy", page.evaluate("points[1]"), strict=True):
        page.evaluate(f"(() => {{ const e = document.querySelector('#{axis}'); e.value = {value};"
                      "e.dispatchEvent(new Event('change')); })()")  # fmt: skip
    page.wait("document.querySelector('#findings').textContent.includes('share a point')")
    assert page.evaluate("document.querySelectorAll('.point.suspect').length") >= 2
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_names_neither_run_nor_escape(browser: Any, tmp_path: Path, width: int) -> None:
    folder = tmp_path / "a <img src=x onerror=document.title='run'> folder"
    folder.mkdir()
    path = folder / "g.yaml"
    entries = {
        HOSTILE: {"x": 0.0, "y": 0.0, "lineage": "</text><script>document.title='run'</script>", "stage": 1},
        "../../etc": {"x": 1.0, "y": 0.2, "lineage": "javascript:alert(1)", "stage": 1},
        "'\"><svg onload=document.title='run'>": {"x": -0.5, "y": 0.8},
    }
    path.write_text(yaml.safe_dump({"name": HOSTILE, "classes": entries}, allow_unicode=True), encoding="utf-8")
    outside = sorted(each.name for each in tmp_path.iterdir())
    for server in serve(path, tiles(*entries)):
        page = browser.open(server.url, width=width)
        page.wait("document.querySelectorAll('#findings li').length > 0")
        page.evaluate("document.querySelector('.point').focus()")
        page.key("ArrowRight")
        page.click("#save")
        page.wait("document.querySelector('#review').open")
        page.click("#write")
        page.wait("document.querySelector('#message').textContent === 'Written.'")
        assert page.evaluate("document.title").endswith(": guide editor")
        assert page.evaluate("document.querySelectorAll('script').length") == 1
        assert page.evaluate("[...document.images].every(each => each.getAttribute('src').startsWith('tile/'))")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.errors == []
        page.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == outside
    assert [each.name for each in folder.iterdir()] == ["g.yaml"]
    assert set(read_guide(path).classes) == set(entries)
