"""Nearest cells of an embedding, found by matrix product and measured directly.

    outline  of a long embedding a quarter of its dimensions, turned so that they hold nearly all of it: distances in it
             are never longer than those of the embedding
    product  in single precision finds a few cells more than are wanted
    measure  of these the distances, from their differences: they keep their digits where cells are close
    doubt    where the outline or the product's rounding may have left out one of the nearest, it is looked for again,
             in double precision

So none is missed at any number of cells, unless rounding is beyond `ROUNDING`; umap-learn changes to an approximation
at 4,096 cells. Values are expected near 1, as their callers scale them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

TILE = 512  # cells on a side of a tile of the product of all cells
BLOCK = 2**19  # numbers of a block of the product of some with all cells
SPARE = 10  # candidates beyond the neighbours that are wanted
LONG = 512  # components from which the outline is worth its making
PART = 4  # it has so many times fewer
LOST = 0.01  # share of the squared lengths beyond which it holds too little
# By how much the product may be off, in units of rounding of the squared lengths. On embeddings of 64 to 1,024
# components it is off by 1 or 2, in one of 10,000 pairs by 7 to 11 (NOTES.md). The proven bound, a unit a component,
# would doubt nearly every row; components that are copies of one another come close to it.
ROUNDING = 10


def nearest(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices int64 and Euclidean distances (N, k), in the type of x (N, n), of the k <= N cells nearest to each,
    itself first, of equally near ones the earlier first.

    Which of several cells equally near at the end of the list are in it is left to rounding.
    """
    x = np.ascontiguousarray(x)
    basis = _basis(x)
    outline = x if basis is None else x @ basis
    candidates, beyond = _mutual(_single(outline), min(k + SPARE, len(x)))
    return _settled(_Search(x, x, outline, outline, np.arange(len(x))), candidates, beyond, k)


def nearest_among(cells: np.ndarray, asked: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices int64 and Euclidean distances (M, k), in the type of cells (N, n), of the k <= N cells nearest to each
    of asked (M, n), of equally near ones the earlier first, as in `nearest`."""
    cells, asked = np.ascontiguousarray(cells), np.ascontiguousarray(asked)
    basis = _basis(cells)
    outline, points = (cells, asked) if basis is None else (cells @ basis, asked @ basis)
    candidates, beyond = _each(_single(outline), _single(points), min(k + SPARE, len(cells)))
    return _settled(_Search(cells, asked, outline, points, None), candidates, beyond, k)


@dataclass(frozen=True)
class _Search:
    cells: np.ndarray  # (N, n)
    asked: np.ndarray  # (M, n)
    outline: np.ndarray  # (N, m) of the cells: themselves where they are short
    points: np.ndarray  # (M, m) of those asked
    own: np.ndarray | None  # (M,) which of the cells are asked, if they are


def _basis(x: np.ndarray) -> np.ndarray | None:
    """Orthonormal columns (n, m) that span as many cells of x (N, n), taken evenly; None where x is short, or is not
    described by so few of its cells.

    An embedding has no more dimensions than the features before its head, and of these training leaves few.
    """
    count, length = x.shape
    few = length // PART
    if length < LONG or count < few:
        return None
    basis: np.ndarray = np.linalg.qr(x[np.arange(few) * count // few].T)[0]
    turned = x @ basis
    kept = np.vdot(turned, turned) / max(np.vdot(x, x), np.finfo(x.dtype).tiny)
    return basis if kept >= 1 - LOST else None


def _single(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def _mutual(cells: torch.Tensor, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every cell (N, n) the `most` nearest (N, most), itself among them, and of the farthest of these the squared
    distance without the cell's own square (N,). Every tile of the product serves its rows and its columns."""
    heaps = _Heaps(cells, len(cells), most, TILE * TILE)
    tiles = _slices(len(cells), TILE)
    for place, rows in enumerate(tiles):
        for columns in tiles[place:]:
            product = heaps.product(cells[rows], columns)
            if rows == columns:
                product.fill_diagonal_(torch.inf)
            heaps.offer(product, rows, columns, mutual=rows != columns)
    return heaps.found()


def _each(
    cells: torch.Tensor, asked: torch.Tensor, most: int, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What `_mutual` gives, of each of asked (M, m) among cells (N, m), `own` (M,) among them."""
    rows = max(1, BLOCK // len(cells))
    heaps, everyone = _Heaps(cells, len(asked), most, rows * len(cells)), slice(0, len(cells))
    for block in _slices(len(asked), rows):
        product = heaps.product(asked[block], everyone)
        if own is not None:
            product[torch.arange(len(product)), torch.from_numpy(own[block])] = torch.inf
        heaps.offer(product, block, everyone, mutual=False)
    return heaps.found()


def _slices(count: int, width: int) -> list[slice]:
    return [slice(begin, min(begin + width, count)) for begin in range(0, count, width)]


class _Heaps:
    """The nearest so far of `count` points among cells (N, m), from blocks of at most `size` numbers of a product."""

    def __init__(self, cells: torch.Tensor, count: int, most: int, size: int) -> None:
        from guided.compiled.search import offer  # numba takes a second to import: only where cells are searched

        self._offer, self._cells = offer, cells
        self._squares = torch.linalg.vecdot(cells, cells).numpy()
        self._values = np.full((count, most), np.inf, dtype=self._squares.dtype)
        self._places = np.zeros((count, most), dtype=np.int64)
        self._room = torch.empty(size, dtype=cells.dtype)  # new memory for each block takes as long as its product

    def product(self, points: torch.Tensor, columns: slice) -> torch.Tensor:
        """Products of points (P, m) with the cells of `columns`, until the next ones."""
        shape = len(points), columns.stop - columns.start
        room = self._room[: shape[0] * shape[1]].view(shape)
        return torch.mm(points, self._cells[columns].T, out=room)

    def offer(self, product: torch.Tensor, rows: slice, columns: slice, *, mutual: bool) -> None:
        found = self._values, self._places
        self._offer(product.numpy(), self._squares, rows.start, columns.start, *found, mutual)

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        return self._places, self._values[:, 0].astype(np.float64)


def _settled(search: _Search, near: np.ndarray, beyond: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of the candidates near (M, K), measured. Every other cell has in the outline a square of at least
    `beyond` (M,), less that of the point asked. Rows whose last neighbour is not nearer than that, by more than
    rounding, are looked for again in the outline in double precision, and what is still in doubt in the whole."""
    rows = np.arange(len(near))
    indices, distances = _measured(search, rows, near, k)
    looks = [(search.outline, search.points), (search.cells, search.asked)]
    for look, (cells, asked) in enumerate(looks if search.outline is not search.cells else looks[:1]):
        last, point = distances[rows, -1].astype(np.float64), search.points[rows].astype(np.float64)
        squares = np.einsum("ij,ij->i", point, point)
        # A neighbour that was left out is no farther than the last one found, so that is how long it can be.
        reach = 2 * np.sqrt(squares) + last
        # The first product is off by its rounding; afterwards only the outline's and the measured distance's are left.
        off = ROUNDING * np.finfo(np.float32).eps / 2 * reach * (last if look else reach)
        rows = rows[last**2 > beyond + squares - off]
        if not len(rows) or near.shape[1] == len(search.cells):
            break
        near, beyond = _doubly(cells, asked[rows], near.shape[1], None if search.own is None else search.own[rows])
        indices[rows], distances[rows] = _measured(search, rows, near, k)
    return indices, distances


def _doubly(cells: np.ndarray, asked: np.ndarray, most: int, own: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """What `_mutual` gives, of each of asked (M, m) among cells (N, m), by a product in double precision."""
    double, points = (torch.from_numpy(array.astype(np.float64)) for array in (cells, asked))
    return _each(double, points, most, own)


def _measured(search: _Search, rows: np.ndarray, near: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest (R, k) of the cells near (R, K) to the points asked in `rows` (R,), and their distances (R, k);
    its own cell first."""
    from guided.compiled.search import distances_to

    near = np.sort(near, axis=1)  # of equally near cells the earlier comes first
    distances = distances_to(search.cells, search.asked[rows], near)
    if search.own is not None:
        distances[near == search.own[rows, None]] = -1.0
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(near, order, 1), np.take_along_axis(distances, order, 1).clip(0.0)
