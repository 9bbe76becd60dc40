"""The model that is used on new cells: network, classifier, guide, and what is known of its mistakes, in one file.

The file is a NumPy archive of plain arrays beside a JSON text, so reading one runs no code that came with it. Every
confidence and every "unlike anything seen" rests on cells that the network of their fold run had not trained on.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import pdist
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from guided.backbone import TRUNKS, EmbeddingNet, restored
from guided.classify import Scaled, from_arrays, portable, to_arrays
from guided.config import content_id
from guided.geometry import class_means, lineage_paths, squared_distances
from guided.guide import EmbeddingGuide
from guided.metrics import calibration_error, confidences, fit_temperature
from guided.train import Fitted

FORMAT = "guided-model"
VERSION = 1
FALSE_ALARMS = 0.05  # share of held-out cells that would be called unlike anything seen
QUANTILES = 1001  # of the held-out distances that a model keeps


class HeldOut(NamedTuple):
    """The test cells of one fold run, seen by the network and classifier that had not trained on them."""

    embedding: np.ndarray  # (N, n)
    labels: np.ndarray  # (N,)
    predicted: np.ndarray  # (N,)
    anchors: np.ndarray  # (C, n) class means of that network's training cells; NaN for a class without any


@dataclass(frozen=True)
class Calibration:
    """What held-out cells say of confidence and distance, in units of `unit` and so for any network of the variant."""

    temperature: float  # of squared distances
    slope: float  # from the log-odds of the class's share to those of being right
    offset: float
    distances: np.ndarray  # (Q,) quantiles 0..1 of the distance to the nearest anchor, ascending
    cells: int
    error: float  # expected calibration error of each fold's cells, calibrated on the other folds

    def confidence(self, squared: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Probability (N,) that the classes `predicted` (N,) are right, from squared distances (N, C) in units²."""
        return expit(self.offset + self.slope * _log_odds(squared, self.temperature, predicted))

    def threshold(self, false_alarms: float) -> float:
        """Distance that the share `false_alarms` of the held-out cells exceeds. Raises ValueError for a share that so
        few cells cannot tell: fewer than one of them would exceed it."""
        if not 1 / self.cells <= false_alarms < 1:
            raise ValueError(
                f"a false-alarm rate of {false_alarms:g} is asked for; {self.cells} held-out cells can tell rates "
                f"from {1 / self.cells:.2g} to below 1"
            )
        return float(np.interp(1 - false_alarms, np.linspace(0, 1, len(self.distances)), self.distances))


def unit(anchors: np.ndarray) -> float:
    """Root mean square distance between the class means (C, n): the length in which distances are told, as in
    `guided.geometry.class_spread`. Raises ValueError where fewer than two classes have one or all coincide."""
    known = anchors[~np.isnan(anchors).any(1)].astype(np.float64)
    size = float(np.sqrt(np.mean(pdist(known, "sqeuclidean")))) if len(known) > 1 else 0.0
    if size == 0:
        raise ValueError("the class means coincide: the embedding has no scale")
    return size


def _relative(embedding: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Squared distances (N, C) to the anchors in squared units; inf for an anchor of NaN."""
    return squared_distances(embedding.astype(np.float64), anchors.astype(np.float64)) / unit(anchors) ** 2


def calibrate(folds: Sequence[HeldOut]) -> Calibration:
    """What the held-out cells of all fold runs of a variant say of confidence and distance.

    Two steps, both on the cells of all folds together: the temperature of `guided.metrics.fit_temperature`, then Platt
    scaling (Platt 1999) from the share of the predicted class to how often it is right. The temperature alone is far
    too careful: the classifier is more than the nearest class mean (NOTES.md). Folds have embeddings of their own, so
    their distances meet in units of each one's scale. Raises ValueError for fewer than two folds: the error is that of
    cells whose fold had no part in the calibration.
    """
    if len(folds) < 2:
        raise ValueError(f"held-out cells of {len(folds)} fold run(s); a calibration needs those of two or more")
    squared = [_relative(fold.embedding, fold.anchors) for fold in folds]
    confidence = []
    for left_out, fold in enumerate(folds):
        others = [index for index in range(len(folds)) if index != left_out]
        fitted = _calibrated([folds[i] for i in others], [squared[i] for i in others], error=np.nan)
        confidence.append(fitted.confidence(squared[left_out], fold.predicted))
    right = np.concatenate([fold.labels == fold.predicted for fold in folds])
    return _calibrated(folds, squared, error=calibration_error(np.concatenate(confidence), right))


def _calibrated(folds: Sequence[HeldOut], squared: Sequence[np.ndarray], error: float) -> Calibration:
    together = np.concatenate(squared)
    labels = np.concatenate([fold.labels for fold in folds])
    predicted = np.concatenate([fold.predicted for fold in folds])
    temperature = fit_temperature(together, labels)
    slope, offset = _platt(_log_odds(together, temperature, predicted), labels == predicted)
    nearest = np.sqrt(together.min(1))
    distances = np.quantile(nearest, np.linspace(0, 1, QUANTILES))
    return Calibration(temperature, slope, offset, distances, len(nearest), error)


def _log_odds(squared: np.ndarray, temperature: float, predicted: np.ndarray) -> np.ndarray:
    """Log-odds (N,) of the share of the predicted class; shares of 0 and 1 stay finite."""
    return logit(np.clip(confidences(squared, temperature, predicted), 1e-9, 1 - 1e-9))


def _platt(odds: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the logistic regression of `right` (N,) on `odds` (N,), with Platt's targets just inside 0
    and 1: they keep it finite where every cell is right."""
    hits, misses = np.count_nonzero(right), np.count_nonzero(~right)
    target = np.where(right, (hits + 1) / (hits + 2), 1 / (misses + 2))
    fitted = LogisticRegression(C=np.inf, max_iter=1000).fit(
        np.tile(odds, 2)[:, None], np.repeat([True, False], len(odds)), np.concatenate([target, 1 - target])
    )
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


def map_to_guide(embedding: np.ndarray, labels: np.ndarray, points: np.ndarray, *, on_drawing: bool) -> np.ndarray:
    """Affine map (n + 1, 2), its last row the shift, from an embedding (N, n) to the plane of the points (C, 2).

    With `on_drawing` the network was drawn there itself, and the first two components are the position. Else the map
    that brings the cells nearest to the points of their classes (least squares, every class with the same weight, and
    a ridge of a thousandth of the mean variance, so that directions without cells stay at zero).
    """
    n = embedding.shape[1]
    if on_drawing:
        return np.vstack([np.eye(n, 2), np.zeros((1, 2))])
    counts = np.bincount(labels, minlength=len(points))
    weight = 1.0 / (counts[labels] * np.count_nonzero(counts))
    x, y = embedding.astype(np.float64), points[labels]
    centre, target = weight @ x, weight @ y
    scatter = (x - centre).T @ ((x - centre) * weight[:, None])
    ridge = 1e-3 * np.trace(scatter) / n
    slopes = np.linalg.solve(scatter + ridge * np.eye(n), (x - centre).T @ ((y - target) * weight[:, None]))
    return np.vstack([slopes, target - centre @ slopes])


class PixelNet(nn.Module):
    """The network from pixels on, for those who load it by itself: (B, size, size, 3) in 0-255 to (B, n)."""

    mean: Tensor  # (1, 3, 1, 1)
    sd: Tensor

    def __init__(self, net: EmbeddingNet, mean: np.ndarray, sd: np.ndarray) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).reshape(1, 3, 1, 1))
        self.register_buffer("sd", torch.as_tensor(sd, dtype=torch.float32).reshape(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        images = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.sd
        embedding: Tensor = self.net(images, self.net.head.out_features)
        return embedding


@dataclass(frozen=True)
class GuidedModel:
    """A variant trained on all cells. `about` says where it comes from; nothing is computed from it."""

    net: PixelNet
    trunk: str
    size: int  # px of the squares it sees
    field: float  # source px that become `size` px
    guide: EmbeddingGuide  # in the order of the classes
    classifier: Scaled
    anchors: np.ndarray  # (C, n) float64, class means of its training cells
    to_guide: np.ndarray  # (n + 1, 2), see map_to_guide
    calibration: Calibration
    about: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.guide.classes

    @torch.no_grad()
    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Embedding (B, n) float32 of squares uint8 (B, size, size, 3)."""
        if pixels.ndim != 4 or pixels.shape[1:] != (self.size, self.size, 3) or pixels.dtype != np.uint8:
            raise ValueError(
                f"pixels of shape {pixels.shape} and type {pixels.dtype}; "
                f"this model takes uint8 (B, {self.size}, {self.size}, 3)"
            )
        device = next(self.net.parameters()).device
        given = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))  # copies what is only mapped
        embedded: np.ndarray = self.net(given.to(device)).cpu().numpy()
        return embedded

    def predict(self, embedding: np.ndarray, *, false_alarms: float = FALSE_ALARMS) -> pd.DataFrame:
        """One row for each row of an embedding (N, n):

        class, and score: that of the classifier, comparable within the cell only; confidence: probability that the
        class is right, calibrated on held-out cells and so meant for cells like those; x, y: position in the guide's
        drawing; lineage of the class; maturity: stages along the line through the class means of that lineage,
        continuous between two stages and at most half a step beyond its ends (NaN for a lineage of one stage);
        distance to the nearest class mean in units of the distance between classes; unlike: whether it is beyond that
        of all but `false_alarms` of the held-out cells.
        """
        scores = self.classifier.scores(embedding)
        predicted = scores.argmax(1)
        squared = _relative(embedding, self.anchors)
        distance = np.sqrt(squared.min(1))
        place = embedding @ self.to_guide[:-1] + self.to_guide[-1]
        lineage = np.array(self.guide.lineages)[predicted]
        maturity = np.full(len(embedding), np.nan)
        for name, path in lineage_paths(self.anchors, self.guide.lineages, self.guide.stages).items():
            rows = lineage == name
            # The line goes on beyond its ends, where nothing was seen: a class reaches half way to a next one.
            first, last = path.stages[0], path.stages[-1]
            lowest, highest = first - (path.stages[1] - first) / 2, last + (last - path.stages[-2]) / 2
            maturity[rows] = np.clip(path.maturity(embedding[rows]), lowest, highest)
        return pd.DataFrame(
            {
                "class": np.array(self.classes)[predicted],
                "score": scores[np.arange(len(scores)), predicted],
                "confidence": self.calibration.confidence(squared, predicted),
                "x": place[:, 0],
                "y": place[:, 1],
                "lineage": lineage,
                "maturity": maturity,
                "distance": distance,
                "unlike": distance > self.calibration.threshold(false_alarms),
            }
        )


def make_model(
    fitted: Fitted,
    labels: np.ndarray,
    guide: EmbeddingGuide,
    classifier: Scaled,
    calibration: Calibration,
    *,
    trunk: str,
    size: int,
    field: float,
    about: Mapping[str, Any],
) -> GuidedModel:
    """The model of a network trained on cells with `labels` (N,), with the classifier chosen on their embedding."""
    classes = len(guide.classes)
    return GuidedModel(
        net=PixelNet(fitted.net, fitted.pixel_mean, fitted.pixel_sd).eval(),
        trunk=trunk,
        size=size,
        field=field,
        guide=guide,
        classifier=portable(classifier),
        anchors=class_means(fitted.embedding, labels, classes),
        to_guide=map_to_guide(fitted.embedding, labels, guide.points, on_drawing=fitted.on_drawing),
        calibration=calibration,
        about=about,
    )


# --- the file -------------------------------------------------------------------------------------------------------


def save_model(model: GuidedModel, path: Path) -> str:
    """Write the file, whole or not at all; returns its digest (16 hex digits of everything in it)."""
    guide, calibration = model.guide, model.calibration
    told = {
        "format": FORMAT,
        "version": VERSION,
        "trunk": model.trunk,
        "size": model.size,
        "field": model.field,
        "guide": {
            "name": guide.name,
            "classes": list(guide.classes),
            "lineages": list(guide.lineages),
            "stages": [float(stage) for stage in guide.stages],
        },
        "calibration": {
            "temperature": calibration.temperature,
            "slope": calibration.slope,
            "offset": calibration.offset,
            "cells": calibration.cells,
            "error": calibration.error,
        },
        "about": dict(model.about),
    }
    arrays = {f"net/{key}": value.cpu().numpy() for key, value in model.net.net.state_dict().items()}
    arrays |= {f"classifier/{key}": value for key, value in to_arrays(model.classifier).items()}
    arrays |= {
        "pixel_mean": model.net.mean.cpu().numpy().reshape(3),
        "pixel_sd": model.net.sd.cpu().numpy().reshape(3),
        "guide_points": guide.points,
        "anchors": model.anchors,
        "to_guide": model.to_guide,
        "distances": calibration.distances,
        "told": np.array(json.dumps(told, allow_nan=False, ensure_ascii=False, sort_keys=True)),
    }
    digest = _digest(arrays)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays, digest=np.array(digest))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(buffer.getvalue())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return digest[:16]


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """64 hex digits of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = arrays[name]
        digest.update(content_id([name, value.dtype.str, list(value.shape)], 64).encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def load_model(path: Path, device: str = "cpu") -> GuidedModel:
    """Read a model file. Raises ValueError naming the file for one that is missing, damaged, altered, of another kind
    or of a newer version; whatever it holds, none of it is run."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        digest = str(arrays.pop("digest"))
    except FileNotFoundError:
        raise ValueError(f"no model file {path}; `sweeps refit SWEEP VARIANT --export {path}` writes one") from None
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error):
        raise ValueError(f"{path} is no model file, or damaged; `sweeps refit … --export FILE` writes one") from None
    if _digest(arrays) != digest:
        raise ValueError(f"the model file {path} has been altered: its content is not that of its digest")
    try:
        told = json.loads(str(arrays["told"]))
        if told["format"] != FORMAT:
            raise ValueError(f"it is a {told['format']!r}")
        if told["version"] != VERSION:
            raise ValueError(f"it has version {told['version']}; this package reads version {VERSION}")
        if told["trunk"] not in TRUNKS:
            raise ValueError(f"it has the unknown trunk {told['trunk']!r}")
        return _from_file(told, arrays, device)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the model file {path} cannot be used: {error}") from None


def _from_file(told: dict[str, Any], arrays: dict[str, np.ndarray], device: str) -> GuidedModel:
    named = told["guide"]
    guide = EmbeddingGuide(
        named["name"],
        tuple(named["classes"]),
        arrays["guide_points"],
        tuple(named["lineages"]),
        tuple(float(stage) for stage in named["stages"]),
    )
    state = {name.removeprefix("net/"): torch.from_numpy(v) for name, v in arrays.items() if name.startswith("net/")}
    net = restored(told["trunk"], arrays["anchors"].shape[1], state)
    parts = {name.partition("/")[2]: v for name, v in arrays.items() if name.startswith("classifier/")}
    calibration = told["calibration"]
    return GuidedModel(
        net=PixelNet(net, arrays["pixel_mean"], arrays["pixel_sd"])
        .eval()
        .to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
        trunk=told["trunk"],
        size=int(told["size"]),
        field=float(told["field"]),
        guide=guide,
        classifier=from_arrays(parts, len(guide.classes)),
        anchors=arrays["anchors"],
        to_guide=arrays["to_guide"],
        calibration=Calibration(
            temperature=float(calibration["temperature"]),
            slope=float(calibration["slope"]),
            offset=float(calibration["offset"]),
            distances=arrays["distances"],
            cells=int(calibration["cells"]),
            error=float(calibration["error"]),
        ),
        about=told["about"],
    )
