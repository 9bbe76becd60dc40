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
METHOD_VERSION = 1

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]

Frame = Literal["raw", "rescaled", "similarity", "affine", "centroid"]
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
    frame: Frame = "rescaled"  # where the inverse is asked: the paper says "to e2D", UMAP lives in another frame
    n_neighbors: Annotated[int, Field(ge=2)] = 15
    min_dist: Share = 0.1
    target_weight: Share = 0.5  # of the labels in supervised UMAP
    fit_epochs: Count = 50  # gradient epochs of a refresh; the fit starts from the guide
    inverse_neighbors: Count = 64  # cap on the training cells that place one inverse point
    engine: Literal["fast", "reference"] = "fast"  # reference: umap-learn's own fit and inverse_transform


Loss = Annotated[Guide2D | GuideUMAP, Field(discriminator="name")]


class Norm(Strict):
    """Norm term (4.1.2): weight · mean ‖p‖ is added to the loss."""

    weight: NonNegative = 0.001
    kind: Literal["l2", "squared", "l1"] = "l2"


class GuidePoints(Strict):
    """Which embedding guide, and how large it is drawn.

    `file` is the name of a shipped guide, a path, or `auto`: the shipped guide that has a point for every class.
    The unit matters (norm term, UMAP's fixed steps): points are scaled so that the farthest lies at `radius`.
    """

    file: str = "auto"
    radius: Positive = 5.0


class Embedding(Strict):
    """Length of the embedding and how it is reached (3.3)."""

    length: Annotated[int, Field(ge=2)] = 64
    warmup: bool = True  # epochs 0-2: n = 2 and guide2D, whatever the method
    growing: bool = True
    # `auto` reaches the length at 60 % of the epoch budget; the paper has 1, and 4 for 1024 (4.1)
    factor: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    # paper: "the first three epochs use guide2D" holds for every factor; literal: min(max(factor · epoch, 2), n_max)
    rule: Literal["paper", "literal"] = "paper"


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
    balance: Literal["none", "sampler"] = "none"  # sampler: every class equally often; beyond the paper


class Augment(Strict):
    """Random changes of the training images; the paper gives none."""

    flips: bool = True
    rotation: bool = True  # any angle
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
        """Twelve hex digits of the content; two variants that differ in nothing share it."""
        return content_id({"schema": SCHEMA_VERSION, **self.model_dump(mode="json")})


class Data(Strict):
    """Where the cells come from and how they become squares of `size` pixels.

    `source` is `synthetic`, a MedMNIST file (.npz) or a manifest (.csv) with the columns path and label (an image a
    cell) or image, x, y and label (centres in px of larger images, id if they have names). One scale holds for the
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
