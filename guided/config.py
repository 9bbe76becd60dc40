"""The configuration of one variant: everything that may change the result of a fold run, and nothing else.

Where the paper can be read in several ways, each reading is a named option here and the comment names the sentence it
reads. Devices, threads and folders are not part of a variant: they belong to the place where it runs.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
# Bumped by hand whenever a change makes the same configuration give another result; golden values in the tests tell.
METHOD_VERSION = 5

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]

Frame = Literal["raw", "rescaled", "similarity", "affine", "centroid"]
Transform = Literal["none", "shuffled", "polygon", "random", "tree"]
Trunk = Literal[
    "densenet121", "densenet_small", "resnet10", "resnet18", "resnet50", "mobilenet_v3_small", "shufflenet_v2"
]


class Strict(BaseModel):
    """Immutable, no unknown keys, no infinities, no silent casts between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Guide2D(Strict):
    """Loss guide2D (3.1): the first two components are drawn to the guide, the norm term holds the others."""

    name: Literal["guide2d"] = "guide2d"
    distance: Literal["l1", "l2", "squared"] = "l1"  # 3.1 "e.g. L1"; section 5 names MSE as open
    reduction: Literal["sum", "mean"] = "sum"  # over components


class GuideUMAP(Strict):
    """Loss guideUMAP (3.2): the whole embedding is drawn to the guide lifted to n dimensions by inverse UMAP."""

    name: Literal["guide_umap"] = "guide_umap"
    distance: Literal["l1", "l2", "squared"] = "l1"
    reduction: Literal["sum", "mean"] = "sum"
    lowpass: Share = 0.6  # eq. 1: weight of the previous guide; 1 never leaves the padded guide, 0 has no memory
    # where the inverse is asked: the paper says "to e2D", but UMAP has moved to another frame; centroid has the best
    # validation scores on the synthetic marrow and on PBC (NOTES.md), the paper preset takes raw
    frame: Frame = "centroid"
    n_neighbors: Annotated[int, Field(ge=2)] = 15
    min_dist: Share = 0.1
    target_weight: Share = 0.5  # of the labels in supervised UMAP
    fit_epochs: Count = 50  # gradient epochs of a refresh; the fit starts from the guide
    inverse_neighbors: Count = 64  # cap on the training cells that place one inverse point
    engine: Literal["fast", "reference"] = "fast"  # reference: umap-learn's own fit and inverse_transform


class Distance(Strict):
    """Distance loss (3.4, eq. 2): distances between embeddings are drawn to the distances between the drawn points."""

    name: Literal["distance"] = "distance"
    distance: Literal["l1", "l2"] = "l1"  # of both pairs; eq. 2 has L1, section 5 names others as open
    difference: Literal["absolute", "squared"] = "absolute"  # between the two distances
    # plain: |d - D|; relative: |d - D| / D; scale_free: d and D are each divided by their mean over the batch
    form: Literal["plain", "relative", "scale_free"] = "plain"


class Triplet(Strict):
    """Triplet loss, Euclidean, not normalised, mined inside the batch (4.1: "triplet-based hard sample mining")."""

    name: Literal["triplet"] = "triplet"
    mining: Literal["batch_hard", "semi_hard"] = "batch_hard"
    margin: Positive = 0.2


class CTL(Strict):
    """Class-centre triplet loss (Lei et al. 2020), hardest samples inside the batch."""

    name: Literal["ctl"] = "ctl"
    margin: Positive = 0.2
    # centre: "the means of all representation vectors of a single class as anchor points" (section 2); cell: the cell
    # is the anchor, the class means are the positive and the negative, as the authors' later work words it
    anchor: Literal["centre", "cell"] = "centre"


class CE(Strict):
    """Cross-entropy on one more fully connected layer behind the embedding (4.1)."""

    name: Literal["ce"] = "ce"


class SupCon(Strict):
    """Supervised contrastive loss (Khosla et al. 2020, L_out) on the normalised embedding; beyond the paper."""

    name: Literal["supcon"] = "supcon"
    temperature: Positive = 0.1


class Prototype(Strict):
    """Learned class points (Yang et al. 2018): the guide's role without a drawing; beyond the paper."""

    name: Literal["prototype"] = "prototype"
    temperature: Positive = 1.0  # of the squared distances to the points
    pull: NonNegative = 0.01  # weight of the squared distance to the cell's own point (centre loss)


class HierarchicalCE(Strict):
    """Cross-entropy with labels softened over related classes (Bertinetto et al. 2020); beyond the paper."""

    name: Literal["hierarchical_ce"] = "hierarchical_ce"
    over: Literal["lineage", "guide"] = "lineage"  # steps along the lineage tree, or distance of the drawn points
    beta: NonNegative = 15.0  # 0: every class alike; infinity would be plain cross-entropy


Loss = Annotated[
    Guide2D | GuideUMAP | Distance | Triplet | CTL | CE | SupCon | Prototype | HierarchicalCE,
    Field(discriminator="name"),
]


class Norm(Strict):
    """Norm term (4.1.2): weight · mean ‖p‖ is added to the loss.

    `auto` is the paper's 0.001 for representation learning, the warm-up of every method included. Of cross-entropy the
    paper says nothing: there it is 0.
    """

    weight: Literal["auto"] | NonNegative = "auto"
    kind: Literal["l2", "squared", "l1"] = "l2"


class GuidePoints(Strict):
    """Which embedding guide, and how large it is drawn.

    `file` is the name of a shipped guide, a path, or `auto`: the shipped guide that has a point for every class.
    The unit matters (norm term, UMAP's fixed steps): points are scaled so that the farthest lies at `radius`.
    `transform` replaces the drawing by another one of the same classes and the same radius (guided.guide.transformed),
    to ask what the expert's drawing is worth (section 5 names other guides as open); `seed` belongs to `shuffled` and
    `random`.
    """

    file: str = "auto"
    radius: Positive = 5.0
    transform: Transform = "none"
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def idle(self) -> set[str]:
        """Options that mean nothing beside the others and stay out of the id."""
        return set() if self.transform in ("shuffled", "random") else {"seed"}


class Embedding(Strict):
    """Length of the embedding and how it is reached (3.3).

    `warmup` and `growing` are two switches: a warm-up trains guide2D in epochs 0-2 whatever the method, growing opens
    the components one after the other (guided.growth tells the four combinations). `factor` belongs to the rules paper
    and literal, which are one rule at factor 1; `step` to staged and plateau, `patience` to plateau.
    """

    length: Annotated[int, Field(ge=2)] = 64
    warmup: bool = True  # epochs 0-2: guide2D, whatever the method
    growing: bool = True
    # paper: "the first three epochs use guide2D" holds for every factor; literal: min(max(factor · epoch, 2), n_max);
    # beyond the paper (section 5, "other curricula") staged and plateau multiply the length: evenly over the epochs,
    # or whenever the validation score stalls
    rule: Literal["paper", "literal", "staged", "plateau"] = "paper"
    # components per epoch; `paper`: 1, and 4 from length 1024 on (4.1); `auto` reaches the length at 60 % of the budget
    factor: Literal["auto", "paper"] | Annotated[int, Field(ge=1)] = "auto"
    step: Annotated[int, Field(ge=2)] = 2  # the length is multiplied by it
    # epochs without a better score that make a stall; `auto`: a run that stalls whenever it can has its length at 60 %
    patience: Literal["auto"] | Count = "auto"

    @property
    def idle(self) -> set[str]:
        """Options that mean nothing beside the others and stay out of the id."""
        if self.length == 2:
            return {"growing", "rule", "factor", "step", "patience"}
        if not self.growing:
            return {"rule", "factor", "step", "patience"}
        if self.rule == "plateau":
            return {"factor"}
        if self.rule == "staged":
            return {"factor", "patience"}
        single = self.factor == 1 or (self.factor == "paper" and self.length < 1024)
        return {"step", "patience"} | ({"rule"} if single else set())


class Backbone(Strict):
    """Feature extractor (4.1: DenseNet-121). `weights`: none, torchvision, or the path of a state dict."""

    name: Trunk = "densenet121"
    weights: str = "none"


class Train(Strict):
    """Optimisation (4.1: Adam with default parameters, early stopping after 256 epochs without improvement)."""

    epochs: Count = 1000
    patience: Count = 256
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 0.0
    schedule: Literal["constant", "cosine"] = "constant"  # cosine: to zero over the epoch budget; beyond the paper
    # sampler: every class equally often; weights: each cell counts by the inverse frequency of its class; beyond the
    # paper, and the norm term stays unweighted
    balance: Literal["none", "sampler", "weights"] = "none"
    # tf32: factors rounded to 10 bits of mantissa, sums in fp32; without CUDA the same as fp32. bf16: the trunk under
    # autocast, 7 bits of mantissa; embedding head, loss and parameters stay fp32. Both change the result of a fold run.
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"


class Augment(Strict):
    """Random changes of the training images; the paper gives none."""

    flips: bool = True
    # any angle; quarter turns, which blur nothing: at few pixels the interpolation costs more than the angles bring
    rotation: Literal["any", "quarter", "none"] = "any"
    stain: Annotated[float, Field(ge=0, lt=1)] = 0.05  # sd of a gain per colour channel
    light: Annotated[float, Field(ge=0, lt=1)] = 0.1  # sd of a gain common to the channels


class Classifier(Strict):
    """The grid of 4.1: linear SVM over C, kNN over k and weights, MLP over its hidden layers."""

    families: Annotated[tuple[Literal["svm", "knn", "mlp"], ...], Field(min_length=1)] = ("svm", "knn", "mlp")
    svm_c: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.01, 0.1, 1.0, 10.0)
    knn_k: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 3, 5, 9, 15, 31)
    knn_weights: Annotated[tuple[Literal["uniform", "distance"], ...], Field(min_length=1)] = ("uniform", "distance")
    mlp_hidden: Annotated[tuple[tuple[Count, ...], ...], Field(min_length=1)] = ((64,), (128,), (64, 64))
    inner_folds: Annotated[int, Field(ge=2)] = 3
    # What comes after training sees only so many components, the first ones (section 5: embeddings of guide2D "can
    # simply be truncated"); epochs are scored on all of them. Left out where it says nothing: ids of before it stand.
    components: Literal["all"] | Annotated[int, Field(ge=1)] = Field(default="all", exclude_if=lambda c: c == "all")


class Validation(Strict):
    """How an epoch is scored: `grid` runs the whole grid of 4.1, the others are one cheap classifier."""

    classifier: Literal["centroid", "knn", "grid"] = "grid"


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    # Sorted: the order in which groups are named changes nothing, so it must not change the id.
    return tuple(sorted(set(names)))


class Folds(Strict):
    """Cross-validation (4.1): `auto` keeps regions together where they are known, else patients, else single cells."""

    count: Annotated[int, Field(ge=2)] = 5
    group: Literal["auto", "region", "patient", "none"] = "auto"
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.125
    validation_group: Literal["cell", "group"] = "cell"  # group: whole regions or patients validate; beyond the paper
    # Regions or patients that no fold touches; a winner is judged there. "patient=1" where "1" names a region as well.
    holdout: Annotated[tuple[str, ...], AfterValidator(_each_once)] = ()
    # holdout: one fold for each name of the hold-out, which is its test part; all other cells train and validate
    tested: Literal["folds", "holdout"] = "folds"

    @property
    def number(self) -> int:
        """How many folds a partition has."""
        return self.count if self.tested == "folds" else len(self.holdout)

    @property
    def idle(self) -> set[str]:
        """Options that mean nothing beside the others and stay out of the id."""
        return {"tested"} if self.tested == "folds" else {"count"}


class Config(Strict):
    """One variant."""

    loss: Loss = Field(default_factory=Guide2D)
    norm: Norm = Norm()
    guide: GuidePoints = GuidePoints()
    embedding: Embedding = Embedding()
    backbone: Backbone = Backbone()
    train: Train = Train()
    augment: Augment = Augment()
    classifier: Classifier = Classifier()
    validation: Validation = Validation()
    folds: Folds = Folds()

    @property
    def id(self) -> str:
        """Twelve hex digits of the content; two variants that differ in nothing, or in idle options only, share it."""
        whole = self.seen(self.embedding.length) == self.embedding.length
        idle = {
            "guide": self.guide.idle,
            "embedding": self.embedding.idle,
            "folds": self.folds.idle,
            "classifier": {"components"} if whole else set(),
        }
        told = self.model_dump(mode="json", exclude=idle)
        return content_id({"schema": SCHEMA_VERSION, **told})

    def seen(self, length: int) -> int:
        """How many components of an embedding of that length the classifier and all metrics see."""
        return length if self.classifier.components == "all" else min(self.classifier.components, length)


class Data(Strict):
    """Where the cells come from and how they become squares of `size` pixels.

    `source` is `synthetic`, a MedMNIST file (.npz), a folder per class, a parquet file of images and labels, or a
    manifest (.csv) with the columns path and label (an image a cell) or image, x, y and label (centres in px of larger
    images, id if they have names). One scale holds for the
    whole set: `field` source pixels become `size` pixels, then centre crop or padding; size is diagnostic, so nothing
    is stretched to fit. `field` None takes the median of the images' longer sides; with centres it must be given.
    """

    source: str = "synthetic"
    size: Annotated[int, Field(ge=16, le=1024)] = 244
    field: Positive | None = None
    where: str | None = None  # manifest rows to keep, e.g. "acquisition == 'A'"
    limit: Count | None = None  # at most so many cells per class, a seeded sample
    seed: int = 0  # of the sample and of the synthetic marrow
    cells: Count = 7020  # synthetic only
    skip_bad: bool = False  # go on without unreadable rows


def content_id(content: Any, digits: int = 12) -> str:
    """First hex digits of the SHA-256 of canonical JSON (sorted keys, no NaN)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
