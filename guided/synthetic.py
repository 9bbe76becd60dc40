"""Embedded synthetic bone marrow: 15 cell types with the structure of the private data of Gräbel et al. (4.1).

Every cell has a true, continuous maturity that scatters around the stage of its class; typical values of
morphological parameters follow the maturity along the lineage, and each cell scatters around them. The picture is
drawn from the parameters plus what a smear adds: stain per patient, focus and light per region, neighbours at the
border. All lengths are micrometres, so a cell looks alike at every patch size.

The classes overlap because maturities overlap. How much can be known is exact: `class_log_density` is the density the
parameters were drawn from, so the Bayes classifier can be computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.special import expit, log_softmax, logit, logsumexp

FIELD_UM = 26.0  # side of a patch; 244 px of the paper at 0.107 µm
SMALLEST_PATCH = 16  # px; below, a lymphocyte's nucleus has fewer than 5 px across


@dataclass(frozen=True)
class CellClass:
    """A cell type of the marrow; `stage` counts maturity within the lineage from the blast, 0."""

    name: str
    lineage: str
    stage: float
    share: float  # of all cells, in multiples of the proerythroblast's
    spread: float  # sd of the true maturity around the stage, in stages


CLASSES: tuple[CellClass, ...] = (
    CellClass("blast", "undifferentiated", 0, 6, 0.40),
    CellClass("proerythroblast", "erythroid", 1, 1, 0.40),
    CellClass("basophilic_erythroblast", "erythroid", 2, 6, 0.40),
    CellClass("polychromatic_erythroblast", "erythroid", 3, 17, 0.40),
    CellClass("orthochromatic_erythroblast", "erythroid", 4, 11, 0.40),
    CellClass("promyelocyte", "neutrophilic", 1, 8, 0.40),
    CellClass("myelocyte", "neutrophilic", 2, 15, 0.40),
    CellClass("metamyelocyte", "neutrophilic", 3, 15, 0.40),
    CellClass("band_neutrophil", "neutrophilic", 4, 20, 0.40),
    CellClass("segmented_neutrophil", "neutrophilic", 5, 30, 0.40),
    CellClass("eosinophil", "eosinophilic", 4, 7, 0.60),
    CellClass("basophil", "basophilic", 4, 4, 0.60),
    CellClass("promonocyte", "monocytic", 2, 4, 0.80),
    CellClass("monocyte", "monocytic", 4, 7, 0.80),
    CellClass("lymphocyte", "lymphoid", 4, 16, 0.60),
)


class Parameter(NamedTuple):
    """A morphological parameter: normal on its link scale, around the typical value at the cell's maturity."""

    name: str
    link: str  # log: positive values; logit: shares between 0 and 1
    spread: float  # sd on the link scale, the same for all cells


PARAMETERS: tuple[Parameter, ...] = (
    Parameter("cell_diameter_um", "log", 0.10),
    Parameter("nuclear_share", "logit", 0.30),  # nucleus : cell, by area
    Parameter("nuclear_stretch", "log", 0.30),  # length of the nucleus' axis in units of its half thickness; 0 is round
    Parameter("constriction", "logit", 0.50),  # of the nucleus between two lobes
    Parameter("lobes", "log", 0.20),
    Parameter("condensation", "logit", 0.40),  # of the chromatin: dark, with strong clumps
    Parameter("clump_um", "log", 0.15),  # size of the chromatin's grain
    Parameter("nucleoli", "logit", 0.60),  # how clearly they stand out
    Parameter("basophilia", "logit", 0.45),  # blue of the cytoplasm (RNA)
    Parameter("acidophilia", "logit", 0.45),  # pink of the cytoplasm (haemoglobin, specific granules)
    Parameter("azurophilic_granules", "logit", 0.50),  # share of the cytoplasm they cover; so below
    Parameter("eosinophilic_granules", "logit", 0.50),
    Parameter("basophilic_granules", "logit", 0.50),
    Parameter("vacuoles", "logit", 0.50),
    Parameter("irregular_outline", "logit", 0.50),
)

# Typical parameters at knots of maturity, per lineage; between two knots linear on the link scale, constant outside.
# Columns as in PARAMETERS.
_BLAST = (15.5, 0.78, 0.30, 0.05, 1.0, 0.16, 0.60, 0.75, 0.60, 0.04, 0.003, 0.003, 0.003, 0.003, 0.06)
TRAJECTORIES: dict[str, dict[float, tuple[float, ...]]] = {
    "undifferentiated": {0: _BLAST},
    "erythroid": {
        0: _BLAST,
        1: (18.0, 0.74, 0.10, 0.05, 1.0, 0.24, 0.70, 0.65, 0.90, 0.04, 0.003, 0.003, 0.003, 0.003, 0.06),
        2: (14.5, 0.62, 0.10, 0.05, 1.0, 0.48, 1.00, 0.15, 0.92, 0.06, 0.003, 0.003, 0.003, 0.003, 0.06),
        3: (11.5, 0.48, 0.10, 0.05, 1.0, 0.72, 1.20, 0.04, 0.55, 0.35, 0.003, 0.003, 0.003, 0.003, 0.06),
        4: (9.5, 0.30, 0.10, 0.05, 1.0, 0.92, 1.20, 0.02, 0.15, 0.80, 0.003, 0.003, 0.003, 0.003, 0.06),
    },
    "neutrophilic": {
        0: _BLAST,
        1: (19.0, 0.58, 0.30, 0.05, 1.0, 0.22, 0.70, 0.50, 0.65, 0.08, 0.450, 0.003, 0.003, 0.003, 0.06),
        2: (16.0, 0.46, 0.45, 0.05, 1.0, 0.42, 0.90, 0.10, 0.30, 0.25, 0.220, 0.003, 0.003, 0.003, 0.06),
        3: (14.5, 0.40, 2.30, 0.08, 1.3, 0.58, 1.10, 0.03, 0.12, 0.34, 0.100, 0.003, 0.003, 0.003, 0.06),
        4: (13.5, 0.34, 4.50, 0.20, 2.0, 0.72, 1.20, 0.02, 0.06, 0.38, 0.060, 0.003, 0.003, 0.003, 0.06),
        5: (13.0, 0.30, 6.50, 0.84, 3.2, 0.82, 1.20, 0.02, 0.05, 0.38, 0.050, 0.003, 0.003, 0.003, 0.06),
    },
    "eosinophilic": {
        3: (15.0, 0.38, 1.60, 0.15, 1.5, 0.58, 1.10, 0.03, 0.15, 0.35, 0.003, 0.700, 0.003, 0.003, 0.06),
        4: (14.0, 0.32, 3.20, 0.65, 2.0, 0.74, 1.20, 0.02, 0.08, 0.38, 0.003, 0.750, 0.003, 0.003, 0.06),
        5: (13.5, 0.28, 4.20, 0.85, 2.3, 0.82, 1.20, 0.02, 0.06, 0.38, 0.003, 0.750, 0.003, 0.003, 0.06),
    },
    "basophilic": {
        3: (13.5, 0.48, 1.20, 0.15, 1.4, 0.50, 1.00, 0.03, 0.22, 0.22, 0.003, 0.003, 0.450, 0.003, 0.06),
        4: (12.5, 0.42, 2.20, 0.40, 2.2, 0.62, 1.10, 0.02, 0.16, 0.22, 0.003, 0.003, 0.550, 0.003, 0.06),
        5: (12.0, 0.38, 3.00, 0.55, 2.6, 0.70, 1.10, 0.02, 0.14, 0.22, 0.003, 0.003, 0.550, 0.003, 0.06),
    },
    "monocytic": {
        0: _BLAST,
        2: (17.5, 0.60, 1.30, 0.08, 1.2, 0.22, 0.65, 0.35, 0.52, 0.06, 0.120, 0.003, 0.003, 0.050, 0.25),
        4: (16.5, 0.42, 2.80, 0.14, 1.6, 0.38, 0.85, 0.04, 0.36, 0.08, 0.060, 0.003, 0.003, 0.180, 0.50),
    },
    "lymphoid": {
        3: (12.5, 0.66, 0.30, 0.05, 1.0, 0.62, 1.20, 0.14, 0.50, 0.05, 0.040, 0.003, 0.003, 0.003, 0.12),
        4: (10.0, 0.78, 0.20, 0.05, 1.0, 0.76, 1.30, 0.05, 0.50, 0.05, 0.003, 0.003, 0.003, 0.003, 0.08),
        5: (9.0, 0.84, 0.15, 0.05, 1.0, 0.82, 1.30, 0.03, 0.50, 0.05, 0.003, 0.003, 0.003, 0.003, 0.06),
    },
}


@dataclass(frozen=True)
class Marrow:
    """Rendered cells, in random order, with everything that is true of them."""

    images: np.ndarray  # (N, size, size, 3) uint8
    labels: np.ndarray  # (N,) int64, index into classes
    classes: tuple[str, ...]
    patient: np.ndarray  # (N,) str
    region: np.ndarray  # (N,) str; a region belongs to one patient
    maturity: np.ndarray  # (N,) float32, true maturity in stages
    parameters: np.ndarray  # (N, P) float32
    parameter_names: tuple[str, ...]


def render_marrow(cells: int, size: int, *, seed: int = 0, patients: int = 6, regions: int = 13) -> Marrow:
    """`cells` patches of `size` × `size` px with labels, patients and regions.

    All but the images depends on `cells`, `seed`, `patients` and `regions` alone, so another `size` shows the same
    cells finer or coarser. Raises ValueError for fewer cells than classes, for patches under 16 px and for fewer
    regions than patients.
    """
    _check(cells, size, patients, regions)
    rng = np.random.default_rng(seed)
    labels, region_of_cell, patient_of_region = _compose(rng, cells, patients, regions)
    stage, spread = (np.array(values)[labels] for values in zip(*((c.stage, c.spread) for c in CLASSES), strict=True))
    maturity = stage + spread * rng.standard_normal(cells)
    link = typical_parameters(labels, maturity)
    link += rng.standard_normal(link.shape) * _SPREAD
    scene = _draw_scene(rng, link, region_of_cell, patient_of_region)
    images = np.empty((cells, size, size, 3), dtype=np.uint8)
    for rows in _batches(cells, size):
        images[rows] = _render(scene.take(rows), size)
    patient_of_cell = patient_of_region[region_of_cell]
    return Marrow(
        images=images,
        labels=labels,
        classes=tuple(c.name for c in CLASSES),
        patient=np.array([f"P{p + 1}" for p in patient_of_cell]),
        region=np.array([f"P{p + 1}R{r + 1}" for p, r in zip(patient_of_cell, region_of_cell, strict=True)]),
        maturity=maturity.astype(np.float32),
        parameters=_from_link(link).astype(np.float32),
        parameter_names=tuple(p.name for p in PARAMETERS),
    )


def _check(cells: int, size: int, patients: int, regions: int) -> None:
    if cells < len(CLASSES):
        raise ValueError(f"cells is {cells}, but the marrow has {len(CLASSES)} classes; ask for at least one cell each")
    if size < SMALLEST_PATCH:
        raise ValueError(f"size is {size} px, but nothing can be told apart below {SMALLEST_PATCH} px")
    if patients < 1:
        raise ValueError(f"patients is {patients}; at least one is needed")
    if regions < patients:
        raise ValueError(f"regions is {regions}, but each of the {patients} patients needs at least one")


# --- who is in the smear -----------------------------------------------------------------------------------------


def apportion(total: int, shares: np.ndarray) -> np.ndarray:
    """Whole numbers (C,) that sum to `total`, at least 1 each and otherwise as near to `shares` as the largest
    remainders allow. Raises ValueError where `total` < C."""
    if total < len(shares):
        raise ValueError(f"{total} cells cannot give each of {len(shares)} classes one")
    counts = np.ones(len(shares), dtype=np.int64)
    quota = total * np.asarray(shares, dtype=float) / np.sum(shares)
    counts = np.maximum(counts, np.floor(quota).astype(np.int64))
    while counts.sum() > total:  # the cells lent to classes with a quota below one
        counts[np.argmax(np.where(counts > 1, counts - quota, -np.inf))] -= 1
    rest = total - counts.sum()
    counts[np.argsort(counts - quota, kind="stable")[:rest]] += 1
    return counts


def _compose(
    rng: np.random.Generator, cells: int, patients: int, regions: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (N,), region of each cell (N,) and patient of each region (R,).

    Each class is spread over the regions by their size and the patient's own composition of the marrow: systematic
    sampling, so that a class with few cells is not in the same few regions as the other rare ones.
    """
    counts = apportion(cells, np.array([c.share for c in CLASSES]))
    patient_of_region = np.sort(np.arange(regions) % patients)
    weight = (
        rng.lognormal(0.0, 0.15, regions)[:, None]
        * rng.lognormal(0.0, 0.25, (patients, len(CLASSES)))[patient_of_region]
    )  # (R, C)
    labels = np.repeat(np.arange(len(CLASSES)), counts)
    region = np.empty(cells, dtype=np.int64)
    for c, count in enumerate(counts):
        order = rng.permutation(regions)
        upper = np.cumsum(weight[order, c]) / weight[:, c].sum()
        region[labels == c] = order[np.searchsorted(upper[:-1], (np.arange(count) + rng.random()) / count)]
    shuffled = rng.permutation(cells)
    return labels[shuffled], region[shuffled], patient_of_region


# --- what a cell is ----------------------------------------------------------------------------------------------


_IS_LOG = np.array([p.link == "log" for p in PARAMETERS])
_SPREAD = np.array([p.spread for p in PARAMETERS])


def _to_link(parameters: np.ndarray) -> np.ndarray:
    out = np.empty(np.shape(parameters))
    out[..., _IS_LOG] = np.log(parameters[..., _IS_LOG])
    out[..., ~_IS_LOG] = logit(parameters[..., ~_IS_LOG])
    return out


def _from_link(link: np.ndarray) -> np.ndarray:
    out = np.empty(link.shape)
    out[..., _IS_LOG] = np.exp(link[..., _IS_LOG])
    out[..., ~_IS_LOG] = expit(link[..., ~_IS_LOG])
    return out


def typical_parameters(labels: np.ndarray, maturity: np.ndarray) -> np.ndarray:
    """Typical parameters (N, P) on their link scales, for classes (N,) at maturities (N,)."""
    out = np.empty((len(labels), len(PARAMETERS)))
    lineage = np.array([c.lineage for c in CLASSES])[labels]
    for name, knots in TRAJECTORIES.items():
        rows = np.flatnonzero(lineage == name)
        values = _to_link(np.array(list(knots.values())))
        for p in range(len(PARAMETERS)):
            out[rows, p] = np.interp(maturity[rows], list(knots), values[:, p])
    return out


def class_log_density(parameters: np.ndarray, nodes: int = 161) -> np.ndarray:
    """Log density (N, C) of parameters (N, P) in each class, on their link scales.

    The maturity is integrated out with `nodes` equidistant points over ± 4 sd. With log class shares added, the
    largest entry of a row is the decision of the Bayes classifier. The images tell no more than the parameters do,
    but for the composition of a patient's marrow, which the stain may betray. Raises ValueError where there are not P
    columns.
    """
    if np.ndim(parameters) != 2 or np.shape(parameters)[1] != len(PARAMETERS):
        raise ValueError(f"parameters have shape {np.shape(parameters)}; (cells, {len(PARAMETERS)}) is needed")
    link = _to_link(np.asarray(parameters, dtype=np.float64))
    z = np.linspace(-4.0, 4.0, nodes)
    log_weight = log_softmax(-0.5 * z**2)
    density = np.empty((len(link), len(CLASSES)))
    for c, cell_class in enumerate(CLASSES):
        typical = typical_parameters(np.full(nodes, c), cell_class.stage + cell_class.spread * z) / _SPREAD
        scaled = link / _SPREAD
        squares = (scaled**2).sum(1)[:, None] - 2 * scaled @ typical.T + (typical**2).sum(1)
        density[:, c] = logsumexp(log_weight - 0.5 * squares, axis=1)
    return density - np.log(_SPREAD).sum() - 0.5 * len(PARAMETERS) * np.log(2 * np.pi)


# --- what a smear adds -------------------------------------------------------------------------------------------

NEIGHBOURS = 6
# Optical densities per channel (red, green, blue) of what the stain colours.
_BACKGROUND = np.array([0.03, 0.07, 0.12])
_PALE = np.array([0.11, 0.18, 0.15])  # cytoplasm without RNA
_BLUE = np.array([0.75, 0.60, 0.16])  # RNA
_PINK = np.array([0.05, 0.45, 0.42])  # haemoglobin, specific granules
_RED_CELL = np.array([0.16, 0.46, 0.42])
_FINE_CHROMATIN = np.array([0.62, 0.98, 0.38])
_DENSE_CHROMATIN = np.array([1.30, 1.85, 0.72])
_NUCLEOLUS = np.array([0.62, 0.66, 0.24])
_AZUROPHILIC = np.array([0.60, 1.15, 0.42])
_EOSINOPHILIC = np.array([0.14, 0.72, 0.80])
_BASOPHILIC = np.array([1.20, 1.65, 0.62])


@dataclass(frozen=True)
class _Scene:
    """All a batch of patches is drawn from; float32, one row per cell."""

    parameters: np.ndarray  # (N, P), drawn values
    centre: np.ndarray  # (N, 2) µm from the middle of the patch
    outline: np.ndarray  # (N, 4) cosine and sine amplitude of the second and third harmonic of the outline
    nucleus: np.ndarray  # (N, 4) shift in x and y (shares of the free room), direction and bend (radians)
    nucleoli: np.ndarray  # (N, 3, 3) x, y (shares of the nucleus' half thickness) and radius (µm)
    texture: np.ndarray  # (N, 6, 2) where in the texture tiles the cell lies
    neighbours: np.ndarray  # (N, K, 3) x, y and radius (µm)
    neighbour_core: np.ndarray  # (N, K, 4) the same of its nucleus or central pallor, and how soft its edge is (µm)
    neighbour_colour: np.ndarray  # (N, K, 2, 3) optical density of outer and inner disc
    stain: np.ndarray  # (N, 3) factor on the optical density
    light: np.ndarray  # (N, 3) factor on the light
    blur: np.ndarray  # (N,) µm

    def take(self, rows: slice) -> _Scene:
        return _Scene(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def _draw_scene(
    rng: np.random.Generator, link: np.ndarray, region: np.ndarray, patient_of_region: np.ndarray
) -> _Scene:
    n, regions = len(link), len(patient_of_region)
    parameters = _from_link(link)
    patient = patient_of_region[region]
    strength = rng.lognormal(0.0, 0.10, patient.max() + 1)[:, None]
    stain = strength * rng.lognormal(0.0, 0.08, (patient.max() + 1, 3))
    light = rng.uniform(0.88, 1.0, (regions, 1)) * rng.uniform(0.97, 1.0, (regions, 3))
    blur = rng.uniform(0.10, 0.45, regions)
    radius = parameters[:, 0] / 2

    kind = rng.choice(3, (n, NEIGHBOURS), p=[0.30, 0.60, 0.10])  # none, red cell, nucleated cell
    outer = np.where(kind == 2, rng.uniform(5.0, 8.0, kind.shape), rng.normal(3.6, 0.25, kind.shape))
    inner = np.where(kind == 2, outer * rng.uniform(0.6, 0.85, kind.shape), outer * rng.uniform(0.2, 0.5, kind.shape))
    away = np.maximum(radius[:, None] + outer * rng.uniform(0.92, 1.25, kind.shape), 7.0 + 0.5 * outer)
    away = np.where(kind == 0, 10 * FIELD_UM, away)
    turn = (np.arange(NEIGHBOURS) + rng.uniform(-0.35, 0.35, kind.shape)) * (2 * np.pi / NEIGHBOURS)
    turn += rng.uniform(0, 2 * np.pi, (n, 1))
    x, y = away * np.cos(turn), away * np.sin(turn)
    shift = rng.uniform(-0.6, 0.6, (n, NEIGHBOURS, 2)) * np.where(kind == 2, outer - inner, 0.3)[..., None]
    red = _RED_CELL * rng.uniform(0.75, 1.25, (n, NEIGHBOURS, 1))
    pallor = red * rng.uniform(0.2, 0.8, (n, NEIGHBOURS, 1)) + 0.03
    cytoplasm = _PALE + _BLUE * rng.uniform(0.05, 0.7, (n, NEIGHBOURS, 1))
    chromatin = _FINE_CHROMATIN + (_DENSE_CHROMATIN - _FINE_CHROMATIN) * rng.uniform(0.1, 0.9, (n, NEIGHBOURS, 1))
    colour = np.where((kind == 2)[:, :, None, None], np.stack([cytoplasm, chromatin], 2), np.stack([red, pallor], 2))

    drawn = {
        "parameters": parameters,
        "centre": rng.normal(0.0, 0.4, (n, 2)),
        "outline": rng.normal(0.0, 1.0, (n, 4)),
        "nucleus": np.column_stack(
            [rng.uniform(-0.6, 0.6, (n, 2)), rng.uniform(0, 2 * np.pi, n), rng.uniform(2.8, 4.6, n)]
        ),
        "nucleoli": np.concatenate([rng.uniform(-0.6, 0.6, (n, 3, 2)), rng.uniform(0.7, 1.3, (n, 3, 1))], axis=2),
        "texture": rng.uniform(0, _TILE, (n, 6, 2)),
        "neighbours": np.stack([x, y, outer], axis=2),
        "neighbour_core": np.stack(
            [x + shift[..., 0], y + shift[..., 1], inner, np.where(kind == 2, 0.0, 1.2)], axis=2
        ),
        "neighbour_colour": colour,
        "stain": stain[patient] * rng.lognormal(0.0, 0.05, (n, 1)),
        "light": light[region],
        "blur": blur[region] * rng.uniform(0.8, 1.2, n),
    }
    return _Scene(**{name: values.astype(np.float32) for name, values in drawn.items()})


# --- drawing -----------------------------------------------------------------------------------------------------

_TILE = 512  # samples along a side of a texture tile, which repeats
_GRAIN = 16  # samples per unit of a texture, so that taking the nearest sample is fine enough


def _batches(cells: int, size: int) -> Iterator[slice]:
    """Rows of batches small enough for a plane of the batch to stay in the processor's cache."""
    step = max(1, 2**16 // size**2)
    for start in range(0, cells, step):
        yield slice(start, start + step)


@cache
def _noise_tile() -> np.ndarray:
    """Smooth noise (T, T) of mean 0 and sd 1 with a grain of one unit."""
    noise = gaussian_filter(np.random.default_rng(0).standard_normal((_TILE, _TILE)), _GRAIN / 3, mode="wrap")
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


@cache
def _granule_tile() -> tuple[np.ndarray, np.ndarray]:
    """For points scattered about one per unit square: distance to the nearest (T, T), in units, and a random number
    in [0, 1) that belongs to it (T, T)."""
    rng = np.random.default_rng(1)
    grid = np.arange(0, _TILE, _GRAIN)
    shift = rng.integers(2, _GRAIN - 2, (2, len(grid), len(grid)))
    rows, columns = grid[:, None] + shift[0], grid[None, :] + shift[1]
    empty = np.ones((_TILE, _TILE), dtype=bool)
    empty[rows, columns] = False
    identity = np.zeros((_TILE, _TILE))
    identity[rows, columns] = rng.permutation(rows.size).reshape(rows.shape) / rows.size
    margin = 2 * _GRAIN
    padded = np.pad(empty, margin, mode="wrap")
    distance, (i, j) = distance_transform_edt(padded, return_indices=True)
    inside = slice(margin, -margin)
    nearest = np.pad(identity, margin, mode="wrap")[i, j][inside, inside]
    return (distance[inside, inside] / _GRAIN).astype(np.float32), nearest.astype(np.float32)


def _column(values: np.ndarray) -> np.ndarray:
    """(B,) as (B, 1, 1), to meet planes of pixels."""
    return values[:, None, None]


def _cover(signed_distance: np.ndarray, softness: np.ndarray) -> np.ndarray:
    """Share (B, H, W) of each pixel inside a shape: 1 inside, 0 outside, with a ramp as wide as pixel and blur."""
    return np.clip(0.5 - signed_distance / softness, 0.0, 1.0)


def _paint(density: list[np.ndarray], cover: np.ndarray, colour: np.ndarray | list[np.ndarray]) -> None:
    """Lays a colour (B, 3), or three planes (B, H, W), over the optical density, in place."""
    for channel in range(3):
        layer = colour[channel] if isinstance(colour, list) else _column(colour[:, channel])
        density[channel] += cover * (layer - density[channel])


def _tile_index(x: np.ndarray, y: np.ndarray, pitch: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Flat index (B, H, W) into a texture tile whose unit is `pitch` (B,) µm."""
    scale = _column(_GRAIN / pitch)
    i = (x * scale + (_column(offset[:, 0]) + 64 * _TILE)).astype(np.int32) & (_TILE - 1)
    j = (y * scale + (_column(offset[:, 1]) + 64 * _TILE)).astype(np.int32) & (_TILE - 1)
    return i * _TILE + j


def _noise(
    x: np.ndarray, y: np.ndarray, grain: np.ndarray, offset: np.ndarray, blur: np.ndarray, pixel: float
) -> np.ndarray:
    """Smooth noise (B, H, W) with a grain of (B,) µm; what is finer than pixel and focus averages out."""
    noise = _noise_tile().take(_tile_index(x, y, grain, offset))
    noise *= _column(grain**2 / (grain**2 + 0.5 * pixel**2 + blur**2))
    return noise


def _granules(
    x: np.ndarray, y: np.ndarray, share: np.ndarray, pitch: float, radius: float, offset: np.ndarray, soft: np.ndarray
) -> np.ndarray:
    """Cover (B, H, W) of granules of `radius` µm, about one per `pitch`² µm² times `share` (B,)."""
    distance, identity = _granule_tile()
    index = _tile_index(x, y, np.full(len(share), pitch, dtype=np.float32), offset)
    cover = _cover(distance.take(index) * np.float32(pitch) - np.float32(radius), soft)
    cover *= identity.take(index) < _column(share)
    return cover


def _render(scene: _Scene, size: int) -> np.ndarray:
    """Patches (B, size, size, 3) uint8."""
    batch = len(scene.blur)
    value = {p.name: scene.parameters[:, i] for i, p in enumerate(PARAMETERS)}
    pixel = FIELD_UM / size
    axis = ((np.arange(size) + 0.5) * pixel - FIELD_UM / 2).astype(np.float32)
    soft = _column(np.hypot(np.float32(pixel), 2 * scene.blur))

    density = [np.full((batch, size, size), _BACKGROUND[c], dtype=np.float32) for c in range(3)]
    for k in range(NEIGHBOURS):
        disc, core = scene.neighbours[:, k], scene.neighbour_core[:, k]
        away = _distance(axis, disc[:, 0], disc[:, 1])
        _paint(density, _cover(away - _column(disc[:, 2]), soft), scene.neighbour_colour[:, k, 0])
        away = _distance(axis, core[:, 0], core[:, 1])
        _paint(density, _cover(away - _column(core[:, 2]), soft + _column(core[:, 3])), scene.neighbour_colour[:, k, 1])

    x = axis[None, None, :] - _column(scene.centre[:, 0])
    y = axis[None, :, None] - _column(scene.centre[:, 1])
    edge = _outline(x, y, value, scene.outline)
    cytoplasm = _cover(edge, soft)
    base = _PALE + value["basophilia"][:, None] * _BLUE + value["acidophilia"][:, None] * _PINK
    grain = np.full(batch, 0.9, dtype=np.float32)
    ground = _noise(x, y, grain, scene.texture[:, 5], scene.blur, pixel)
    ground *= 0.10
    ground += 1
    _paint(density, cytoplasm, [ground * _column(base[:, c].astype(np.float32)) for c in range(3)])

    depth, u, v = _nucleus(x, y, value, scene.nucleus)
    # Never outside the cell: a nucleus too large for its place is flattened by the membrane.
    depth = np.maximum(depth, edge + 0.25)
    _paint_granules(density, x, y, value, scene, cytoplasm, soft, before_nucleus=True)
    nucleus = _cover(depth, soft)
    _paint(density, nucleus, _chromatin(x, y, value, scene, pixel))
    half = np.sqrt(value["nuclear_share"]) * value["cell_diameter_um"] / 2
    for k in range(scene.nucleoli.shape[1]):
        spot = scene.nucleoli[:, k]
        away = np.sqrt((u - _column(spot[:, 0] * half)) ** 2 + (v - _column(spot[:, 1] * half)) ** 2)
        shown = _cover(away - _column(spot[:, 2]), soft) * nucleus * _column(value["nucleoli"])
        _paint(density, shown, np.broadcast_to(_NUCLEOLUS.astype(np.float32), (batch, 3)))
    _paint_granules(density, x, y, value, scene, cytoplasm, soft, before_nucleus=False)

    image = np.empty((batch, size, size, 3), dtype=np.uint8)
    for channel in range(3):
        plane = np.exp(-density[channel] * _column(scene.stain[:, channel]))
        plane *= _column(255 * scene.light[:, channel])
        image[..., channel] = plane + 0.5
    return image


def _distance(axis: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance (B, H, W) of the pixels on `axis` (H,) × `axis` to the points x (B,), y (B,), µm."""
    return np.sqrt((axis[None, None, :] - _column(x)) ** 2 + (axis[None, :, None] - _column(y)) ** 2)


def _outline(x: np.ndarray, y: np.ndarray, value: dict[str, np.ndarray], harmonics: np.ndarray) -> np.ndarray:
    """Signed distance (B, H, W) to the cell's outline, µm: a circle with a second and third harmonic."""
    away = np.sqrt(x * x + y * y) + 1e-3
    c, s = x / away, y / away
    c2, s2 = c * c - s * s, 2 * c * s
    c3, s3 = c2 * c - s2 * s, c2 * s + s2 * c
    wave = c2 * _column(harmonics[:, 0]) + s2 * _column(harmonics[:, 1])
    wave += c3 * _column(harmonics[:, 2]) + s3 * _column(harmonics[:, 3])
    wave *= _column(0.02 + 0.16 * value["irregular_outline"])
    return away - _column(value["cell_diameter_um"] / 2) * (1 + np.clip(wave, -0.35, 0.35))


def _nucleus(
    x: np.ndarray, y: np.ndarray, value: dict[str, np.ndarray], place: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signed distance (B, H, W) to the nucleus' outline and coordinates along and across it, µm.

    A nucleus is a thick circular arc. Its length makes it round, kidney-shaped or a band, and a thickness that waves
    along the arc makes lobes on thin bridges; length and thickness keep the area.
    """
    stretch, pinch = value["nuclear_stretch"], value["constriction"]
    lobes = np.clip(np.round(value["lobes"]), 1, 5)
    radius = value["cell_diameter_um"] / 2
    half = radius * np.sqrt(value["nuclear_share"] * np.pi / (np.pi + 2 * stretch * (1 - 0.55 * pinch)))
    opening = np.minimum(place[:, 3], 1.4 * stretch) / 2  # half the angle of the arc
    arc = stretch * half / (2 * opening)
    middle = arc * np.sin(opening) / opening  # of the arc's mass, seen from its centre
    reach = half + np.maximum(arc * np.sin(np.minimum(opening, np.pi / 2)), arc - middle)
    room = np.maximum(radius - reach, 0.05 * radius)
    cos, sin = _column(np.cos(place[:, 2])), _column(np.sin(place[:, 2]))
    dx, dy = x - _column(place[:, 0] * room), y - _column(place[:, 1] * room)
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    along = u + _column(middle)
    angle = np.clip(np.arctan2(v, along), -_column(opening), _column(opening))
    away = np.sqrt((along - _column(arc) * np.cos(angle)) ** 2 + (v - _column(arc) * np.sin(angle)) ** 2)
    wave = 0.5 - 0.5 * np.cos((angle / _column(opening) + 1) * _column(np.pi * (lobes - 1)))
    return away - _column(half) * (1 - _column(pinch) * wave), u, v


def _chromatin(
    x: np.ndarray, y: np.ndarray, value: dict[str, np.ndarray], scene: _Scene, pixel: float
) -> list[np.ndarray]:
    """Optical density of the nucleus, three planes (B, H, W): darker and with stronger clumps when condensed."""
    noise = _noise(x, y, value["clump_um"], scene.texture[:, 0], scene.blur, pixel)
    noise *= _column(0.12 + 0.16 * value["condensation"])
    noise += 1
    condensed = value["condensation"]
    return [
        noise
        * _column((_FINE_CHROMATIN[c] + (_DENSE_CHROMATIN[c] - _FINE_CHROMATIN[c]) * condensed).astype(np.float32))
        for c in range(3)
    ]


class _Granule(NamedTuple):
    parameter: str
    colour: np.ndarray
    pitch: float  # µm
    radius: float  # µm
    over_nucleus: float  # strength where they lie on the nucleus
    texture: int


_GRANULES = (
    _Granule("vacuoles", np.array([0.05, 0.09, 0.12]), 1.8, 0.60, 0.0, 1),
    _Granule("azurophilic_granules", _AZUROPHILIC, 0.9, 0.32, 0.5, 2),
    _Granule("eosinophilic_granules", _EOSINOPHILIC, 1.0, 0.50, 0.0, 3),
    _Granule("basophilic_granules", _BASOPHILIC, 1.3, 0.55, 1.0, 4),
)


def _paint_granules(
    density: list[np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    value: dict[str, np.ndarray],
    scene: _Scene,
    cytoplasm: np.ndarray,
    soft: np.ndarray,
    *,
    before_nucleus: bool,
) -> None:
    """Lays granules over the cytoplasm, or those that cover the nucleus as well over both, in place."""
    for granule in _GRANULES:
        strength = 1.0 if before_nucleus else granule.over_nucleus
        share = value[granule.parameter]
        rows = np.flatnonzero(share > 0.01)
        if strength == 0 or len(rows) == 0:
            continue
        cover = _granules(
            x[rows],
            y[rows],
            share[rows],
            granule.pitch,
            granule.radius,
            scene.texture[rows, granule.texture],
            soft[rows],
        )
        cover *= cytoplasm[rows]
        cover *= np.float32(strength)
        for channel in range(3):
            density[channel][rows] += cover * (np.float32(granule.colour[channel]) - density[channel][rows])


# --- simple features ---------------------------------------------------------------------------------------------

FEATURES = (
    "mean_red",
    "mean_green",
    "mean_blue",
    "sd_red",
    "sd_green",
    "sd_blue",
    "nuclear_area",
    "nuclear_red",
    "nuclear_blue",
    "middle_saturation",
)


def simple_features(images: np.ndarray) -> np.ndarray:
    """Ten colour and size features (N, 10) of patches (N, size, size, 3), the ones one would try first.

    Means and standard deviations of the channels over the patch; share of the patch that is dark in green (nuclei)
    with its mean red and blue; mean saturation of the middle half. Colours are shares of 255.
    """
    image = np.asarray(images, dtype=np.float32) / 255
    dark = image[..., 1] < 0.42
    area = dark.mean((1, 2))
    pixels = np.maximum(dark.sum((1, 2)), 1)
    quarter = image.shape[1] // 4
    middle = image[:, quarter:-quarter, quarter:-quarter]
    saturation = (middle.max(-1) - middle.min(-1)).mean((1, 2))
    dark_red, dark_blue = ((image[..., c] * dark).sum((1, 2)) / pixels for c in (0, 2))
    return np.column_stack([image.mean((1, 2)), image.std((1, 2)), area, dark_red, dark_blue, saturation])
