"""Cross-validation (4.1): folds that keep related cells together, with a validation split inside the training part.

Scikit-learn's StratifiedGroupKFold cuts a few groups in one and the same way whatever its seed, so that repeats would
repeat nothing. Here the partitions 0, 1, 2, … are different cuts: each as even as a search by moves and swaps of groups
makes it, and without a fold that an earlier partition has tested, unless the groups are too few for that.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Literal

import numpy as np
from sklearn.model_selection import StratifiedKFold

from guided.config import Folds
from guided.data import Dataset

_STARTS = 16  # random starts of a search; the best end is taken
_NEIGHBOURS = 4000  # looked at in one step of a search: all of them up to about 90 groups
_FEW = 2000  # as many cuts are listed instead of searched


def _no_rows() -> np.ndarray:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Fold:
    """Row indices of one fold, sorted. Raises ValueError unless its parts and the hold-out are disjoint, none of its
    parts is empty, and no group of cells stands in the test part and in another (nor, where whole groups validate, in
    training and validation)."""

    partition: int
    index: int
    train: np.ndarray  # (N,) int64
    validation: np.ndarray
    test: np.ndarray
    grouped_by: Literal["region", "patient", "none"]
    groups: np.ndarray | None  # (cells of the data set,) group of each cell
    notes: tuple[str, ...] = ()
    holdout: np.ndarray = field(default_factory=_no_rows)  # rows locked away from all folds
    validation_group: Literal["cell", "group"] = "cell"

    def __post_init__(self) -> None:
        parts = {"training": self.train, "validation": self.validation, "test": self.test}
        where = f"fold {self.index} of partition {self.partition}"
        for name, rows in parts.items():
            if len(rows) == 0:
                raise ValueError(f"{where} has no {name} cells")
        everything = np.concatenate(list(parts.values()))
        if len(np.unique(everything)) != len(everything):
            raise ValueError(f"{where}: a cell stands in two parts")
        if len(np.intersect1d(everything, self.holdout)):
            raise ValueError(f"{where}: a cell of the hold-out stands in it")
        if self.groups is None:
            return
        apart = [(self.test, np.concatenate([self.train, self.validation]), "stands in the test part and in another")]
        if self.validation_group == "group":
            apart.append((self.train, self.validation, "stands in the training part and in validation"))
        for one, other, told in apart:
            shared = np.intersect1d(self.groups[one], self.groups[other])
            if len(shared):
                raise ValueError(f"{where}: {self.grouped_by} {str(shared[0])!r} {told}")


def make_folds(data: Dataset, config: Folds, partition: int = 0) -> list[Fold]:
    """Stratified folds of a data set, grouped by region or patient, with 12.5 % of the training cells for validation.

    Every cell that is not locked away (`holdout_rows`) is tested once. `partition` numbers the ways to cut: each number
    is a different cut, the same for every order of the rows, with classes and sizes as even over the folds as whole
    groups allow. Validation cells are drawn by class (4.1: "12.5 % of the training data"), so that training and
    validation may share a region, or are whole groups (`validation_group`). With `folds.tested: holdout` there is one
    fold for each name of the hold-out instead: its cells are tested, all others train and validate.

    Raises ValueError where a grouping is asked for that the data do not have, where there are fewer groups than folds
    or fewer ways to cut them than `partition` asks for, and for a hold-out that is not in the data.
    """
    if config.tested == "holdout":
        return _judgement_folds(data, config, partition)
    grouped_by, groups = _groups(data, config)
    if config.validation_group == "group" and groups is None:
        raise ValueError(
            "folds.validation_group is group, but these folds are by single cell; "
            "choose cell, or a folds.group that the data have"
        )
    locked = holdout_rows(data, config)
    rows = np.setdiff1d(np.arange(len(data.labels)), locked)
    rows = rows[np.argsort(data.ids[rows])]  # everything is drawn in the order of ids, so the order of rows is free
    labels = data.labels[rows]
    member, counts = np.arange(len(rows)), np.zeros((0, 0), dtype=np.int64)
    if groups is None:
        part = _cut_cells(labels, config.count, partition)
        repeated = np.zeros(config.count, dtype=bool)
    else:
        names, member = np.unique(groups[rows], return_inverse=True)
        counts = np.zeros((len(names), len(data.classes)), dtype=np.int64)
        np.add.at(counts, (member, labels), 1)
        cut, repeated = _cut_groups(counts, config.count, partition, grouped_by)
        part = cut[member]
    folds = []
    for index in range(config.count):
        test, rest = np.flatnonzero(part == index), np.flatnonzero(part != index)
        rng = np.random.default_rng([partition, index])
        if config.validation_group == "cell":
            held = _stratified_sample(labels[rest], config.validation, rng)
        else:
            held = _held_groups(member[rest], counts, config.validation, rng, f"fold {index}, by {grouped_by},")
        train, validation, tested = (np.sort(rows[chosen]) for chosen in (rest[~held], rest[held], test))
        notes = [
            note
            for name, chosen in (("training", train), ("validation", validation), ("test", tested))
            for note in _absent(data, chosen, name)
        ]
        if grouped_by != "patient":
            notes += _shared(data.patient, rows[rest], rows[test], "patients in training and test")
        if len(locked):
            notes.append(f"{len(locked)} cells are locked away: {', '.join(config.holdout)}")
        notes += _shared(data.patient, rows, locked, "patients in the hold-out and in the folds")
        notes += _shared(data.region, rows, locked, "regions in the hold-out and in the folds")
        if repeated[index]:
            notes.append(f"the same {grouped_by}s are tested in an earlier partition")
        folds.append(
            Fold(
                partition,
                index,
                train,
                validation,
                tested,
                grouped_by,
                groups,
                notes=tuple(notes),
                holdout=locked,
                validation_group=config.validation_group,
            )
        )
    return folds


def _judgement_folds(data: Dataset, config: Folds, partition: int) -> list[Fold]:
    """The folds on which the winner of a search is judged: the groups that it never saw, one after the other."""
    if not config.holdout:
        raise ValueError("folds.tested is holdout, but folds.holdout names no region or patient")
    if config.validation_group == "group":
        raise ValueError(
            "folds.tested: holdout draws its validation cells by class; set folds.validation_group to cell"
        )
    grouped_by, groups = _groups(data, config)
    folds = []
    for index, name in enumerate(config.holdout):
        tested = holdout_rows(data, config.model_copy(update={"holdout": (name,)}))
        rest = np.setdiff1d(np.arange(len(data.labels)), tested)
        rest = rest[np.argsort(data.ids[rest])]
        held = _stratified_sample(data.labels[rest], config.validation, np.random.default_rng([partition, index]))
        train, validation = np.sort(rest[~held]), np.sort(rest[held])
        notes = [
            note
            for part, rows in (("training", train), ("validation", validation), ("test", tested))
            for note in _absent(data, rows, part)
        ]
        notes.append(f"{name} is tested, which the search never saw")
        notes += _shared(data.patient, rest, tested, "patients in training and test")
        folds.append(Fold(partition, index, train, validation, tested, grouped_by, groups, notes=tuple(notes)))
    return folds


def holdout_rows(data: Dataset, config: Folds) -> np.ndarray:
    """Rows (H,) of the cells that `folds.holdout` locks away, sorted: no fold trains, validates or tests on them.

    A name is that of a region or a patient; `region=…` or `patient=…` where it could be either. Raises ValueError for a
    name that the data do not have or that is both, and where no cell would be left.
    """
    columns = {"region": data.region, "patient": data.patient}
    locked = np.zeros(len(data.labels), dtype=bool)
    for name in config.holdout:
        kind, _, rest = name.partition("=")
        asked = {kind: rest} if kind in columns and rest else dict.fromkeys(columns, name)
        found = {}
        for column, wanted in asked.items():
            values = columns[column]
            if values is not None and (mask := values == wanted).any():
                found[column] = mask
        if not found:
            known = [
                str(value) for column in asked if (values := columns[column]) is not None for value in np.unique(values)
            ]
            near = get_close_matches(rest or name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f" (there are: {', '.join(known[:20]) or 'none'})"
            raise ValueError(f"folds.holdout: the data {data.name!r} have no {' or '.join(asked)} {name!r}{hint}")
        if len(found) > 1 and (found["region"] != found["patient"]).any():
            raise ValueError(
                f"folds.holdout: {name!r} is a region and a patient; say 'region={name}' or 'patient={name}'"
            )
        locked |= next(iter(found.values()))
    if len(locked) and locked.all():
        raise ValueError("folds.holdout locks every cell away; nothing is left for the folds")
    return np.flatnonzero(locked)


def _groups(data: Dataset, config: Folds) -> tuple[Literal["region", "patient", "none"], np.ndarray | None]:
    if config.group == "none":
        return "none", None
    if config.group in ("auto", "region") and data.region is not None:
        return "region", data.region
    if config.group in ("auto", "patient") and data.patient is not None:
        return "patient", data.patient
    if config.group == "auto":
        return "none", None
    raise ValueError(f"folds.group is {config.group}, but the data {data.name!r} name no {config.group}s")


# --- cutting --------------------------------------------------------------------------------------------------------


def _cut_cells(labels: np.ndarray, folds: int, partition: int) -> np.ndarray:
    """Fold (N,) of each single cell."""
    most = int(np.bincount(labels).max())
    if most < folds:
        raise ValueError(f"folds.count is {folds}, but no class has that many cells (at most {most})")
    splitter = StratifiedKFold(folds, shuffle=True, random_state=partition)
    part = np.empty(len(labels), dtype=np.int64)
    with warnings.catch_warnings():
        # A class with fewer cells than folds is named in the fold's notes instead.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for index, (_, test) in enumerate(splitter.split(labels, labels)):
            part[test] = index
    return part


def _cut_groups(counts: np.ndarray, folds: int, partition: int, grouped_by: str) -> tuple[np.ndarray, np.ndarray]:
    """Fold (G,) of each group with `counts` (G, C) cells of each class, and the folds (folds,) whose groups an earlier
    partition has tested together as well."""
    found = len(counts)
    if found < folds:
        raise ValueError(
            f"folds.count is {folds}, but the data have {found} {grouped_by}s; "
            f"ask for at most {found} folds or another folds.group"
        )
    ways = cuts_of(found, folds)
    if not 0 <= partition < ways:
        raise ValueError(
            f"partition {partition} is asked for, but {found} {grouped_by}s can be cut into {folds} folds in "
            f"{ways} {'way' if ways == 1 else 'ways'} only (partitions 0 to {ways - 1})"
        )
    content = tuple(map(tuple, counts.tolist()))
    cut = np.array(_nth_cut(content, folds, partition))
    earlier = {block for n in range(partition) for block in _blocks(_nth_cut(content, folds, n))}
    return cut, np.array([block in earlier for block in _blocks(tuple(cut.tolist()))])


def cuts_of(groups: int, folds: int) -> int:
    """In how many ways `groups` can be cut into `folds` folds, none of them empty (Stirling number, second kind)."""
    row = [1] + [0] * folds
    for _ in range(groups):
        row = [0] + [k * row[k] + row[k - 1] for k in range(1, folds + 1)]
    return row[folds]


def imbalance(parts: np.ndarray, counts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """How unevenly classes and sizes lie in the parts of a cut; 0 where each part is an image of the whole.

    `parts` (..., G) gives the part of each group, `counts` (G, C) the cells of each class in it, `shares` (K,) how much
    each part should hold. With q the cells of a class in a part over those it should hold, the result (...) is the root
    of the mean of (q - 1)² over the parts, half from all classes that occur, half from the sizes.
    """
    table, unit = _table(counts)
    inside = parts[..., None] == np.arange(len(shares))  # (..., G, K)
    sums = np.einsum("...gk,gd->...kd", inside.astype(np.float64), table)
    return np.sqrt((((sums / shares[:, None]) - unit) ** 2).sum(-1).mean(-1))


def _table(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares (G, D) of each group in each class and in the size, scaled so that their squared distance from `unit` (D,)
    is the mean that `imbalance` takes."""
    classes = counts[:, counts.sum(0) > 0]
    columns = np.column_stack([classes, counts.sum(1)]).astype(np.float64)
    unit = np.sqrt(np.append(np.full(classes.shape[1], 0.5 / classes.shape[1]), 0.5))
    return columns / columns.sum(0) * unit, unit


Cut = tuple[int, ...]  # fold of each group; the folds are numbered in the order in which the groups meet them


@cache
def _nth_cut(counts: tuple[tuple[int, ...], ...], folds: int, n: int) -> Cut:
    """Cut number `n` of the groups: another one than those before it.

    The most even of the candidates. Where they are few and all listed, some repeat folds of earlier cuts: one with s of
    those must be 1 + s times as even to be taken.
    """
    earlier = [_nth_cut(counts, folds, k) for k in range(n)]
    taken, tested = set(earlier), {block for cut in earlier for block in _blocks(cut)}
    table, shares = np.array(counts), np.full(folds, 1 / folds)
    candidates: list[Cut]
    if cuts_of(len(counts), folds) <= _FEW:
        candidates = [cut for cut in _all_cuts(len(counts), folds) if cut not in taken]
    else:
        rng = np.random.default_rng(n)
        candidates = []
        while len(candidates) < _STARTS:
            cut = _searched(table, shares, rng, tested)
            if cut not in taken:
                candidates.append(cut)
    repeated = np.array([sum(block in tested for block in _blocks(cut)) for cut in candidates])
    cost = imbalance(np.array(candidates), table, shares) * (1 + repeated)
    return candidates[int(np.lexsort((repeated, cost))[0])]


def _blocks(cut: Sequence[int]) -> list[int]:
    """The groups of each fold as one number, a bit a group."""
    blocks = [0] * (max(cut) + 1)
    for group, fold in enumerate(cut):
        blocks[fold] |= 1 << group
    return blocks


@cache
def _all_cuts(groups: int, folds: int) -> tuple[Cut, ...]:
    def grown(cut: Cut, used: int) -> Iterator[Cut]:
        left = groups - len(cut)
        if left == 0:
            yield cut
            return
        # Never so few groups left that a fold would stay empty.
        for fold in range(used if left > folds - used else 0):
            yield from grown((*cut, fold), used)
        if used < folds:
            yield from grown((*cut, used), used + 1)

    return tuple(grown((), 0))


def _searched(counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator, tested: set[int]) -> Cut:
    """The end of a search from a random start: the best move of one group, or swap of two, as long as one makes the
    cut more even; never one that makes a fold of those in `tested`."""
    groups, parts = len(counts), len(shares)
    table, unit = _table(counts)
    cut = rng.choice(parts, groups, p=shares)
    cut[rng.permutation(groups)[:parts]] = np.arange(parts)  # none is empty

    def error(sums: np.ndarray, part: np.ndarray) -> np.ndarray:
        return ((sums / shares[part, None] - unit) ** 2).sum(-1)

    while True:
        sums = np.zeros((parts, table.shape[1]))
        np.add.at(sums, cut, table)
        mover, target = _moves(cut, parts)
        left, right = np.triu_indices(groups, 1)
        apart = cut[left] != cut[right]
        left, right = left[apart], right[apart]
        first = np.concatenate([mover, left])
        second = np.concatenate([np.full(len(mover), -1), right])
        if len(first) > _NEIGHBOURS:
            some = rng.choice(len(first), _NEIGHBOURS, replace=False)
            first, second, target = first[some], second[some], np.append(target, cut[right])[some]
        else:
            target = np.append(target, cut[right])
        source = cut[first]
        change = np.where(second[:, None] >= 0, table[second], 0.0) - table[first]
        now = error(sums, np.arange(parts))
        gain = now[source] + now[target] - error(sums[source] + change, source) - error(sums[target] - change, target)
        for best in np.argsort(-gain, kind="stable"):
            if gain[best] <= 1e-12:
                return _numbered(cut, shares)
            changed = cut.copy()
            changed[first[best]] = target[best]
            if second[best] >= 0:
                changed[second[best]] = source[best]
            blocks = _blocks(changed.tolist())
            if blocks[source[best]] not in tested and blocks[target[best]] not in tested:
                cut = changed
                break
        else:
            return _numbered(cut, shares)


def _moves(cut: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups and where each may go alone: to every other part, unless its own would be left empty."""
    free = np.bincount(cut, minlength=parts)[cut] > 1
    group, part = np.nonzero(free[:, None] & (cut[:, None] != np.arange(parts)))
    return group, part


def _numbered(cut: np.ndarray, shares: np.ndarray) -> Cut:
    """Parts of equal shares are numbered in the order in which the groups meet them; others keep their numbers."""
    if len(np.unique(shares)) > 1:
        return tuple(cut.tolist())
    number: dict[int, int] = {}
    return tuple(number.setdefault(part, len(number)) for part in cut.tolist())


def _held_groups(
    member: np.ndarray, counts: np.ndarray, share: float, rng: np.random.Generator, where: str
) -> np.ndarray:
    """Mask (N,) of the cells whose groups validate: together near `share` of the cells, classes alike."""
    there, position = np.unique(member, return_inverse=True)
    if len(there) < 2:
        raise ValueError(f"{where} trains on one group only; none can validate (folds.validation_group: cell)")
    shares = np.array([1 - share, share])
    ends = [_searched(counts[there], shares, rng, set()) for _ in range(_STARTS)]
    best = ends[int(imbalance(np.array(ends), counts[there], shares).argmin())]
    return np.array(best)[position] == 1


def _stratified_sample(labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Mask (N,) of a sample of `share` of the cells: systematic sampling through the cells ordered by class, in random
    order within a class, so that every class gives its share up to one cell."""
    order = np.lexsort((rng.random(len(labels)), labels))
    position = np.arange(len(labels)) + 1
    start = rng.random()
    chosen = np.floor(position * share + start) > np.floor((position - 1) * share + start)
    mask = np.zeros(len(labels), dtype=bool)
    mask[order[chosen]] = True
    return mask


def _absent(data: Dataset, rows: np.ndarray, part: str) -> list[str]:
    absent = np.setdiff1d(np.arange(len(data.classes)), data.labels[rows])
    return [f"no {part} cell of {', '.join(data.classes[c] for c in absent)}"] if len(absent) else []


def _shared(names: np.ndarray | None, one: np.ndarray, other: np.ndarray, told: str) -> list[str]:
    if names is None:
        return []
    shared = np.intersect1d(names[one], names[other])
    return [f"{told}: {', '.join(shared.tolist())}"] if len(shared) else []
