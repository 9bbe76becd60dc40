"""The losses: pure functions of an embedding p (B, n), and the objects the training loop drives.

`LOSSES` maps the name of a loss to its class. An object owns what its loss needs (points, a head, class weights) and
may learn from the epoch's training embedding; the loop knows nothing special of any of them.

All functions return a mean over the batch. Where `weights` (B,) are given, cell i counts `weights[i]` times in it; the
sum is still divided by the number of terms. Weights whose mean over the training cells is 1 then leave the scale of the
loss, and where a loss has one term per cell, a batch is an unbiased sample of the weighted loss of all training cells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.miners import BatchHardMiner, TripletMarginMiner
from torch import Tensor, nn

from guided.config import CE, CTL, Distance, Guide2D, GuideUMAP, HierarchicalCE, Prototype, SupCon, Triplet
from guided.guide import EmbeddingGuide
from guided.inverse_umap import agreement, low_pass, pad_guide, refresh_guide
from guided.metrics import lineage_distances

# --- functions ------------------------------------------------------------------------------------------------------


def _mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of values (K,), weighted; 0 for K = 0, where an empty sum is 0 and a mean would be NaN."""
    weighted = values if weights is None else values * weights
    return weighted.mean() if len(weighted) else weighted.sum()


def _zero(p: Tensor) -> Tensor:
    """A zero that hangs on all of p: a batch without pairs keeps a gradient path, and a value that is not finite is
    never lost on the way, whatever a miner drops."""
    return (p * 0).sum()


def guide_loss(
    p: Tensor,
    target: Tensor,
    distance: Literal["l1", "l2", "squared"] = "l1",
    reduction: Literal["sum", "mean"] = "sum",
    weights: Tensor | None = None,
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
    return _mean(summed, weights)


def norm_penalty(p: Tensor, kind: Literal["l2", "squared", "l1"] = "l2") -> Tensor:
    """Mean over the batch of ‖p‖₂ (4.1.2, "minimizes the norm of the embedding vector"), of its square, or of ‖p‖₁."""
    if kind == "l1":
        return p.abs().sum(1).mean()
    squared = p.square().sum(1)
    if kind == "squared":
        return squared.mean()
    return squared.clamp_min(torch.finfo(p.dtype).tiny).sqrt().mean()


def distance_loss(
    p: Tensor,
    target: Tensor,
    distance: Literal["l1", "l2"] = "l1",
    difference: Literal["absolute", "squared"] = "absolute",
    form: Literal["plain", "relative", "scale_free"] = "plain",
    *,
    floor: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Eq. 2: mean over the pairs i > j of |d - D|, d between rows of p (B, n), D between rows of target (B, m).

    L1 is the sum over components: of a mean, d would shrink while n grows, and D would not.
    `squared` squares the difference. `relative` divides it by D, but by no less than `floor`: pairs of one class have
    D = 0. `scale_free` divides d and D by their means over the batch, so that only the layout counts, not its size; a
    batch of one class has no layout and gives 0. A batch of one has no pair: the sum is empty and the loss 0, with a
    zero gradient, so that such a batch changes nothing instead of ending the training with 0/0.
    A pair weighs the mean of its cells' weights. Raises ValueError where the batch sizes differ or `relative` has no
    floor above 0.
    """
    if len(target) != len(p):
        raise ValueError(f"target {tuple(target.shape)} does not fit the embedding {tuple(p.shape)}")
    if form == "relative" and floor <= 0:
        raise ValueError(f"the relative distance loss needs a floor above 0 for pairs with D = 0, got {floor}")
    if len(p) < 2:
        return _zero(p)
    order = 1.0 if distance == "l1" else 2.0
    d, wanted = F.pdist(p, order), F.pdist(target, order)
    if form == "relative":
        residual = (d - wanted) / wanted.clamp_min(floor)
    elif form == "scale_free":
        least = torch.finfo(p.dtype).eps  # all points equal: no division by 0
        unit = wanted.mean()
        residual = (d / d.mean().clamp_min(least) - wanted / unit.clamp_min(least)) * (unit > 0)
    else:
        residual = d - wanted
    values = residual.abs() if difference == "absolute" else residual.square()
    if weights is None:
        return values.mean()
    i, j = torch.triu_indices(len(p), len(p), offset=1, device=p.device)
    return _mean(values, (weights[i] + weights[j]) / 2)


class _Euclidean(LpDistance):
    # The library's own Euclidean distance goes through a matrix product for more than 25 rows: in float32 near points
    # are then off by a part in a thousand, and the mined neighbours are not the nearest.
    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return _pairwise(query_emb, ref_emb)


def _pairwise(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (A, B); the gradient at distance 0 is 0."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def mine_triplets(
    p: Tensor, labels: Tensor, mining: Literal["batch_hard", "semi_hard"] = "batch_hard", margin: float = 0.2
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (anchors, positives, negatives), each (T,), of a batch p (B, n) with labels (B,); Euclidean distances.

    batch_hard (Hermans et al. 2017): for each cell its farthest of the same class and its nearest of another, T <= B.
    semi_hard (Schroff et al. 2015): every triplet whose negative is farther than the positive, by at most the margin.
    Cells without a partner in the batch are no anchors. The miners are pytorch-metric-learning's. Mining waits for the
    device, because T is not known before.
    """
    euclidean = _Euclidean(normalize_embeddings=False)
    if mining == "batch_hard":
        return BatchHardMiner(distance=euclidean)(p, labels)
    return TripletMarginMiner(margin=margin, type_of_triplets="semihard", distance=euclidean)(p, labels)


def triplet_loss(
    p: Tensor,
    labels: Tensor,
    margin: float = 0.2,
    mining: Literal["batch_hard", "semi_hard"] = "batch_hard",
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean over the mined triplets of max(0, d(a, p) - d(a, n) + margin); p (B, n), labels (B,), Euclidean.

    0, with a gradient path, where the batch has no triplet (one cell, one class, no class twice). A triplet weighs
    what its anchor weighs. Only the miner is pytorch-metric-learning's: its TripletMarginLoss averages over violated
    triplets alone, drops those that are not a number and knows no weights. What is not finite in p makes the loss NaN.
    """
    anchors, positives, negatives = mine_triplets(p.detach(), labels, mining, margin)
    d = _pairwise(p, p)
    hinge = F.relu(d[anchors, positives] - d[anchors, negatives] + margin)
    return _mean(hinge, None if weights is None else weights[anchors]) + _zero(p)


def class_centre_triplet_loss(
    p: Tensor,
    labels: Tensor,
    margin: float = 0.2,
    anchor: Literal["centre", "cell"] = "centre",
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """Class-centre triplet loss (Lei et al. 2020), centres being the class means of the batch; p (B, n), labels (B,).

    `centre`: mean over the classes c of the batch of max(0, max d(m_c, x of c) - min d(m_c, x of another class) +
    margin). `cell`: mean over the cells x of class c of max(0, d(x, m_c) - min d(x, mean of another class) + margin).
    Euclidean; gradients flow through the means. 0 for a batch of one class. A term weighs what its anchor weighs, a
    centre as much as a cell of its class. pytorch-metric-learning has no such loss.
    """
    same = labels[:, None] == labels[None, :]
    counts = same.sum(1).to(p.dtype)
    # Row i is the mean of the class of cell i: classes repeat, but no shape depends on what the batch holds.
    d = _pairwise(same.to(p.dtype) @ p / counts[:, None], p)
    if anchor == "centre":
        positive = d.masked_fill(~same, -torch.inf).amax(1)
        negative = d.masked_fill(same, torch.inf).amin(1)
        share = 1 / counts  # all cells of a class have the same row
    else:
        positive, negative = d.diagonal(), d.masked_fill(same, torch.inf).amin(0)
        share = torch.ones_like(counts)
    values = F.relu(positive - negative + margin)  # one class: minus infinity, so 0
    values = values if weights is None else values * weights
    return (values * share).sum() / share.sum() + _zero(p)


def cross_entropy(logits: Tensor, targets: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Mean over the batch of -Σ_c t_c log softmax(logits)_c; logits (B, C), targets (B,) classes or (B, C) shares."""
    return _mean(F.cross_entropy(logits, targets, reduction="none"), weights) + _zero(logits)


def supervised_contrastive_loss(
    p: Tensor, labels: Tensor, temperature: float = 0.1, *, weights: Tensor | None = None
) -> Tensor:
    """L_out of Khosla et al. 2020 (eq. 2) on z = p / ‖p‖; p (B, n), labels (B,).

    Mean over the cells i with a partner of -1/|P(i)| Σ_{j in P(i)} log(exp(z_i·z_j / τ) / Σ_{a ≠ i} exp(z_i·z_a / τ)).
    0 where no cell has a partner. pytorch-metric-learning's SupConLoss agrees on ordinary batches, but gives 0 for a
    batch of one class, where the equation is defined, and leaves out cells whose loss is 0 or not a number.
    """
    if len(p) < 2:  # a sum over no other cell: its logarithm is minus infinity, its gradient not a number
        return _zero(p)
    z = F.normalize(p, dim=1)
    itself = torch.eye(len(p), dtype=torch.bool, device=p.device)
    partner = (labels[:, None] == labels[None, :]) & ~itself
    similarity = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    log_share = (similarity - similarity.logsumexp(1, keepdim=True)).masked_fill(~partner, 0.0)
    partners = partner.sum(1)
    values = -log_share.sum(1) / partners.clamp_min(1)
    values = values if weights is None else values * weights
    return values.sum() / (partners > 0).sum().clamp_min(1) + _zero(p)


def prototype_loss(
    p: Tensor,
    points: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    pull: float = 0.01,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """Distance-based cross-entropy and prototype loss of Yang et al. 2018; p (B, n), points (C, n), labels (B,).

    Mean over the batch of -log softmax_c(-‖p - m_c‖² / temperature)_y + pull · ‖p - m_y‖². The second term is the
    centre loss of Wen et al. 2016 but for its factor 1/2. pytorch-metric-learning's proxy losses have no such pull.
    """
    squared = _squared(p, points)
    own = squared.gather(1, labels[:, None])[:, 0]
    return cross_entropy(-squared / temperature, labels, weights=weights) + pull * _mean(own, weights)


def _squared(p: Tensor, points: Tensor) -> Tensor:
    """Squared distances (B, C)."""
    return (p[:, None, :] - points[None, :, :]).square().sum(2)


def soften(distances: np.ndarray, beta: float) -> np.ndarray:
    """Labels (C, C) softened over distances (C, C) between classes: row y is softmax(-beta · d(y, ·) / max d).

    Bertinetto et al. 2020, eq. 4, with any distance in place of their height of the common ancestor.
    """
    weight = np.exp(-beta * distances / distances.max())
    return weight / weight.sum(1, keepdims=True)


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Inverse frequency (C,) of each class among labels (N,), scaled to a mean of 1 over the cells; 0 for an absent
    class."""
    counts = np.bincount(labels, minlength=classes)
    present = counts > 0
    return np.where(present, len(labels) / (present.sum() * np.maximum(counts, 1)), 0.0)


# --- objects --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What a loss is built from besides its options."""

    guide: EmbeddingGuide
    length: int  # n_max
    device: torch.device
    generator: torch.Generator  # on the CPU; all random starts come from it
    weights: Tensor | None = None  # (C,) float32: what a cell of each class weighs; None: all alike


class LossObject(ABC):
    """What the training loop asks of a loss. Most losses only have to say what a batch costs."""

    needs_refresh = False  # whether `refresh` wants the training embedding of the epoch
    norm_weight = 0.001  # of the norm term beside this loss, where norm.weight is auto (4.1.2)

    def __init__(self, options: Any, setting: Setting) -> None:
        self._weights = setting.weights
        # Trained with the net. The rows of the sliced ones are components: those beyond the embedding's length have no
        # effect, no gradient and no decay.
        self.sliced: dict[str, nn.Parameter] = {}
        self.whole: dict[str, nn.Parameter] = {}

    @abstractmethod
    def __call__(self, p: Tensor, labels: Tensor) -> Tensor:
        """The loss of one batch: p (B, n), labels (B,)."""

    def _of_cells(self, labels: Tensor) -> Tensor | None:
        return None if self._weights is None else self._weights[labels]

    def refresh(self, embedding: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, float]:
        """Learn from the training embedding (N, n) at the end of an epoch; returns what is worth recording."""
        return {}

    def points(self, length: int) -> np.ndarray | None:
        """The points (C, length) the cells of each class are drawn to now; None for a loss that draws to none."""
        return None

    def predict(self, embedding: np.ndarray) -> np.ndarray | None:
        """Classes (N,) by the loss's own head for embedding (N, n); None for a loss without one."""
        return None

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold to go on from here: copies, on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in (self.sliced | self.whole).items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`."""
        for name, value in (self.sliced | self.whole).items():
            value.copy_(state[name])


class Guide2DLoss(LossObject):
    """guide2D: the first two components against the drawn guide (C, 2); nothing changes while training."""

    def __init__(self, options: Guide2D, setting: Setting) -> None:
        super().__init__(options, setting)
        self._options = options
        self._guide = setting.guide.points
        self._target = torch.as_tensor(self._guide, dtype=torch.float32, device=setting.device)

    def __call__(self, p: Tensor, labels: Tensor) -> Tensor:
        options = self._options
        return guide_loss(p, self._target[labels], options.distance, options.reduction, self._of_cells(labels))

    def points(self, length: int) -> np.ndarray:
        return pad_guide(self._guide, length)


class GuideUMAPLoss(LossObject):
    """guideUMAP: the whole embedding against e_nD, which starts as the zero-padded guide and is refreshed by eq. 1."""

    needs_refresh = True

    def __init__(self, options: GuideUMAP, setting: Setting) -> None:
        super().__init__(options, setting)
        self._options = options
        self._guide = setting.guide.points
        self._device = setting.device
        self._set(np.asarray(self._guide, dtype=np.float32))

    def _set(self, points: np.ndarray) -> None:
        self._points = points
        self._target = torch.as_tensor(points, dtype=torch.float32, device=self._device)

    def __call__(self, p: Tensor, labels: Tensor) -> Tensor:
        if self._target.shape[1] < p.shape[1]:  # the embedding has grown since the last refresh
            self._set(pad_guide(self._points, p.shape[1]))
        options = self._options
        return guide_loss(p, self._target[labels], options.distance, options.reduction, self._of_cells(labels))

    def refresh(self, embedding: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, float]:
        """Eq. 1. `guide/shift` is the mean L1 distance a class's target moved. `guide/agreement` is the share of the
        classes that UMAP's inverse puts nearest their own mean, `guide/agreement_filtered` that of the guide in use.
        """
        fresh = refresh_guide(embedding, labels, self._guide, self._options, seed=seed)
        before = pad_guide(self._points, embedding.shape[1])
        after = low_pass(before, fresh.target, self._options.lowpass).astype(np.float32)
        self._set(after)
        return {
            "guide/shift": float(np.abs(after - before).sum(1).mean()),
            "guide/outside_hull": float(fresh.outside_hull),
            "guide/agreement": fresh.agreement,
            "guide/agreement_filtered": agreement(after, embedding, labels),
        }

    def points(self, length: int) -> np.ndarray:
        return pad_guide(self._points, length)

    def state(self) -> dict[str, Tensor]:
        return {"points": torch.from_numpy(self._points)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._set(state["points"].numpy())


class DistanceLoss(LossObject):
    """Distance loss: the drawn guide gives distances, not places, so there are no points cells are drawn to."""

    def __init__(self, options: Distance, setting: Setting) -> None:
        super().__init__(options, setting)
        self._options = options
        self._target = torch.as_tensor(setting.guide.points, dtype=torch.float32, device=setting.device)
        # The nearest two classes: every pair of two classes is divided by its own D, a pair of one class by this.
        self._floor = float(F.pdist(self._target.cpu(), 1.0 if options.distance == "l1" else 2.0).min())

    def __call__(self, p: Tensor, labels: Tensor) -> Tensor:
        options = self._options
        return distance_loss(
            p,
            self._target[labels],
            options.distance,
            options.difference,
            options.form,
            floor=self._floor,
            weights=self._of_cells(labels),
        )


class TripletLoss(LossObject):
    """Triplet loss with mining inside the batch."""

    def __init__(self, options: Triplet, setting: Setting) -> None:
        super().__init__(options, setting)
        self._options = options

    def __call__(self, p: Tensor, labels: Tensor) -> Tensor:
        return triplet_loss(p, labels, self._options.margin, self._options.mining, weights=self._of_cells(labels))


class ClassCentreTripletLoss(LossObject):
    """Class-centre triplet loss; the centres are those of the batch, nothing is kept."""

    def __init__(self, options: CTL, setting: Setting) -> None:
        super().__init__(options, setting)
        self._options = options

    def __call__(self, p: Tensor, labels: Tensor) -> Tensor:
        return class_centre_triplet_loss(
            p, labels, self._options.margin, self._options.anchor, weights=self._of_cells(labels)
        )


class SupConLoss(LossObject):
    """Supervised contrastive loss on the embedding itself; there is no projection head to throw away."""

    def __init__(self, options: SupCon, setting: Setting) -> None:
        super().__init__(options, setting)
        self._temperature = options.temperature

    def __call__(self, p: Tensor, labels: Tensor) -> Tensor:
        return supervised_contrastive_loss(p, labels, self._temperature, weights=self._of_cells(labels))


class CrossEntropyLoss(LossObject):
    """Cross-entropy on a linear layer of the grown embedding: weight (n_max, C) of which n rows are in use, bias (C,).

    It starts as torch's linear layers do, uniform within ±1/√n_max. No norm term: the paper asks it of representation
    learning only.
    """

    norm_weight = 0.0

    def __init__(self, options: CE | HierarchicalCE, setting: Setting) -> None:
        super().__init__(options, setting)
        classes, bound = len(setting.guide.classes), setting.length**-0.5
        for kept, name, shape in (
            (self.sliced, "weight", (setting.length, classes)),
            (self.whole, "bias", (classes,)),
        ):
            start = torch.empty(shape).uniform_(-bound, bound, generator=setting.generator)
            kept[name] = nn.Parameter(start.to(setting.device))

    def _logits(self, p: Tensor) -> Tensor:
        return p @ self.sliced["weight"][: p.shape[1]] + self.whole["bias"]

    def _targets(self, labels: Tensor) -> Tensor:
        return labels

    def __call__(self, p: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(self._logits(p), self._targets(labels), weights=self._of_cells(labels))

    @torch.no_grad()
    def predict(self, embedding: np.ndarray) -> np.ndarray:
        p = torch.from_numpy(embedding).to(self.whole["bias"].device)
        return self._logits(p).argmax(1).cpu().numpy()


class HierarchicalCrossEntropyLoss(CrossEntropyLoss):
    """Cross-entropy against labels softened over the lineage tree or the drawn guide."""

    def __init__(self, options: HierarchicalCE, setting: Setting) -> None:
        super().__init__(options, setting)
        guide = setting.guide
        if options.over == "lineage":
            distances = lineage_distances(guide.lineages, guide.stages)
        else:
            distances = np.linalg.norm(guide.points[:, None] - guide.points[None, :], axis=2)
        self._soft = torch.as_tensor(soften(distances, options.beta), dtype=torch.float32, device=setting.device)

    def _targets(self, labels: Tensor) -> Tensor:
        return self._soft[labels]


class PrototypeLoss(LossObject):
    """Learned class points, prototypes (n_max, C) of which n rows are in use; they start as standard normal numbers.

    The head is the nearest point.
    """

    def __init__(self, options: Prototype, setting: Setting) -> None:
        super().__init__(options, setting)
        self._options = options
        start = torch.randn((setting.length, len(setting.guide.classes)), generator=setting.generator)
        self.sliced["prototypes"] = nn.Parameter(start.to(setting.device))

    def _points(self, length: int) -> Tensor:
        return self.sliced["prototypes"][:length].T

    def __call__(self, p: Tensor, labels: Tensor) -> Tensor:
        return prototype_loss(
            p,
            self._points(p.shape[1]),
            labels,
            self._options.temperature,
            self._options.pull,
            weights=self._of_cells(labels),
        )

    def points(self, length: int) -> np.ndarray:
        return self._points(length).detach().cpu().numpy()

    @torch.no_grad()
    def predict(self, embedding: np.ndarray) -> np.ndarray:
        points = self._points(embedding.shape[1])
        p = torch.from_numpy(embedding).to(points.device)
        return torch.cdist(p, points).argmin(1).cpu().numpy()


LOSSES: dict[str, Callable[[Any, Setting], LossObject]] = {
    "guide2d": Guide2DLoss,
    "guide_umap": GuideUMAPLoss,
    "distance": DistanceLoss,
    "triplet": TripletLoss,
    "ctl": ClassCentreTripletLoss,
    "ce": CrossEntropyLoss,
    "supcon": SupConLoss,
    "prototype": PrototypeLoss,
    "hierarchical_ce": HierarchicalCrossEntropyLoss,
}
