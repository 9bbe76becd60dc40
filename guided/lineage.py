"""Lineage and maturity tables and trees, and the guide that is laid out from them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from guided.guide import EmbeddingGuide, from_tree
from guided.guide_check import lineage_lines, segments_cross
from guided.strict_yaml import read_yaml

NEWICK = (".nwk", ".newick", ".tree", ".tre")


class Lineages(NamedTuple):
    """What is known of each class before anything is drawn."""

    classes: list[str]
    lineages: list[str]
    stages: list[float]
    parents: list[str | None]  # the class that each comes from, where it is told


def read_lineages(path: Path) -> Lineages:
    """Read a table (.csv), a Newick tree (.nwk, .newick, .tree) or a YAML tree (.yaml), see the functions below.

    Raises ValueError naming the file and the line, class or place for anything that is not one.
    """
    readers = {".csv": _read_table, ".yaml": _read_yaml, ".yml": _read_yaml, **dict.fromkeys(NEWICK, _read_newick)}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} is no lineage table (.csv), Newick tree ({', '.join(NEWICK)}) or YAML tree (.yaml)")
    try:
        found = reader(path)
    except (OSError, UnicodeDecodeError, csv.Error, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    _check(path, found)
    return found


def _check(path: Path, found: Lineages) -> None:
    stage_of: dict[str, float] = {}
    for label, stage in zip(found.classes, found.stages, strict=True):
        if label in stage_of:
            raise ValueError(f"{path} names class {label!r} twice")
        if not 0 <= stage < np.inf:
            raise ValueError(f"{path}: class {label!r} has stage {stage:g}; it must be 0 (immature) or more")
        stage_of[label] = stage
    for label, parent in zip(found.classes, found.parents, strict=True):
        if parent is None:
            continue
        if parent not in stage_of:
            raise ValueError(f"{path}: class {label!r} comes from {parent!r}, which is no class of the table")
        if stage_of[parent] >= stage_of[label]:
            raise ValueError(
                f"{path}: class {label!r} (stage {stage_of[label]:g}) comes from {parent!r} (stage "
                f"{stage_of[parent]:g}); the later of the two needs the higher stage"
            )


def _read_table(path: Path) -> Lineages:
    """CSV with the columns class, lineage and stage, and parent where it is known which class one comes from."""
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), strict=True)
    columns = [column.strip() for column in reader.fieldnames or []]
    for needed in ("class", "lineage", "stage"):
        if columns.count(needed) != 1:
            raise ValueError(f"{path} needs one column {needed!r} (its first line: {', '.join(columns)})")
    reader.fieldnames = columns
    found = Lineages([], [], [], [])
    for raw in reader:
        where = f"{path}, line {reader.line_num}"
        if None in raw or None in raw.values():
            raise ValueError(f"{where} has not {len(columns)} fields")
        row = {column: str(value).strip() for column, value in raw.items()}
        for column in ("class", "lineage"):
            if not row[column]:
                raise ValueError(f"{where} has no {column}")
        found.classes.append(row["class"])
        found.lineages.append(row["lineage"])
        found.stages.append(_number(where, f"class {row['class']!r} has stage", row["stage"]))
        found.parents.append(row.get("parent") or None)
    if not found.classes:
        raise ValueError(f"{path} has no rows")
    return found


def _number(where: str, told: str, text: Any) -> float:
    try:
        if isinstance(text, bool):
            raise ValueError
        return float(text)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where}: {told} {text!r}; it must be a number") from None


def _read_yaml(path: Path) -> Lineages:
    """A mapping of each lineage to the list of its classes, from immature to mature; lineages that belong together may
    stand in a mapping of their own, and follow each other around the centre.

    The last class of a lineage has the highest stage, the length of the longest lineage, those before it even steps;
    `{class: stage}` says it otherwise. The root is a lineage whose classes have stage 0.
    """
    told: dict[str, list[tuple[str, float | None]]] = {}
    for lineage, classes in _yaml_lineages(path, read_yaml(path)):
        if lineage in told:
            raise ValueError(f"{path} names lineage {lineage!r} twice")
        told[lineage] = classes
    highest = max(len(classes) for classes in told.values())
    found = Lineages([], [], [], [])
    for lineage, classes in told.items():
        for place, (label, stage) in enumerate(classes, 1):
            found.classes.append(label)
            found.lineages.append(lineage)
            found.stages.append(highest * place / len(classes) if stage is None else stage)
            found.parents.append(None)
    return found


def _yaml_lineages(path: Path, content: Any) -> Iterator[tuple[str, list[tuple[str, float | None]]]]:
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} needs a mapping of lineages to their classes, `erythroid: [early, late]`")
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _yaml_lineages(path, value)
            continue
        if not isinstance(value, list) or not value:
            raise ValueError(f"{path}: lineage {key!r} needs a list of its classes, from immature to mature")
        yield str(key), [_yaml_class(path, str(key), entry) for entry in value]


def _yaml_class(path: Path, lineage: str, entry: Any) -> tuple[str, float | None]:
    if isinstance(entry, str):
        return entry, None
    if isinstance(entry, dict) and len(entry) == 1:
        ((label, stage),) = entry.items()
        return str(label), _number(str(path), f"class {label!r} has stage", stage)
    raise ValueError(f"{path}: lineage {lineage!r} has {entry!r}; a class is its name or `{{name: stage}}`")


# --- Newick ---------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\s*(?:(?P<mark>[(),:;])|'(?P<quoted>(?:[^']|'')*)'|(?P<bare>[^\s(),:;'\[\]]+)|\[[^\]]*\])")


def _read_newick(path: Path) -> Lineages:
    """A Newick tree. Every name is a class; its stage is the sum of the branch lengths from the root (1 each where none
    is given). A named root is the undifferentiated class; a branch that splits ends its lineage, and a lineage is
    called by its last class."""
    text = path.read_text(encoding="utf-8")
    names, lengths, above = _newick_nodes(path, text)
    below: list[list[int]] = [[] for _ in names]
    for node, parent in enumerate(above):
        if parent is not None:
            below[parent].append(node)
    stages = [0.0] * len(names)
    named: list[str | None] = [None] * len(names)  # nearest class above
    runs: list[int] = list(range(len(names)))  # first node of the run that a node belongs to
    order = []
    stack = [0]
    while stack:  # parents before children, children in the order of the file
        node = stack.pop()
        order.append(node)
        stack += reversed(below[node])
        parent = above[node]
        if parent is None:
            continue
        stages[node] = stages[parent] + lengths[node]
        named[node] = names[parent] or named[parent]
        if parent != 0 and len(below[parent]) == 1:
            runs[node] = runs[parent]
    last: dict[int, str] = {}
    for node in order:
        if label := names[node]:
            last[runs[node]] = label
        elif not below[node]:
            raise ValueError(f"{path} has a leaf without a name")
    found = Lineages([], [], [], [])
    for node in order:
        if label := names[node]:
            found.classes.append(label)
            found.lineages.append(last[runs[node]])
            found.stages.append(stages[node])
            found.parents.append(named[node])
    return found


def _newick_nodes(path: Path, text: str) -> tuple[list[str | None], list[float], list[int | None]]:
    """Name, branch length and parent of each node; the root comes first."""
    names: list[str | None] = [None]
    lengths: list[float] = [1.0]
    above: list[int | None] = [None]
    node, place, end = 0, 0, len(text.rstrip())
    after = "start"  # what was read of the node: start, branches, name, length; or the end of the tree
    while place < end:
        where = f"{path}, character {place + 1}"
        match = _TOKEN.match(text, place)
        if match is None or after == "end":
            raise ValueError(f"{where}: {text[place : place + 12]!r} is not expected in a Newick tree")
        place = match.end()
        mark, name, parent = match["mark"], match["quoted"] or match["bare"], above[node]
        if mark is None and name is None:
            continue  # a comment
        if name is not None and after in ("start", "branches"):
            names[node], after = name.replace("''", "'").strip() or None, "name"
        elif mark == "(" and after == "start":
            parent = node
            node, after = len(names), "start"
        elif mark == "," and parent is not None:
            node, after = len(names), "start"
        elif mark == ")" and parent is not None:
            node, after = parent, "branches"
            continue
        elif mark == ":" and after != "length":
            number = _TOKEN.match(text, place)
            length = _number(where, "the branch length is", number["bare"] if number else None)
            if number is None or not 0 < length < np.inf:
                raise ValueError(f"{where}: the branch length is {length:g}; it must be above 0")
            lengths[node], place, after = length, number.end(), "length"
        elif mark == ";" and parent is None:
            after = "end"
        else:
            raise ValueError(f"{where}: {mark or name!r} is not expected there")
        if node == len(names):
            names.append(None)
            lengths.append(1.0)
            above.append(parent)
    if above[node] is not None:
        raise ValueError(f"{path}: a bracket of the tree is not closed")
    if len(names) == 1:
        raise ValueError(f"{path} is no Newick tree: it has no branches, `((early)late, other);`")
    return names, lengths, above


# --- layout ---------------------------------------------------------------------------------------------------------


def lay_out(found: Lineages, name: str) -> EmbeddingGuide:
    """Angles by lineage, radius by maturity (3.1), related lineages side by side, without lines that cross if possible.

    Lineages follow each other as first named. Where parents are told, a lineage stands beside the one that it branches
    off, the later it does the nearer, and one whose last class splits up stands in the middle of those that it splits
    into. What still crosses is mended by swaps of lineages as long as one leaves fewer crossings.

    Raises ValueError for what `guided.guide.from_tree` refuses.
    """
    offspring, inner = _branches(found)
    order = [lineage for top in offspring.get(None, []) for lineage in _around(top, offspring, inner)]
    between = {lineage: _around(lineage, offspring, inner) for lineage in inner}

    def drawn(order: Sequence[str]) -> EmbeddingGuide:
        return from_tree(found.classes, found.lineages, found.stages, order=order, between=between, name=name)

    best, fewest = drawn(order), _crossings(found, drawn(order))
    while fewest:
        tries = []
        for i, j in combinations(range(len(order)), 2):
            swapped = list(order)
            swapped[i], swapped[j] = order[j], order[i]
            guide = drawn(swapped)
            tries.append((_crossings(found, guide), swapped, guide))
        crossings, swapped, guide = min(tries, key=lambda each: each[0], default=(fewest, order, best))
        if crossings >= fewest:
            break
        fewest, order, best = crossings, swapped, guide
    return best


def _branches(found: Lineages) -> tuple[dict[str | None, list[str]], set[str]]:
    """The lineages that branch off each (None: off the root or nothing), the latest first, and those that end in a
    split. A lineage of stage 0 alone is the root."""
    lineage_of = dict(zip(found.classes, found.lineages, strict=True))
    stage_of = dict(zip(found.classes, found.stages, strict=True))
    last: dict[str, float] = {}
    for lineage, stage in zip(found.lineages, found.stages, strict=True):
        last[lineage] = max(stage, last.get(lineage, 0.0))
    youngest: dict[str, str] = {}
    for label in sorted(found.classes, key=stage_of.__getitem__):
        youngest.setdefault(lineage_of[label], label)
    parent_of = dict(zip(found.classes, found.parents, strict=True))
    joint: dict[str, str] = {}  # the class that a lineage branches off
    for lineage, first in youngest.items():
        parent = parent_of[first]
        if parent is not None and lineage_of[parent] != lineage and last[lineage_of[parent]] > 0:
            joint[lineage] = parent
    offspring: dict[str | None, list[str]] = {}
    inner = set()
    for lineage in dict.fromkeys(found.lineages):
        if last[lineage] == 0:
            continue
        if lineage not in joint:
            offspring.setdefault(None, []).append(lineage)
            continue
        kin = lineage_of[joint[lineage]]
        offspring.setdefault(kin, []).append(lineage)
        if stage_of[joint[lineage]] == last[kin]:
            inner.add(kin)
    for stem, members in offspring.items():
        if stem is not None and stem not in inner:
            members.sort(key=lambda lineage: -stage_of[joint[lineage]])
    return offspring, inner


def _around(lineage: str, offspring: dict[str | None, list[str]], inner: set[str]) -> list[str]:
    """The lineages of a branch as they follow each other: what branches off goes to the sides by turns."""
    below = [_around(kin, offspring, inner) for kin in offspring.get(lineage, [])]
    if lineage in inner:
        return [kin for branch in below for kin in branch]
    left = [kin for branch in reversed(below[1::2]) for kin in branch]
    return [*left, lineage, *(kin for branch in below[::2] for kin in branch)]


def _crossings(found: Lineages, guide: EmbeddingGuide) -> int:
    """How many lines from a class to the one it comes from, or to the next of its lineage, cross another."""
    row_of = {label: row for row, label in enumerate(found.classes)}
    lines = {(row_of[parent], row) for row, parent in enumerate(found.parents) if parent is not None}
    lines |= {pair for _, pair in lineage_lines(guide)}
    return sum(
        segments_cross(guide.points[list(one)], guide.points[list(other)])
        for one, other in combinations(sorted(lines), 2)
        if not set(one) & set(other)
    )
