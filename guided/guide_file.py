"""Guide files as text: written anew, or with only their points changed, and put in place in one step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import yaml

from guided.guide import Drawing, EmbeddingGuide

DECIMALS = 4


def guide_text(guide: EmbeddingGuide | Drawing, comment: str = "") -> str:
    """YAML of a guide, one class a line, under `comment`, whose lines become comments."""
    classes = {
        label: {"x": _rounded(x), "y": _rounded(y), "lineage": lineage, "stage": stage}
        for label, (x, y), lineage, stage in zip(
            guide.classes, guide.points.tolist(), guide.lineages, guide.stages, strict=True
        )
    }
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    content = {"name": guide.name, "version": 1, "classes": classes}
    return head + yaml.safe_dump(content, default_flow_style=None, sort_keys=False, allow_unicode=True, width=10_000)


def with_points(text: str, points: Mapping[str, tuple[float, float]]) -> str:
    """A guide file with the points of some classes moved, all else left as it stands, comments included.

    Coordinates are rounded to 4 decimals; one that stays the same keeps its spelling. Raises ValueError for a class
    that the file does not have, and where an anchor or a merge writes the numbers of several classes in one place.
    """
    loader = yaml.SafeLoader(text)
    spans: dict[tuple[int, int], str] = {}
    missing = set(points)
    try:
        for key, entry in _entries(loader):
            label = str(loader.construct_object(key, deep=True))
            if label not in points:
                continue
            missing.discard(label)
            wanted = dict(zip("xy", points[label], strict=True))
            for name, value in entry.value:
                if name.value not in wanted:
                    continue
                new = wanted.pop(name.value)
                if round(float(loader.construct_object(value)), DECIMALS) == round(new, DECIMALS):
                    continue
                span = (value.start_mark.index, value.end_mark.index)
                if text[span[0]] in "&!":
                    raise ValueError(f"class {label!r} has an anchor or a tag at its {name.value}")
                if spans.setdefault(span, _number(new)) != _number(new):
                    raise ValueError(f"class {label!r} shares its numbers with another by an anchor")
            if wanted:
                raise ValueError(f"class {label!r} does not name its own {' and '.join(wanted)}")
    finally:
        loader.dispose()
    if missing:
        raise ValueError(f"the guide has no class {min(missing)!r}")
    for (start, end), number in sorted(spans.items(), reverse=True):
        text = text[:start] + number + text[end:]
    after = {str(label): (entry["x"], entry["y"]) for label, entry in yaml.safe_load(text)["classes"].items()}
    for label, point in points.items():
        if tuple(round(value, DECIMALS) for value in after[label]) != tuple(round(value, DECIMALS) for value in point):
            raise ValueError(f"class {label!r} shares its numbers with another by an anchor")
    return text


def _entries(loader: yaml.SafeLoader) -> list[tuple[yaml.Node, yaml.MappingNode]]:
    root = loader.get_single_node()
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if key.value == "classes":
            return list(value.value)
    raise ValueError("the file has no classes")


def _rounded(value: float) -> float:
    return round(value, DECIMALS) + 0.0  # no -0.0


def _number(value: float) -> str:
    # YAML takes 1e-05 for text.
    return f"{_rounded(value):.{DECIMALS}f}".rstrip("0").removesuffix(".") if value % 1 else f"{_rounded(value):.1f}"


def write_text(path: Path, text: str) -> None:
    """Put a file in its place in one step, so that no reader meets half of it; a link stays one."""
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{uuid4().hex[:8]}")
    try:
        with temporary.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o777)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
