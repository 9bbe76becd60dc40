"""Images that show one cell twice: equal pixel by pixel, or but for encoding, size, light, mirror and quarter turns."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

SIDE = 32  # px of the grey thumbnails that are compared
FREQUENCIES = 8  # lowest ones of each direction that make the fingerprint
# On 6,000 cells of PBC different cells are at least 0.118 apart and correlate up to 0.943; a cell saved again at JPEG
# quality 50, at two thirds of its size or 10 % brighter is within 0.099 of itself and correlates by 0.993 or more.
NEAR = 0.1
ALIKE = 0.97
COLOUR = 40.0  # largest difference of the mean colours, of 255: the thumbnails are grey


def digest(image: Image.Image) -> bytes:
    """SHA-256 of size and pixels of an RGB image: equal for equal pictures, however they are stored."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()


def thumbnail(image: Image.Image) -> np.ndarray:
    """Grey picture (SIDE, SIDE) float32 of an image, of mean 0 and norm 1; all 0 where the image is of one grey."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)
    grey = grey - grey.mean()
    norm = float(np.linalg.norm(grey))
    return grey / norm if norm > SIDE / 2 else np.zeros_like(grey)  # less than half a grey level: nothing to compare


def fingerprints(thumbnails: np.ndarray) -> np.ndarray:
    """Perceptual hash (N, D) of thumbnails (N, SIDE, SIDE): sizes of the lowest cosine frequencies, without the mean.

    As phash (Zauner 2010), but kept as numbers instead of signs, so that there is a distance; and u, v together with
    v, u, so that neither mirroring nor quarter turns change it.
    """
    squares = dctn(thumbnails, axes=(1, 2), norm="ortho")[:, :FREQUENCIES, :FREQUENCIES] ** 2
    both = np.sqrt(squares + squares.transpose(0, 2, 1))
    rows, columns = np.triu_indices(FREQUENCIES)
    return both[:, rows, columns][:, 1:]


def near_pairs(thumbnails: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Pairs (P, 2) of rows, the smaller first, whose pictures are alike in one of the eight orientations.

    `thumbnails` (N, SIDE, SIDE) as `thumbnail` makes them, `colours` (N, 3) the mean colours. Pictures of one grey are
    like no other. Fingerprints closer than NEAR are candidates; a pair correlates by ALIKE or more.
    """
    shown = np.flatnonzero(np.abs(thumbnails).any((1, 2)))
    if len(shown) < 2:
        return np.empty((0, 2), dtype=np.int64)
    tree = cKDTree(fingerprints(thumbnails[shown]))
    pairs = shown[tree.query_pairs(NEAR, output_type="ndarray").reshape(-1, 2)]
    pairs = pairs[(np.abs(colours[pairs[:, 0]] - colours[pairs[:, 1]]) <= COLOUR).all(1)]
    kept = [chunk[_correlation(thumbnails[chunk[:, 0]], thumbnails[chunk[:, 1]]) >= ALIKE] for chunk in _chunks(pairs)]
    found = np.sort(np.concatenate(kept), axis=1)
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def _chunks(pairs: np.ndarray) -> list[np.ndarray]:
    return np.array_split(pairs, len(pairs) // 4096 + 1)


def _correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Highest correlation (P,) of pictures (P, SIDE, SIDE) over the eight orientations of the second."""
    turned = [np.rot90(side, quarter, (1, 2)) for quarter in range(4) for side in (other, other[:, :, ::-1])]
    return np.max([np.einsum("phw,phw->p", one, picture) for picture in turned], axis=0)


def equal_pairs(digests: list[bytes]) -> np.ndarray:
    """Pairs (P, 2) that join the rows of each digest that occurs more than once: the first with each other."""
    first: dict[bytes, int] = {}
    pairs = [(first.setdefault(value, row), row) for row, value in enumerate(digests)]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], dtype=np.int64).reshape(-1, 2)


def twins(pairs: np.ndarray, count: int) -> list[np.ndarray]:
    """Sets of rows that pairs (P, 2) of `count` rows join, each sorted, the first row deciding the order."""
    graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, member = connected_components(graph, directed=False)
    rows = np.unique(pairs)
    sets: dict[int, list[int]] = {}
    for row in rows.tolist():
        sets.setdefault(int(member[row]), []).append(row)
    return [np.array(members) for members in sets.values()]
