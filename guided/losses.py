"""The losses: pure functions of an embedding p (B, n), and the objects the training loop drives.

`LOSSES` maps the name of a loss to its object. An object owns what its loss needs (here the guide in n dimensions) and
may learn from the epoch's training embedding; the loop knows nothing special of any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from guided.config import Guide2D, GuideUMAP, Norm
from guided.inverse_umap import agreement, low_pass, pad_guide, refresh_guide


def guide_loss(
    p: Tensor,
    target: Tensor,
    distance: Literal["l1", "l2", "squared"] = "l1",
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """Mean over the batch of the distance between the first m components of p (B, n) and target (B, m), m <= n.

    guide2D (3.1) has m = 2, guideUMAP (3.2) has m = n. `l1` sums |p - e| over the components, `squared` sums the
    squares, `l2` is the root of that sum; `mean` divides the sum over components by m (before the root).
    Raises ValueError where m > n or the batch sizes differ.
    """
    if target.shape[0] != p.shape[0] or target.shape[1] > p.shape[1]:
        raise ValueError(f"target {tuple(target.shape)} does not fit the embedding {tuple(p.shape)}")
    difference = p[:, : target.shape[1]] - target
    powered = difference.abs() if distance == "l1" else difference.square()
    summed = powered.sum(1) if reduction == "sum" else powered.mean(1)
    if distance == "l2":
        # The root has no slope at 0; a point exactly on its target must not produce NaN gradients.
        summed = summed.clamp_min(torch.finfo(summed.dtype).tiny).sqrt()
    return summed.mean()


def norm_penalty(p: Tensor, kind: Literal["l2", "squared", "l1"] = "l2") -> Tensor:
    """Mean over the batch of ‖p‖₂ (4.1.2, "minimizes the norm of the embedding vector"), of its square, or of ‖p‖₁."""
    if kind == "l1":
        return p.abs().sum(1).mean()
    squared = p.square().sum(1)
    if kind == "squared":
        return squared.mean()
    return squared.clamp_min(torch.finfo(p.dtype).tiny).sqrt().mean()


class LossObject(Protocol):
    """What the training loop asks of a loss."""

    needs_refresh: bool  # whether `refresh` wants the training embedding of the epoch

    def __call__(self, p: Tensor, labels: Tensor) -> Tensor:
        """The loss of one batch: p (B, n), labels (B,)."""
        ...

    def refresh(self, embedding: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, float]:
        """Learn from the training embedding (N, n) at the end of an epoch; returns what is worth recording."""
        ...

    def points(self, length: int) -> np.ndarray:
        """The guide (C, length) the embedding is drawn to now."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on from here."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        ...


class Guide2DLoss:
    """guide2D: the first two components against the drawn guide (C, 2); nothing changes while training."""

    needs_refresh = False

    def __init__(self, config: Guide2D, guide: np.ndarray, device: torch.device) -> None:
        self._config = config
        self._guide = guide
        self._target = torch.as_tensor(guide, dtype=torch.float32, device=device)

    def __call__(self, p: Tensor, labels: Tensor) -> Tensor:
        return guide_loss(p, self._target[labels], self._config.distance, self._config.reduction)

    def refresh(self, embedding: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, float]:
        return {}

    def points(self, length: int) -> np.ndarray:
        return pad_guide(self._guide, length)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


class GuideUMAPLoss:
    """guideUMAP: the whole embedding against e_nD, which starts as the zero-padded guide and is refreshed by eq. 1."""

    needs_refresh = True

    def __init__(self, config: GuideUMAP, guide: np.ndarray, device: torch.device) -> None:
        self._config = config
        self._guide = guide
        self._device = device
        self._set(np.asarray(guide, dtype=np.float32))

    def _set(self, points: np.ndarray) -> None:
        self._points = points
        self._target = torch.as_tensor(points, dtype=torch.float32, device=self._device)

    def __call__(self, p: Tensor, labels: Tensor) -> Tensor:
        if self._target.shape[1] < p.shape[1]:  # the embedding has grown since the last refresh
            self._set(pad_guide(self._points, p.shape[1]))
        return guide_loss(p, self._target[labels], self._config.distance, self._config.reduction)

    def refresh(self, embedding: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, float]:
        """Eq. 1. `guide/shift` is the mean L1 distance a class's target moved. `guide/agreement` is the share of the
        classes that UMAP's inverse puts nearest their own mean, `guide/agreement_filtered` that of the guide in use.
        """
        fresh = refresh_guide(embedding, labels, self._guide, self._config, seed=seed)
        before = pad_guide(self._points, embedding.shape[1])
        after = low_pass(before, fresh.target, self._config.lowpass).astype(np.float32)
        self._set(after)
        return {
            "guide/shift": float(np.abs(after - before).sum(1).mean()),
            "guide/outside_hull": float(fresh.outside_hull),
            "guide/agreement": fresh.agreement,
            "guide/agreement_filtered": agreement(after, embedding, labels),
        }

    def points(self, length: int) -> np.ndarray:
        return pad_guide(self._points, length)

    def state(self) -> dict[str, Any]:
        return {"points": torch.from_numpy(self._points)}

    def restore(self, state: dict[str, Any]) -> None:
        self._set(state["points"].numpy())


LOSSES: dict[str, Callable[[Any, np.ndarray, torch.device], LossObject]] = {
    "guide2d": Guide2DLoss,
    "guide_umap": GuideUMAPLoss,
}


def penalty(p: Tensor, config: Norm) -> Tensor:
    """weight · norm term, over the grown embedding."""
    return config.weight * norm_penalty(p, config.kind)
