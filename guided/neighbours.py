"""Nearest cells of an embedding, found by matrix product and measured directly.

A product in single precision finds a few cells more than are wanted; the distances of these are then computed from
their differences, so that they keep their digits where cells are close. Where the product's rounding may have left out
one of the nearest, it is taken again in double precision. So none is missed at any number of cells, unless rounding is
beyond `ROUNDING`; umap-learn changes to an approximation at 4,096 cells. Values are expected near 1, as their callers
scale them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

TILE = 1408  # cells on a side of a tile of the product of all cells
PRODUCTS = 2**20  # numbers of a block of products with all cells
OFFSETS = 2**16  # numbers of a block of differences: what stays in the cache is not fetched twice
GROUP = 8  # cells of which the nearest is looked at first
SPARE = 10  # candidates beyond the neighbours that are wanted
# By how much the product may be off, in units of rounding of the squared lengths. On embeddings of 64 to 1,024
# components it is off by 1 or 2, in one of 10,000 pairs by 7 to 11 (NOTES.md). The proven bound, a unit a component,
# would doubt nearly every row; components that are copies of one another come close to it.
ROUNDING = 10


def nearest(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices int64 and Euclidean distances (N, k), in the type of x (N, n), of the k <= N cells nearest to each,
    itself first, of equally near ones the earlier first.

    Which of several cells equally near at the end of the list are in it is left to rounding.
    """
    candidates, beyond = _mutual(_single(x), min(k + SPARE, len(x)))
    return _settled(x, x, candidates, beyond, k, np.arange(len(x)))


def nearest_among(cells: np.ndarray, asked: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices int64 and Euclidean distances (M, k), in the type of cells (N, n), of the k <= N cells nearest to each
    of asked (M, n), of equally near ones the earlier first, as in `nearest`."""
    most = min(k + SPARE, len(cells))
    single, points = _single(cells), _single(asked)
    squares = torch.linalg.vecdot(single, single)
    candidates, beyond = np.empty((len(asked), most), dtype=np.int64), np.empty(len(asked))
    for block in _blocks(len(asked), PRODUCTS // len(cells)):
        values, indices = _smallest(torch.addmm(squares, points[block], single.T, alpha=-2), most)
        candidates[block], beyond[block] = indices.numpy(), values.amax(1).numpy()
    return _settled(cells, asked, candidates, beyond, k, None)


def _blocks(count: int, rows: int) -> Iterator[slice]:
    """0..count in slices of so many rows, at least one."""
    rows = max(1, rows)
    return (slice(begin, begin + rows) for begin in range(0, count, rows))


def _single(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def _smallest(values: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `most` smallest of each row (M, N), unordered, and their columns; all of them where there are fewer.

    They lie in the groups with the `most` smallest minima, and minima are found faster than places.
    """
    count = values.shape[1] // GROUP
    if count < 2 * most:
        found = values.topk(min(most, values.shape[1]), largest=False, sorted=False)
        return found.values, found.indices
    minima = values[:, : count * GROUP].unflatten(1, (GROUP, count)).amin(1)
    groups = minima.topk(most, largest=False, sorted=False).indices
    columns = (groups[:, None] + count * torch.arange(GROUP)[:, None]).flatten(1)
    rest = torch.arange(count * GROUP, values.shape[1]).expand(len(values), -1)
    columns = torch.cat([columns, rest], 1)
    found = values.gather(1, columns).topk(most, largest=False, sorted=False)
    return found.values, columns.gather(1, found.indices)


def _mutual(cells: torch.Tensor, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every cell (N, n) the `most` nearest (N, most), itself among them, and of the farthest of these the squared
    distance without the cell's own square (N,). Every tile of the product serves its rows and its columns."""
    count = len(cells)
    squares = torch.linalg.vecdot(cells, cells)
    found, at = torch.full((count, most), torch.inf), torch.zeros((count, most), dtype=torch.int64)

    def offer(rows: slice, square: torch.Tensor, begin: int) -> None:
        """Squared distances of cells `rows` from those that begin at `begin`."""
        values, indices = _smallest(square, most)
        best = torch.cat([found[rows], values], 1).topk(most, largest=False, sorted=False)
        at[rows] = torch.cat([at[rows], indices + begin], 1).gather(1, best.indices)
        found[rows] = best.values

    side = -(-count // -(-count // TILE))  # tiles as even as can be: narrow ones are slow to look through
    tiles = [slice(begin, min(begin + side, count)) for begin in range(0, count, side)]
    for place, rows in enumerate(tiles):
        for columns in tiles[place:]:
            product = cells[rows] @ cells[columns].T
            square = torch.add(squares[columns], product, alpha=-2)
            if rows == columns:
                square.fill_diagonal_(-torch.inf)
            else:
                offer(columns, torch.add(squares[rows], product.T, alpha=-2), rows.start)
            offer(rows, square, columns.start)
    return at.numpy(), found.amax(1).numpy().astype(np.float64)


def _settled(
    cells: np.ndarray, asked: np.ndarray, candidates: np.ndarray, beyond: np.ndarray, k: int, own: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of the candidates (M, K), measured. Every other cell has a square of at least `beyond` (M,), less
    that of the cell asked; rows whose last neighbour is not nearer than that by more than rounding are looked for
    again. `own` (M,) are those asked, among the cells."""
    indices, distances = _measured(cells, asked, candidates, k, own)
    last, squares = distances[:, -1].astype(np.float64), np.einsum("ij,ij->i", asked, asked).astype(np.float64)
    # A neighbour that was left out is no farther than the last one found, so that is how long it can be.
    off = ROUNDING * np.finfo(np.float32).eps / 2 * (2 * np.sqrt(squares) + last) ** 2
    doubtful = np.flatnonzero(last**2 > beyond + squares - off)
    if candidates.shape[1] < len(cells) and len(doubtful):
        mine = None if own is None else own[doubtful]
        again = _doubly(cells, asked[doubtful], candidates.shape[1], mine)
        indices[doubtful], distances[doubtful] = _measured(cells, asked[doubtful], again, k, mine)
    return indices, distances


def _doubly(cells: np.ndarray, asked: np.ndarray, most: int, own: np.ndarray | None) -> np.ndarray:
    """The `most` nearest cells (M, most) by a product in double precision, `own` (M,) among them."""
    double, points = (torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64)) for array in (cells, asked))
    squares = torch.linalg.vecdot(double, double)
    near = np.empty((len(asked), most), dtype=np.int64)
    for block in _blocks(len(asked), PRODUCTS // len(cells)):
        square = torch.addmm(squares, points[block], double.T, alpha=-2)
        if own is not None:
            square[torch.arange(len(square)), torch.from_numpy(own[block])] = -torch.inf
        near[block] = _smallest(square, most)[1].numpy()
    return near


def _measured(
    cells: np.ndarray, asked: np.ndarray, near: np.ndarray, k: int, own: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest (M, k) of the cells `near` (M, K) and their distances (M, k), `own` (M,) first."""
    near = np.sort(near, axis=1)  # of equally near cells the earlier comes first
    distances = np.empty(near.shape, dtype=cells.dtype)
    for block in _blocks(len(asked), OFFSETS // max(1, near.shape[1] * cells.shape[1])):
        offsets = cells[near[block]]
        offsets -= asked[block, None]
        offsets *= offsets
        distances[block] = np.sqrt(offsets.sum(2))
    if own is not None:
        distances[near == own[:, None]] = -1.0
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(near, order, 1), np.take_along_axis(distances, order, 1).clip(0.0)
