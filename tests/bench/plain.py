"""One fold of guideUMAP written plainly, in one file, from the libraries as they are documented.

PIL and DataLoader for the images, umap-learn for the guide, GridSearchCV after every epoch: what a careful researcher
would write first. The benchmark runs it against `guided.train.run_fold` on the same cells; nothing of the package is
used here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import umap
from PIL import Image
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models
from torchvision.transforms import v2

Cell = tuple[torch.Tensor, int]


class Cells(Dataset[Cell]):
    """Image files, decoded each time they are asked for."""

    def __init__(self, paths: Sequence[Path], labels: np.ndarray, transform: v2.Compose) -> None:
        self._paths, self._labels, self._transform = paths, labels, transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> Cell:
        with Image.open(self._paths[row]) as image:
            return self._transform(image.convert("RGB")), int(self._labels[row])


def transforms(size: int, augment: bool) -> v2.Compose:
    """Bring to `size` px and normalise; with `augment`, flips, any rotation, stain and light before it."""
    changes = [
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(),
        v2.RandomRotation(180, interpolation=v2.InterpolationMode.BILINEAR),
        v2.ColorJitter(brightness=0.1, saturation=0.05),
    ]
    return v2.Compose(
        [
            v2.Resize(size),
            v2.CenterCrop(size),
            *(changes if augment else []),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.5,) * 3, (0.25,) * 3),
        ]
    )


def searches(families: Sequence[str], seed: int) -> dict[str, GridSearchCV]:
    """The grid of 4.1 by scikit-learn, one search per family."""
    grids = {
        "svm": (SVC(kernel="linear"), {"svc__C": [0.01, 0.1, 1.0, 10.0]}),
        "knn": (
            KNeighborsClassifier(),
            {
                "kneighborsclassifier__n_neighbors": [1, 3, 5, 9, 15, 31],
                "kneighborsclassifier__weights": ["uniform", "distance"],
            },
        ),
        "mlp": (
            MLPClassifier(max_iter=200, random_state=seed),
            {"mlpclassifier__hidden_layer_sizes": [(64,), (128,), (64, 64)]},
        ),
    }
    inner = StratifiedKFold(3, shuffle=True, random_state=seed)
    return {
        family: GridSearchCV(make_pipeline(StandardScaler(), model), grid, scoring="f1_macro", cv=inner)
        for family, (model, grid) in grids.items()
        if family in families
    }


def best_of(searched: dict[str, GridSearchCV], x: np.ndarray, y: np.ndarray) -> GridSearchCV:
    """Fit all searches; the one with the best inner score."""
    return max((search.fit(x, y) for search in searched.values()), key=lambda search: search.best_score_)


def lift(x: np.ndarray, y: np.ndarray, guide: np.ndarray, seed: int) -> np.ndarray:
    """The guide (C, 2) in the space of x (N, n): supervised UMAP from the guide, inverted there."""
    noise = np.random.default_rng(seed).normal(0, 1e-3, (len(y), 2))
    start = (guide[y] + noise).astype(np.float32)
    model = umap.UMAP(init=start, random_state=seed, n_jobs=1).fit(x, y=y)
    return model.inverse_transform(guide.astype(np.float32))


def plain_fold(
    paths: Sequence[Path],
    labels: np.ndarray,
    split: tuple[np.ndarray, np.ndarray, np.ndarray],
    guide: np.ndarray,
    *,
    size: int,
    epochs: int,
    length: int,
    batch: int,
    families: Sequence[str],
    seed: int,
) -> dict[str, float]:
    """Train on rows split[0], validate on split[1], test on split[2]; macro-F1 and CPU seconds by part."""
    torch.manual_seed(seed)
    train_rows, validation_rows, test_rows = split
    spent = dict.fromkeys(("train", "embed", "refresh", "validate"), 0.0)
    net = models.resnet18()
    net.fc = nn.Linear(512, length)
    optimizer = torch.optim.Adam(net.parameters())

    def cells(rows: np.ndarray, augment: bool) -> Cells:
        return Cells([paths[row] for row in rows], labels[rows], transforms(size, augment))

    loader = DataLoader(cells(train_rows, True), batch, shuffle=True, drop_last=True)

    def embedded(rows: np.ndarray, n: int) -> np.ndarray:
        net.eval()
        with torch.no_grad():
            return torch.cat([net(images)[:, :n] for images, _ in DataLoader(cells(rows, False), batch)]).numpy()

    target, best = guide.astype(np.float32), -1.0
    kept: dict[str, torch.Tensor] = {}
    step = -(-(length - 2) // max(round(0.6 * epochs) - 3, 1))  # the whole length at 60 % of the epochs
    for epoch in range(epochs):
        began = time.process_time()
        n = min(2 + step * max(epoch - 2, 0), length)
        target = np.pad(target, ((0, 0), (0, n - target.shape[1])))
        drawn = torch.from_numpy(target)
        net.train()
        for images, y in loader:
            p = net(images)[:, :n]
            loss = (p - drawn[y]).abs().sum(1).mean() + 0.001 * p.norm(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        trained = time.process_time()
        x, y_train = embedded(train_rows, n), labels[train_rows]
        asked = embedded(validation_rows, n)
        seen = time.process_time()
        found = best_of(searches(families, seed), x, y_train).predict(asked)
        f1 = f1_score(labels[validation_rows], found, average="macro")
        if f1 > best:
            best, best_n = f1, n
            kept = {name: value.clone() for name, value in net.state_dict().items()}
        validated = time.process_time()
        if epoch >= 2:
            target = (0.6 * target + 0.4 * lift(x, y_train, guide, seed)).astype(np.float32)
        refreshed = time.process_time()
        took = (trained - began, seen - trained, refreshed - validated, validated - seen)
        for part, seconds in zip(spent, took, strict=True):
            spent[part] += seconds
    net.load_state_dict(kept)
    chosen = best_of(searches(families, seed), embedded(train_rows, best_n), labels[train_rows])
    predicted = chosen.predict(embedded(test_rows, best_n))
    return {"f1": float(f1_score(labels[test_rows], predicted, average="macro")), **spent}
