"""The parts of a fold run and of a sweep, each beside its reference. Pure CPU, one thread, unless said otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from scipy import spatial
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch.utils.data import DataLoader

from guided import classify, train
from guided.augment import Images
from guided.backbone import EmbeddingNet, Optimizers
from guided.config import Augment, Backbone, Classifier, Config, Data, GuideUMAP
from guided.data import Dataset, load_dataset
from guided.folds import Fold, make_folds
from guided.guide import EmbeddingGuide, load_guide
from guided.inverse_umap import agreement, refresh_guide
from guided.losses import Guide2DLoss, GuideUMAPLoss
from guided.metrics import macro_f1
from guided.train import _Run, run_fold
from tests.bench import plain
from tests.bench.timing import Part, compare, of_pairs

DEVICE = torch.device("cpu")
SMALL = Augment(rotation="any")
LONGEST_WHOLE = 256  # components up to which libsvm goes through the whole grid


@dataclass(frozen=True)
class Scale:
    """How much work a benchmark is."""

    cells: int  # of the short training: data path, step, embedding pass, whole fold run
    size: int  # px
    embedded: int  # cells of the embeddings that are refreshed and classified
    lengths: tuple[int, ...]
    repeats: int
    epochs: int  # of the whole fold run
    protocol: int  # cells per class of five plain fold runs beside a sweep of them
    families: tuple[str, ...]  # of the grid in the plain fold run

    @classmethod
    def full(cls) -> Scale:
        return cls(1500, 48, 4914, (64, 256, 1024), 3, 4, 150, ("svm", "knn", "mlp"))

    @classmethod
    def quick(cls) -> Scale:
        return cls(330, 24, 200, (4,), 1, 4, 25, ("knn",))


@dataclass(frozen=True)
class Bench:
    """What the parts work on."""

    scale: Scale
    folder: Path
    source: str  # `synthetic`, or a manifest

    def data(self, cells: int, size: int) -> Dataset:
        """About `cells` cells of `size` px."""
        if self.source == "synthetic":
            return load_dataset(Data(size=size, cells=cells), self.folder, progress=False)
        found = load_dataset(Data(source=self.source, size=size), self.folder, progress=False)
        return self.limited(max(1, cells // len(found.classes)), size)

    def limited(self, limit: int, size: int) -> Dataset:
        """At most `limit` cells of a class; as many of the synthetic marrow as 13 such classes have."""
        if self.source == "synthetic":
            return self.data(13 * limit, size)
        return load_dataset(Data(source=self.source, size=size, limit=limit), self.folder, progress=False)

    def run(self, config: Config, data: Dataset) -> _Run:
        """A fold run that has not begun."""
        return _Run(data, make_folds(data, config.folds)[0], load_guide(config.guide, data.classes), config, 0, DEVICE)

    def config(self, **sections: Any) -> Config:
        """ResNet-18 and guideUMAP at 64 with the validation grid, but for `sections`."""
        values = {
            "loss": {"name": "guide_umap", "frame": "raw"},
            "embedding": {"length": 64},
            "backbone": {"name": "resnet18"},
            "train": {"epochs": self.scale.epochs, "batch_size": 64},
            "classifier": {"families": self.scale.families},
            **sections,
        }
        return Config.model_validate_json(json.dumps(values))

    def embedding(self, length: int) -> tuple[np.ndarray, np.ndarray, EmbeddingGuide]:
        """Training cells of a short training, embedded: (N, length), labels (N,), the guide."""
        data = self.data(round(self.scale.embedded / 0.7), 32)
        kept = self.folder / f"embedding-{length}.npz"
        if kept.exists():
            with np.load(kept) as found:
                return found["x"], found["y"], load_guide(self.config().guide, data.classes)
        config = self.config(
            embedding={"length": length, "warmup": False, "growing": False},
            backbone={"name": "densenet_small"},
            train={"epochs": 2, "batch_size": 32, "learning_rate": 0.003, "balance": "sampler"},
            augment={"rotation": "quarter"},
        )
        run = self.run(config, data)
        for epoch in range(2):
            run._train(epoch, length, run.loss)
        rows = run.fold.train
        x, y = run.embed(rows, length), data.labels[rows]
        np.savez(kept, x=x, y=y)
        return x, y, run.guide


def files_of(bench: Bench, data: Dataset) -> list[Path]:
    """The cells as files, for whoever reads files: those of the manifest, or PNG files of what was rendered."""
    if bench.source != "synthetic":
        return [Path(bench.source).parent / name for name in data.ids]
    folder = bench.folder / f"png-{data.fingerprint}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{row}.png" for row in range(len(data.images))]
    for path, image in zip(paths, data.images, strict=True):
        if not path.exists():
            Image.fromarray(np.asarray(image)).save(path)
    return paths


# --- one epoch ------------------------------------------------------------------------------------------------------


def data_path(bench: Bench) -> Iterator[Part]:
    """An epoch of augmented batches: files through PIL and DataLoader, and the memory-mapped bytes."""
    data = bench.data(bench.scale.cells, bench.scale.size)
    paths = files_of(bench, data)
    run, rng = bench.run(bench.config(), data), np.random.default_rng(0)
    rows = run.fold.train[: len(run.fold.train) // 64 * 64]
    cells = plain.Cells([paths[row] for row in rows], data.labels[rows], plain.transforms(bench.scale.size, True))

    def reference() -> None:
        for _ in DataLoader(cells, 64):
            pass

    def ours() -> None:
        for batch in rows.reshape(-1, 64):
            run.images.augmented(batch, SMALL, rng)

    yield compare("data path", reference, ours, n=len(rows), repeats=bench.scale.repeats)


def training_step(bench: Bench) -> Iterator[Part]:
    """Forward, backward and Adam on batches that are there already: torch as it comes (contiguous, its default Adam),
    and ours (channels last, fused Adam, head counted by rows)."""
    data = bench.data(bench.scale.cells, bench.scale.size)
    for trunk in ("resnet18", "densenet_small"):
        run = bench.run(bench.config(backbone={"name": trunk}), data)
        rows = run.fold.train[:192].reshape(-1, 64)
        batches = [(run.images.batch(part), run.labels[torch.from_numpy(part)]) for part in rows]
        contiguous = [(images.contiguous(), y) for images, y in batches]
        net = EmbeddingNet(Backbone(name=trunk), 64)
        net.train()
        run.net.train()
        adam = torch.optim.Adam(net.parameters())

        def reference(net: Any = net, adam: Any = adam, loss: Any = run.loss, batches: Any = contiguous) -> None:
            for images, y in batches:
                adam.zero_grad()
                loss(net(images, 64), y).backward()
                adam.step()

        def ours(run: _Run = run, batches: Any = batches) -> None:
            run.optimizers.prepare(1e-3, 64)
            for images, y in batches:
                run.optimizers.step(run.loss(run.net(images, 64), y))

        yield compare(f"training step, {trunk}", reference, ours, n=rows.size, d=64, repeats=bench.scale.repeats)


def embedding_pass(bench: Bench) -> Iterator[Part]:
    """The training cells embedded: files in batches of the training through the contiguous net, and ours."""
    data = bench.data(bench.scale.cells, bench.scale.size)
    paths = files_of(bench, data)
    run = bench.run(bench.config(), data)
    rows = run.fold.train
    cells = plain.Cells([paths[row] for row in rows], data.labels[rows], plain.transforms(bench.scale.size, False))
    net = EmbeddingNet(Backbone(name="resnet18"), 64).eval()

    def reference() -> None:
        with torch.no_grad():
            for images, _ in DataLoader(cells, 64):
                net(images, 64)

    yield compare(
        "embedding pass", reference, lambda: run.embed(rows, 64), n=len(rows), d=64, repeats=bench.scale.repeats
    )


# --- guide ----------------------------------------------------------------------------------------------------------


def guide_refresh(bench: Bench) -> Iterator[Part]:
    """UMAP⁻¹ of the guide: umap-learn's fit and inverse_transform as documented, and the fast engine asked at the same
    place (frame raw); the note compares the targets."""
    for length in bench.scale.lengths:
        x, y, guide = bench.embedding(length)
        found: dict[str, list[np.ndarray]] = {"reference": [], "ours": [], "centroid": []}

        def reference(x: np.ndarray = x, y: np.ndarray = y, found: Any = found, points: Any = guide.points) -> None:
            found["reference"].append(plain.lift(x, y, points, len(found["reference"])))

        def ours(x: np.ndarray = x, y: np.ndarray = y, found: Any = found, points: Any = guide.points) -> None:
            options = GuideUMAP(frame="raw")
            found["ours"].append(refresh_guide(x, y, points, options, seed=len(found["ours"])).target)

        part = compare(
            "guide refresh",
            reference,
            ours,
            n=len(x),
            d=length,
            repeats=bench.scale.repeats,
            warm=length == bench.scale.lengths[0],
        )
        found["centroid"] = [refresh_guide(x, y, guide.points, GuideUMAP(), seed=seed).target for seed in range(2)]
        told = "; ".join(f"{name} {np.mean([agreement(t, x, y) for t in all_]):.2f}" for name, all_ in found.items())
        centre = x.mean(0)
        yield replace(
            part,
            note=f"targets nearest their own class mean: {told}; cosine between two references "
            f"{_cosine(found['reference'], found['reference'], centre):.2f}, reference and ours "
            f"{_cosine(found['reference'], found['ours'], centre):.2f}",
        )


def _cosine(first: list[np.ndarray], second: list[np.ndarray], centre: np.ndarray) -> float:
    """Mean cosine of the targets of different seeds, from the centre of the embedding."""
    pairs = [(a, b) for i, a in enumerate(first) for j, b in enumerate(second) if i != j]
    if not pairs:
        return float("nan")
    return float(
        np.mean(
            [1 - spatial.distance.cosine(p, q) for a, b in pairs for p, q in zip(a - centre, b - centre, strict=True)]
        )
    )


# --- classifiers ----------------------------------------------------------------------------------------------------


def _nearest_decides(distances: np.ndarray) -> np.ndarray:
    # Our rule for tied votes (NOTES.md): the class with the nearest cell, not the first one.
    return np.tile(1 + 1e-3 * 0.5 ** np.arange(distances.shape[1]), (len(distances), 1))


def sklearn_grids(config: Classifier, seed: int) -> dict[str, tuple[Any, dict[str, list[Any]]]]:
    """Model and grid of each family, as `guided.classify` has them."""
    rules = {"uniform": _nearest_decides, "distance": "distance"}
    return {
        "knn": (
            KNeighborsClassifier(algorithm="brute"),
            {
                "kneighborsclassifier__n_neighbors": list(config.knn_k),
                "kneighborsclassifier__weights": [rules[weights] for weights in config.knn_weights],
            },
        ),
        "svm": (SVC(kernel="linear"), {"svc__C": list(config.svm_c)}),
        "mlp": (
            MLPClassifier(max_iter=200, random_state=seed),
            {"mlpclassifier__hidden_layer_sizes": list(config.mlp_hidden)},
        ),
    }


def classifier_grids(bench: Bench) -> Iterator[Part]:
    """The grid of 4.1, family by family: GridSearchCV over the same points, folds and objective, and ours; the note
    compares the inner scores of the grid points."""
    for length in bench.scale.lengths:
        x, y, guide = bench.embedding(length)
        classes, repeats = len(guide.classes), bench.scale.repeats
        scorer = make_scorer(macro_f1, classes=classes)  # over the classes that have a cell, as in the grid
        # scikit-learn's MLP takes a minute and more on long embeddings: NOTES.md has those.
        for family in ("knn", "svm", "mlp") if length == bench.scale.lengths[0] else ("knn", "svm"):
            # C = 10 takes libsvm minutes on the longest: there it is left out of both sides.
            c = Classifier().svm_c if length <= LONGEST_WHOLE else (0.01, 0.1, 1.0)
            config = Classifier(families=(family,), svm_c=c)  # type: ignore[arg-type]
            model, grid = sklearn_grids(config, 0)[family]
            theirs = GridSearchCV(
                make_pipeline(StandardScaler(), model),
                grid,
                scoring=scorer,
                cv=StratifiedKFold(3, shuffle=True, random_state=0),
            )
            own: list[classify.Chosen] = []

            def reference(theirs: GridSearchCV = theirs, x: np.ndarray = x, y: np.ndarray = y) -> None:
                theirs.fit(x, y)

            def ours(
                own: Any = own, x: np.ndarray = x, y: np.ndarray = y, config: Any = config, c: int = classes
            ) -> None:
                own[:] = [classify.grid_search(x, y, c, config, seed=0)]

            slow = family == "mlp" or (length > 200 and family == "svm") or length > 500
            part = compare(
                f"final grid, {family}",
                reference,
                ours,
                n=len(x),
                d=length,
                repeats=1 if slow else repeats,
                warm=not slow,
            )
            scores = theirs.cv_results_["mean_test_score"]
            mine = np.array([score for _, score in own[0].grid])
            yield replace(
                part,
                note=f"winner {'the same' if mine.argmax() == scores.argmax() else 'another'}, largest difference of "
                f"an inner macro-F1 {np.abs(mine - scores).max():.1e}, best {scores.max():.3f} / {mine.max():.3f}",
            )


def validation(bench: Bench) -> Iterator[Part]:
    """One epoch's score: the kNN grid by scikit-learn, and the cheap classifiers that may stand for a grid."""
    length = bench.scale.lengths[0]
    x, y, guide = bench.embedding(length)
    model, grid = sklearn_grids(Classifier(), 0)["knn"]
    theirs = GridSearchCV(make_pipeline(StandardScaler(), model), grid, scoring="f1_macro", cv=3)
    for name in ("centroid", "knn"):
        yield compare(
            f"validation, {name}",
            lambda: theirs.fit(x, y).predict(x[:500]),
            lambda name=name: classify.fit(name, x, y, len(guide.classes)).predict(x[:500]),  # type: ignore[misc]
            n=len(x),
            d=length,
            repeats=bench.scale.repeats,
            note="another classifier than the reference: one, not a grid",
        )


# --- around it ------------------------------------------------------------------------------------------------------


def checkpoint(bench: Bench) -> Iterator[Part]:
    """The state of an epoch: a bare torch.save, and a sealed file that is synced and put in place whole."""
    run = bench.run(bench.config(), bench.data(bench.scale.cells, bench.scale.size))
    run.optimizers.prepare(1e-3, 64)
    run.optimizers.step(run.loss(run.net(run.images.batch(run.fold.train[:8]), 64), run.labels[run.fold.train[:8]]))
    folder = Path(tempfile.mkdtemp(dir=bench.folder))
    yield compare(
        "checkpoint",
        lambda: torch.save(run._state(), folder / "plain.pt"),
        lambda: run.save(folder),
        n=sum(p.numel() for p in run.net.parameters()),
        repeats=max(bench.scale.repeats, 3),
        clock="wall",
        note="n: parameters; ours survives a power cut and tells a damaged file",
    )


def start(bench: Bench) -> Iterator[Part]:
    """Until the first epoch can begin: a new process for each fold run, and a warm worker."""
    data, config = bench.data(bench.scale.cells, bench.scale.size), bench.config()
    code = (
        "import sys, torch; from pathlib import Path; from guided.config import Config\n"
        "from guided.data import Dataset; from guided.folds import make_folds\n"
        "from guided.guide import load_guide\n"
        "from guided.train import _Run; c = Config.model_validate_json(sys.argv[1])\n"
        "d = Dataset.open(Path(sys.argv[2]))\n"
        "_Run(d, make_folds(d, c.folds)[0], load_guide(c.guide, d.classes), c, 0, torch.device('cpu'))"
    )
    arguments = [sys.executable, "-c", code, config.model_dump_json(), str(data.directory)]
    yield compare(
        "start of a fold run",
        lambda: subprocess.run(arguments, check=True),
        lambda: bench.run(config, data),
        n=1,
        repeats=bench.scale.repeats,
        clock="wall",
    )


def fold_run(bench: Bench) -> Iterator[Part]:
    """A whole fold run of guideUMAP at 64: the plain one-file implementation, and ours with the grid in every epoch,
    on the same cells, folds and schedule."""
    data, config = bench.data(bench.scale.cells, bench.scale.size), bench.config()
    fold = make_folds(data, config.folds)[0]
    began = time.process_time()
    theirs = plain_run(bench, data, fold, config)
    middle = time.process_time()
    metrics = _finished(data, fold, load_guide(config.guide, data.classes), config)
    pair = (middle - began, time.process_time() - middle)
    told = ", ".join(
        f"{part} {theirs[part]:.1f} / {metrics[f'time/{part}_total']:.1f}"
        for part in ("train", "embed", "refresh", "validate")
    )
    note = f"macro-F1 {theirs['f1']:.3f} / {metrics['test/f1_macro']:.3f}; seconds: {told}"
    yield of_pairs("whole fold run", [pair], n=len(data.images), d=64, note=note)


def plain_run(bench: Bench, data: Dataset, fold: Fold, config: Config) -> dict[str, float]:
    """A fold by the plain implementation: its macro-F1 and seconds."""
    return plain.plain_fold(
        files_of(bench, data),
        data.labels,
        (fold.train, fold.validation, fold.test),
        load_guide(config.guide, data.classes).points,
        size=data.images.shape[1],
        epochs=config.train.epochs,
        length=config.embedding.length,
        batch=config.train.batch_size,
        families=config.classifier.families,
        seed=0,
    )


def _finished(
    data: Dataset, fold: Fold, guide: EmbeddingGuide, config: Config, checkpoint: Path | None = None
) -> dict[str, float]:
    generator = run_fold(data, fold, guide, config, seed=0, checkpoint=checkpoint)
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return dict(end.value.metrics)


def share(bench: Bench) -> Iterator[Part]:
    """A whole fold run with its checkpoints, and of it all that is neither forward, backward and optimiser nor the
    embedding pass (of which ten times as much is a share of 10 %): the laptop preset, and ResNet-18 with its
    validation and grid."""
    from sweeps.spec import load_sweep

    laptop = load_sweep("ablation_lowpass", preset="laptop").variants[0].config
    resnet = bench.config(
        loss={"name": "guide_umap"},
        validation=laptop.validation.model_dump(mode="json"),
        classifier=laptop.classifier.model_dump(mode="json"),
    )
    if bench.scale.repeats == 1:
        laptop = laptop.model_copy(update={"train": laptop.train.model_copy(update={"epochs": bench.scale.epochs})})
    cells, size = bench.scale.cells, bench.scale.size
    for name, config, data in (
        ("laptop", laptop, bench.data(cells * 26 // 15, 40)),
        ("resnet18", resnet, bench.data(cells, size)),
    ):
        fold, guide = make_folds(data, config.folds)[0], load_guide(config.guide, data.classes)
        pairs, told = [], ""
        for _ in range(2 if name == "laptop" and bench.scale.repeats > 1 else 1):
            spent: dict[str, float] = {}
            began = time.process_time()
            with _timed(spent):
                _finished(data, fold, guide, config, Path(tempfile.mkdtemp(dir=bench.folder)))
            whole = time.process_time() - began
            pairs.append((whole, whole - spent.pop("passes")))
            told = ", ".join(f"{part} {seconds / whole:.1%}" for part, seconds in spent.items())
        yield of_pairs(f"around the passes, {name}", pairs, n=len(data.images), d=64, note=f"last one: {told}")


@contextmanager
def _timed(spent: dict[str, float]) -> Iterator[None]:
    """While it lasts, CPU seconds of the parts of fold runs are added up in `spent`: `passes` are forward, loss,
    backward, optimiser and embedding pass; what one part calls of another counts for that one only."""
    open_: list[float] = []  # of each part under way, the seconds of the parts within it

    def timed(method: Callable[..., Any], part: str) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            open_.append(0.0)
            began = time.process_time()
            try:
                return method(*arguments, **named)
            finally:
                took = time.process_time() - began
                spent[part] = spent.get(part, 0.0) + took - open_.pop()
                if open_:
                    open_[-1] += took

        return wrapped

    named = [
        (EmbeddingNet, "forward", "passes"),
        *((loss, "__call__", "passes") for loss in (Guide2DLoss, GuideUMAPLoss)),
        (train, "norm_penalty", "passes"),
        (Optimizers, "step", "passes"),
        (_Run, "embed", "passes"),
        (Images, "augmented", "data path"),
        (_Run, "_refresh", "refresh"),
        (_Run, "_validate", "validation"),
        (_Run, "finish", "final"),
        (_Run, "save", "checkpoints"),
        (_Run, "__init__", "start"),
    ]
    with ExitStack() as stack:
        for owner, name, part in named:
            stack.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name), part)))
        yield


def sweep(bench: Bench) -> Iterator[Part]:
    """Trivial fold runs: trained one after the other in this process, and as a sweep with its workers, records, MLflow
    and table; then the tracking of one of their records, metric by metric and in batches."""
    from mlflow import MlflowClient

    from sweeps.records import Records
    from sweeps.study import read_study
    from sweeps.tracking import Tracker

    folder = Path(tempfile.mkdtemp(dir=bench.folder))
    file = folder / "trivial.yaml"
    file.write_text(
        "# Trivial\nquestion: What does a sweep cost?\nkind: ablation\n"
        "base: {loss.name: guide2d, embedding.length: 4}\n"
        "vary: {guide.radius: [2, 5]}\nbaseline: {guide.radius: 5}\n"
    )
    settings = (
        "data.cells=300 data.size=16 train.epochs=2 train.batch_size=32 folds.count=3 classifier.families=[knn] "
        "validation.classifier=centroid"
    )
    out = folder / "out"
    command = [sys.executable, "-m", "sweeps", "run", str(file), "--preset", "laptop", "--out", str(out)]
    began = time.perf_counter()
    subprocess.run([*command, "--set", settings], check=True, capture_output=True)
    whole = time.perf_counter() - began
    (study_folder,) = (out / "studies").iterdir()
    study = read_study(study_folder)
    began = time.perf_counter()
    for run in study.fold_runs:
        _finished(study.data, study.folds[run.partition][run.fold], study.guides[run.config.id], run.config)
    bare = time.perf_counter() - began
    yield of_pairs(
        "whole sweep",
        [(bare, whole)],
        n=len(study.fold_runs),
        clock="wall",
        note=f"n: fold runs; {whole - bare:.1f} s around them, of which imports and Ray's start are the most",
    )
    record = Records(out).read(study.fold_runs[0].id)
    if record is None:
        raise RuntimeError("the trivial sweep has left no record")
    tracker = Tracker(study, f"sqlite:///{folder / 'batches.db'}")
    client = MlflowClient(f"sqlite:///{folder / 'singly.db'}")
    experiment = client.create_experiment("singly", artifact_location=(folder / "singly").as_uri())

    def singly() -> None:
        run_id = client.create_run(experiment).info.run_id
        for step, epoch in enumerate([*record.history, record.metrics]):
            for key, value in epoch.items():
                client.log_metric(run_id, key, value, step=step)
        for path in record.artifacts():
            client.log_artifact(run_id, str(path))
        client.set_terminated(run_id)

    yield compare(
        "tracking of a fold run",
        singly,
        lambda: tracker.project(record),
        n=len(record.metrics) + sum(map(len, record.history)),
        repeats=bench.scale.repeats,
        note="n: metric values",
    )


# --- GPU ------------------------------------------------------------------------------------------------------------


def gpu(bench: Bench) -> Iterator[Part]:
    """Training images of DenseNet-121 at 244 px: plain torch (fp32, contiguous, eager, DataLoader with pinned memory
    over decoded arrays), and ours in fp32, tf32 and bf16 with images on the device."""
    device = torch.device("cuda")
    data = bench.data(600, 244)
    config = bench.config(backbone={"name": "densenet121"}, validation={"classifier": "centroid"})
    fold, guide = make_folds(data, config.folds)[0], load_guide(config.guide, data.classes)
    rows = fold.train[: len(fold.train) // 64 * 64]
    pixels = torch.from_numpy(np.ascontiguousarray(data.images[np.sort(rows)].transpose(0, 3, 1, 2)))
    labels = torch.from_numpy(data.labels[np.sort(rows)])
    loader = DataLoader(
        list(zip(pixels, labels, strict=True)),  # type: ignore[arg-type]
        64,
        shuffle=True,
        num_workers=min(16, os.cpu_count() or 1),
        pin_memory=True,
        persistent_workers=True,
    )
    net = EmbeddingNet(Backbone(name="densenet121"), 64).to(device)
    adam = torch.optim.Adam(net.parameters())
    target = torch.as_tensor(guide.points, dtype=torch.float32, device=device)

    def reference() -> None:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
        for images, y in loader:
            p = net(images.to(device, non_blocking=True).float() / 255, 64)
            adam.zero_grad()
            (p[:, :2] - target[y.to(device)]).abs().sum(1).mean().backward()
            adam.step()
        torch.cuda.synchronize()

    for precision in ("fp32", "tf32", "bf16"):
        chosen = config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})
        run = _Run(data, fold, guide, chosen, 0, device)

        def ours(run: _Run = run) -> None:
            run._train(0, 64, run.warmup_loss)
            torch.cuda.synchronize()

        yield compare(
            f"training on a GPU, {precision}",
            reference,
            ours,
            n=len(rows),
            d=64,
            repeats=bench.scale.repeats,
            clock="wall",
        )


PARTS: dict[str, Callable[[Bench], Iterator[Part]]] = {
    "data": data_path,
    "step": training_step,
    "embedding": embedding_pass,
    "refresh": guide_refresh,
    "validation": validation,
    "grid": classifier_grids,
    "checkpoint": checkpoint,
    "start": start,
    "fold": fold_run,
    "share": share,
    "sweep": sweep,
}
