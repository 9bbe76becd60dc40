"""Nearest cells of an embedding, found by matrix product and measured directly.

    outline  of a long embedding a quarter of its dimensions, turned so that they hold nearly all of it: distances in it
             are never longer than those of the embedding
    product  in single precision finds a few cells more than are wanted
    measure  of these the distances, from their differences: they keep their digits where cells are close
    doubt    where the outline or the product's rounding may have left out one of the nearest, it is looked for again,
             in double precision

So none is missed at any number of cells, unless rounding is beyond `ROUNDING` or cells are nearer to one another than
the rounding of their own coordinates; umap-learn changes to an approximation at 4,096 cells. Values are expected near
1, as their callers scale them.
"""

from __future__ import annotations

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
    everyone, most = np.arange(len(x)), min(k + SPARE, len(x))
    outline = _outline(x)
    points = x if outline is None else outline
    found = _Found(x, x, everyone, k)
    near, beyond = _mutual(_single(points), most)
    found.measure(everyone, near)
    rows = found.in_doubt(everyone, points, beyond, single=True)
    if len(rows) and outline is not None:
        near, beyond = _doubly(outline, outline[rows], most, rows)
        found.measure(rows, near)
        rows = found.in_doubt(rows, outline, beyond, single=False)
    if len(rows):
        found.measure(rows, _doubly(x, x[rows], most, rows)[0])
    return found.indices, found.distances


def nearest_among(cells: np.ndarray, asked: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices int64 and Euclidean distances (M, k), in the type of asked (M, n), of the k <= N of cells (N, n) nearest
    to each of asked, of equally near ones the earlier first, as in `nearest`."""
    cells, asked = np.ascontiguousarray(cells), np.ascontiguousarray(asked)
    everyone, most = np.arange(len(asked)), min(k + SPARE, len(cells))
    found = _Found(cells, asked, None, k)
    near, beyond = _each(_single(cells), _single(asked), most)  # to outline all cells would take as long
    found.measure(everyone, near)
    rows = found.in_doubt(everyone, asked, beyond, single=True)
    if len(rows):
        found.measure(rows, _doubly(cells, asked[rows], most)[0])
    return found.indices, found.distances


class _Found:
    """The k nearest cells (N, n) of asked (M, n), `own` (M,) first, from candidates that are measured."""

    def __init__(self, cells: np.ndarray, asked: np.ndarray, own: np.ndarray | None, k: int) -> None:
        self._cells, self._asked, self._own, self._candidates = cells, asked, own, 0
        self.indices = np.empty((len(asked), k), dtype=np.int64)
        self.distances = np.empty((len(asked), k), dtype=asked.dtype)

    def measure(self, rows: np.ndarray, near: np.ndarray) -> None:
        """Find those of `rows` (R,) among the cells near (R, K)."""
        from guided.compiled.search import distances_to  # numba takes a second to import: only where it measures

        near = np.sort(near, axis=1)  # of equally near cells the earlier comes first
        distances = distances_to(self._cells, self._asked[rows], near)
        if self._own is not None:
            distances[near == self._own[rows, None]] = -1.0
        order = np.argsort(distances, axis=1, kind="stable")[:, : self.indices.shape[1]]
        self.indices[rows] = np.take_along_axis(near, order, 1)
        self.distances[rows] = np.take_along_axis(distances, order, 1).clip(0.0)
        self._candidates = near.shape[1]

    def in_doubt(self, rows: np.ndarray, points: np.ndarray, beyond: np.ndarray, *, single: bool) -> np.ndarray:
        """Those of `rows` (R,) that may lack a neighbour. Among points (M, m), the ones asked or an outline of them,
        every cell that was no candidate has at least the squared distance `beyond` (R,) + the square of the point, by a
        product in single precision or in double."""
        if self._candidates == len(self._cells):
            return rows[:0]
        last, point = self.distances[rows, -1].astype(np.float64), points[rows].astype(np.float64)
        squares = np.einsum("ij,ij->i", point, point)
        # A neighbour that was left out is no farther than the last one found, so that is how long it can be.
        reach = 2 * np.sqrt(squares) + last
        unit = ROUNDING * np.finfo(np.float32).eps / 2
        # Behind a product in double precision the rounding of the outline and of the measured distance is left.
        off = unit * reach**2 if single else unit * reach * last + (unit * reach) ** 2
        sure = np.isfinite(beyond) & (last**2 <= beyond + squares - off)  # single precision overflows at 1e19
        return rows[~sure]


def _outline(x: np.ndarray) -> np.ndarray | None:
    """Coordinates (N, m) of x (N, n) in the space that so many of its cells, taken evenly, span; None where x is short,
    or is not described by so few of its cells.

    An embedding has no more dimensions than the features before its head, and of these training leaves few.
    """
    count, length = x.shape
    few = length // PART
    if length < LONG or count < few:
        return None
    outline: np.ndarray = x @ np.linalg.qr(x[np.arange(few) * count // few].T)[0]
    kept = np.vdot(outline, outline) / max(np.vdot(x, x), np.finfo(x.dtype).tiny)
    return outline if kept >= 1 - LOST else None


def _single(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def _mutual(cells: torch.Tensor, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every cell (N, n) the `most` nearest (N, most), itself among them, and of the farthest of these the squared
    distance without the cell's own square (N,). Every tile of the product serves its rows and its columns."""
    heaps = _Heaps(cells, len(cells), most, min(TILE, len(cells)) ** 2)
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
    rows = max(1, min(len(asked), BLOCK // len(cells)))
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


def _doubly(
    cells: np.ndarray, asked: np.ndarray, most: int, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What `_each` gives, by a product in double precision."""
    double, points = (torch.from_numpy(array.astype(np.float64)) for array in (cells, asked))
    return _each(double, points, most, own)
