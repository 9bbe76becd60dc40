"""One fold run: train on a fold's training cells, keep the best epoch by validation macro-F1, test once.

`run_fold` is a generator of epoch records; a Ray trial, a test and a notebook all drive the same loop.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch

from guided import classify
from guided.augment import Images
from guided.backbone import EmbeddingNet, Optimizers, restored
from guided.config import METHOD_VERSION, Config, Guide2D, content_id
from guided.data import Dataset
from guided.folds import Fold
from guided.growth import is_warmup, length_at
from guided.guide import EmbeddingGuide
from guided.kept import Embedded, kept_path, read_kept, write_kept
from guided.losses import LOSSES, Guide2DLoss, LossObject, Setting, class_weights, norm_penalty
from guided.metrics import macro_f1
from guided.result import Epoch, FoldResult, result_of
from guided.sealed import read_sealed, sealed

EMBED_BATCH = 128  # on a CPU, larger ones gain 6 % where freed memory is kept, and are a fifth slower where it is not


class Diverged(ArithmeticError):
    """Training left the finite numbers or collapsed to a point; the message says where, `history` what came before."""

    history: list[Epoch]


@dataclass(frozen=True)
class AllCells:
    """Stands for a fold where every cell trains and none is held out."""

    train: np.ndarray  # (N,) rows of the data set
    validation: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    test: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    partition: int = 0
    index: int = 2**16  # no fold has this number: the refit draws a start of its own
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fitted:
    """A network trained on all cells."""

    net: EmbeddingNet  # its head cut to the length of the last epoch
    pixel_mean: np.ndarray  # (3,) float32, of the channels in 0-255
    pixel_sd: np.ndarray  # (3,)
    embedding: np.ndarray  # (N, n) float32 of the training cells, without augmentation
    on_drawing: bool  # the last epoch drew the first two components to the guide (loss guide2D or the warm-up)
    history: list[Epoch]


def fit_all(
    data: Dataset,
    rows: np.ndarray,
    guide: EmbeddingGuide,
    config: Config,
    lengths: Sequence[int],
    *,
    seed: int,
    device: str = "cpu",
    checkpoint: Path | None = None,
) -> Generator[Epoch, None, Fitted]:
    """Train on the cells `rows` for as many epochs as there are `lengths`, each with that length of the embedding.

    The loop of `run_fold` without validation and test: nothing is held out, so nothing can choose an epoch, and how
    long to train is for the caller to know from the folds. Learning rates follow the epoch budget of `config`, of
    which `lengths` may be a part. The head is cut to what the classifier sees. Yields the record of each epoch;
    `checkpoint` and the errors are those of `run_fold`.
    """
    if not lengths:
        raise ValueError("a training of no epochs was asked for")
    run = _Run(data, AllCells(rows), guide, config, seed, _device(device))
    if checkpoint is not None:
        run.load(checkpoint)
    for length in lengths[len(run.history) :]:
        record = run.unjudged_epoch(length)
        if checkpoint is not None:
            run.save(checkpoint)
        yield record
    return run.fitted(config.seen(lengths[-1]))


def run_fold(
    data: Dataset,
    fold: Fold,
    guide: EmbeddingGuide,
    config: Config,
    *,
    seed: int,
    device: str = "cpu",
    checkpoint: Path | None = None,
    warmups: Path | None = None,
    embeddings: Path | None = None,
    keep: bool = False,
) -> Generator[Epoch, None, FoldResult]:
    """Train one fold; yields the record of each epoch, returns the result.

    With `checkpoint` (a folder) the state is saved after every epoch, and a run that finds one there goes on behind
    its last epoch, to the same result bit for bit on the CPU. On `device` "cpu" one seed gives one result.

    `warmups` (a folder) is shared by fold runs that differ in nothing before their warm-up ends (`warmup_key`): the
    first to get there leaves its state, the others take it over with its epochs, their times included, and go on as if
    they had trained them themselves, to the same result bit for bit on the CPU.

    `embeddings` (a folder) is shared by fold runs that differ in nothing before the embedding of their best epoch
    (`guided.kept.embedding_key`). Where it lies there, this fold run yields no epoch and its result is that of the
    training which left it, bit for bit, but for its own classifier and metrics; with `keep` it leaves it there. Raises
    Diverged where the loss is no longer finite or the embedding has collapsed, ValueError for a checkpoint that is
    there but cannot be trusted, RuntimeError for a device that is not there.
    """
    at = None if embeddings is None else kept_path(embeddings, data, fold, guide, config, seed=seed, device=device)
    embedded = None if at is None else read_kept(at)  # a damaged one is trained and left anew
    if embedded is not None:
        return result_of(embedded, data, fold, guide, config, seed=seed)
    run = _Run(data, fold, guide, config, seed, _device(device))
    if checkpoint is not None:
        run.load(checkpoint)
    if warmups is not None and run.take_over(warmups):
        if checkpoint is not None:
            run.save(checkpoint)
        yield from run.history
    while not run.over:
        try:
            record = run.epoch()
        except Diverged as error:
            error.history = run.history
            raise
        if checkpoint is not None:
            run.save(checkpoint)
        yield record
    return run.finish(at if keep else None)


def warmup_key(config: Config) -> str | None:
    """What the warm-up of a variant depends on, as hex digits; None where there is none.

    The warm-up trains guide2D whatever the method (3.3), so variants that differ in their loss alone pass through the
    same states.
    """
    return config.model_copy(update={"loss": Guide2D()}).id if config.embedding.warmup else None


def _device(name: str) -> torch.device:
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RuntimeError(f"device {name!r} was asked for, but this process sees no CUDA device")
    return torch.device(name)


class _Run:
    """State of one fold run between epochs."""

    def __init__(
        self,
        data: Dataset,
        fold: Fold | AllCells,
        guide: EmbeddingGuide,
        config: Config,
        seed: int,
        device: torch.device,
    ) -> None:
        if guide.classes != data.classes:
            raise ValueError(f"guide {guide.name!r} is not in the class order of {data.name!r}")
        if len(fold.train) < config.train.batch_size:
            raise ValueError(
                f"fold {fold.index} has {len(fold.train)} training cells, less than one batch of "
                f"{config.train.batch_size}; lower train.batch_size or bring more cells"
            )
        self.data, self.fold, self.guide, self.config, self.seed, self.device = data, fold, guide, config, seed, device
        self.labels = torch.from_numpy(data.labels).to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self._rng(0).integers(2**62)))
            self.net = EmbeddingNet(config.backbone, config.embedding.length)
        self.net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        weights = None
        if config.train.balance == "weights":
            frequency = class_weights(data.labels[fold.train], len(data.classes))
            weights = torch.as_tensor(frequency, dtype=torch.float32, device=device)
        generator = torch.Generator().manual_seed(int(self._rng(3).integers(2**62)))
        setting = Setting(guide, config.embedding.length, device, generator, weights)
        self.loss: LossObject = LOSSES[config.loss.name](config.loss, setting)
        self.warmup_loss: LossObject = Guide2DLoss(Guide2D(), setting)
        self.optimizers = Optimizers(
            self.net,
            config.train.learning_rate,
            config.train.weight_decay,
            sliced=self.loss.sliced.values(),
            whole=self.loss.whole.values(),
        )
        self.images = Images.of(data.images, fold.train, device)
        self.history: list[Epoch] = []
        self.best: dict[str, Any] = {"epoch": -1, "f1": -1.0}
        # Training and validation embedding of an epoch; kept of the best one, because its net will give them again.
        self.embedded: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.warmup_left: Path | None = None  # where the state at the end of the warm-up is wanted

    def _rng(self, *stream: int) -> np.random.Generator:
        # A stream per purpose and epoch: nothing of a random state needs to be saved to go on from a checkpoint.
        return np.random.default_rng([self.seed, self.fold.partition, self.fold.index, *stream])

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Pass through the net in train.precision. CUDA's switches are the process's: set anew for each pass, because
        fold runs of other variants may share it."""
        precision = self.config.train.precision
        if self.device.type == "cuda":
            kind = "tf32" if precision == "tf32" else "ieee"
            torch.backends.cuda.matmul.fp32_precision = kind
            torch.backends.cudnn.conv.fp32_precision = kind  # type: ignore[attr-defined]  # torch's default is tf32
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield

    @property
    def over(self) -> bool:
        done = len(self.history)
        return done >= self.config.train.epochs or (done > 0 and done - 1 - self.best["epoch"] >= self.patience)

    @property
    def patience(self) -> int:
        return self.config.train.patience

    def epoch(self) -> Epoch:
        """Train one epoch, score it on the validation cells, let the loss learn from the training embedding."""
        config, epoch = self.config, len(self.history)
        past = [(int(before["embedding/length"]), before["val/f1_macro"]) for before in self.history]
        length = length_at(epoch, config.embedding, config.train.epochs, past)
        warmup = is_warmup(epoch, config.embedding)
        started = time.perf_counter()
        record: Epoch = {"epoch": float(epoch), "embedding/length": float(length)}
        loss = self._loss_at(epoch)
        record |= self._train(epoch, length, loss)
        trained = time.perf_counter()
        fold, labels = self.fold, self.data.labels
        train, validation = self.embed(fold.train, length), self.embed(fold.validation, length)
        if float(np.ptp(train, axis=0).max()) == 0.0:
            raise Diverged(f"epoch {epoch}: every training cell has the same embedding")
        embedded = time.perf_counter()
        predicted = self._validate(train, validation)
        record["val/f1_macro"] = macro_f1(labels[fold.validation], predicted, len(self.data.classes))
        by_head = loss.predict(validation)
        if by_head is not None:
            record["val/f1_macro_head"] = macro_f1(labels[fold.validation], by_head, len(self.data.classes))
        if record["val/f1_macro"] > self.best["f1"]:
            state = {key: value.detach().cpu().clone() for key, value in self.net.state_dict().items()}
            self.best = {
                "epoch": epoch,
                "f1": record["val/f1_macro"],
                "length": length,
                "net": state,
                "loss": loss.state(),
            }
            self.embedded = {epoch: (train, validation)}
        record["time/train"] = trained - started
        record["time/embed"] = embedded - trained
        record["time/validate"] = time.perf_counter() - embedded
        self.history.append(record)
        last_of_warmup = warmup and not is_warmup(epoch + 1, config.embedding)
        if last_of_warmup and self.warmup_left is not None:
            # Without what the loss knows: nothing yet, and the next one may be another.
            _write(self.warmup_left, self._state() | {"loss": {}, "train": torch.from_numpy(train)})
        if not warmup or last_of_warmup:
            self._refresh(train)
        else:
            record["time/refresh"] = 0.0
        return record

    def _refresh(self, train: np.ndarray) -> None:
        """Let the loss learn from the training embedding (N, n) of the last epoch, and record it there."""
        started = time.perf_counter()
        record = self.history[-1]
        if self.loss.needs_refresh:
            seed = int(self._rng(2, len(self.history) - 1).integers(2**31))
            record |= self.loss.refresh(train, self.data.labels[self.fold.train], seed)
        record["time/refresh"] = time.perf_counter() - started

    def take_over(self, folder: Path) -> bool:
        """Go on behind the warm-up that another fold run left in `folder`; False where the own one is to be trained,
        which is then left there. A loss with parameters of its own takes part in neither: they are in the optimiser."""
        key = warmup_key(self.config)
        if key is None or self.loss.sliced or self.loss.whole:
            return False
        rows = [hashlib.sha256(part.tobytes()).hexdigest() for part in (self.fold.train, self.fold.validation)]
        place = [self.fold.partition, self.fold.index, self.seed, self.device.type]
        path = folder / content_id(
            [key, METHOD_VERSION, self.data.fingerprint, self.guide.points.tolist(), *rows, *place]
        )
        state = _read(path) if path.exists() else None
        if state is None:  # a damaged one is written anew
            self.warmup_left = path
            return False
        if self.history:
            return False
        self._restore(state)
        self._refresh(state["train"].numpy())
        return True

    def unjudged_epoch(self, length: int) -> Epoch:
        """Train one epoch with nobody to score it."""
        epoch = len(self.history)
        started = time.perf_counter()
        record: Epoch = {"epoch": float(epoch), "embedding/length": float(length)}
        record |= self._train(epoch, length, self._loss_at(epoch))
        record["time/train"] = time.perf_counter() - started
        self.history.append(record)
        if not is_warmup(epoch + 1, self.config.embedding) and self.loss.needs_refresh:
            self._refresh(self.embed(self.fold.train, length))
        return record

    def fitted(self, length: int) -> Fitted:
        """The network as it is, its head cut to `length`."""
        embedding = self.embed(self.fold.train, length)
        if float(np.ptp(embedding, axis=0).max()) == 0.0:
            raise Diverged(f"after {len(self.history)} epochs every training cell has the same embedding")
        state = {key: value.detach().cpu().clone() for key, value in self.net.state_dict().items()}
        state = {key: value[:length] if key.startswith("head.") else value for key, value in state.items()}
        return Fitted(
            net=restored(self.config.backbone.name, length, state),
            pixel_mean=self.images.mean.cpu().numpy().reshape(3),
            pixel_sd=self.images.sd.cpu().numpy().reshape(3),
            embedding=embedding,
            on_drawing=isinstance(self._loss_at(len(self.history) - 1), Guide2DLoss),
            history=self.history,
        )

    def _loss_at(self, epoch: int) -> LossObject:
        return self.warmup_loss if is_warmup(epoch, self.config.embedding) else self.loss

    def _train(self, epoch: int, length: int, loss: LossObject) -> Epoch:
        config = self.config.train
        rng = self._rng(1, epoch)
        rows = self._order(rng)
        rate = config.learning_rate
        if config.schedule == "cosine":
            rate *= 0.5 * (1 + cos(pi * epoch / config.epochs))
        self.optimizers.prepare(rate, length)
        self.net.train()
        batches = len(rows) // config.batch_size  # the last, smaller batch is dropped
        given = self.config.norm.weight
        norm_weight = loss.norm_weight if given == "auto" else given
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in rows[: batches * config.batch_size].reshape(batches, config.batch_size):
            images = self.images.augmented(batch, self.config.augment, rng)
            with self._precision():
                p = self.net(images, length)
            own = loss(p, self.labels[torch.from_numpy(batch).to(self.device)])
            norm = norm_weight * norm_penalty(p, self.config.norm.kind)
            self.optimizers.step(own + norm)
            totals += torch.stack([own.detach(), norm.detach()]).double()
        # One look per epoch: a loss that was not finite once stays so in the sum, and the device need not wait.
        mean_own, mean_norm = (totals / batches).tolist()
        if not np.isfinite(mean_own + mean_norm):
            raise Diverged(f"epoch {epoch}: the training loss is {mean_own + mean_norm}")
        return {
            "train/loss": mean_own + mean_norm,
            f"train/loss_{'guide2d' if loss is self.warmup_loss else self.config.loss.name}": mean_own,
            "train/loss_norm": mean_norm,
        }

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        """Training rows of an epoch: shuffled, or drawn so that every class comes equally often."""
        rows = self.fold.train
        if self.config.train.balance != "sampler":
            return rng.permutation(rows)
        labels = self.data.labels[rows]
        counts = np.bincount(labels, minlength=len(self.data.classes))
        weight = 1.0 / (counts[labels] * np.count_nonzero(counts))
        return rng.choice(rows, size=len(rows), p=weight)

    @torch.no_grad()
    def embed(self, rows: np.ndarray, length: int) -> np.ndarray:
        """Embedding (R, length) float32 of `rows`, without augmentation."""
        self.net.eval()
        with self._precision():
            parts = [
                self.net(self.images.batch(rows[start : start + EMBED_BATCH]), length).cpu()
                for start in range(0, len(rows), EMBED_BATCH)
            ]
        embedding = torch.cat(parts).numpy()
        if not np.isfinite(embedding).all():
            raise Diverged(f"epoch {len(self.history)}: the embedding has values that are not finite")
        return embedding

    def _validate(self, train: np.ndarray, validation: np.ndarray) -> np.ndarray:
        labels, classes = self.data.labels[self.fold.train], len(self.data.classes)
        name = self.config.validation.classifier
        if name == "grid":
            return classify.grid_search(train, labels, classes, self.config.classifier, seed=self.seed).predict(
                validation
            )
        return classify.fit(name, train, labels, classes).predict(validation)

    def finish(self, kept: Path | None = None) -> FoldResult:
        """Back to the best epoch, whose embedding is left at `kept`, and from it to the result."""
        began, fold = time.perf_counter(), self.fold
        if isinstance(fold, AllCells):
            raise TypeError("nothing was held out, so there is no result")
        embedded = self._embedded_at_best()
        if kept is not None:
            write_kept(kept, embedded)
        return result_of(embedded, self.data, fold, self.guide, self.config, seed=self.seed, began=began)

    def _embedded_at_best(self) -> Embedded:
        fold, epoch, length = self.fold, int(self.best["epoch"]), int(self.best["length"])
        self.net.load_state_dict(self.best["net"])
        loss = self._loss_at(epoch)
        loss.restore(self.best["loss"])
        known = self.embedded.get(epoch)
        train, validation = known or (self.embed(fold.train, length), self.embed(fold.validation, length))
        test = self.embed(fold.test, length)
        return Embedded(
            train=train,
            validation=validation,
            test=test,
            points=loss.points(length),
            by_head=loss.predict(test),
            epoch=epoch,
            val_f1=float(self.best["f1"]),
            history=self.history,
        )

    def _state(self) -> dict[str, Any]:
        return {
            "history": self.history,
            "best": self.best,
            "net": self.net.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "loss": self.loss.state(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.history, self.best = state["history"], state["best"]
        self.net.load_state_dict(state["net"])
        self.optimizers.load_state_dict(state["optimizers"])
        if state["loss"]:
            self.loss.restore(state["loss"])

    def save(self, folder: Path) -> None:
        """Write the state of this epoch, keeping the one before it."""
        # Two files in turn: whatever interrupts the writing of one leaves the other whole.
        _write(folder / f"epoch-{len(self.history) % 2}.ckpt", self._state())

    def load(self, folder: Path) -> None:
        """Go on from the newest sound checkpoint in `folder`, if it holds any.

        Raises ValueError where there are checkpoints and none is sound: starting over silently would hide the loss.
        """
        state = _newest(folder)
        if state is not None:
            self._restore(state)


def saved_history(folder: Path) -> list[Epoch]:
    """The epochs of a fold run under way, from its checkpoints in `folder`; empty before the first one is saved.

    Raises ValueError where there are checkpoints and none is sound.
    """
    state = _newest(folder)
    return [] if state is None else state["history"]


def _newest(folder: Path) -> dict[str, Any] | None:
    """The newest sound state in `folder`, None where there is no checkpoint."""
    paths = sorted(folder.glob("epoch-*.ckpt"))
    sound = [state for path in paths if (state := _read(path)) is not None]
    if paths and not sound:
        raise ValueError(f"no sound checkpoint in {folder}: {paths[0].name} is damaged; delete it to start over")
    return max(sound, key=lambda candidate: len(candidate["history"]), default=None)


def _write(path: Path, state: dict[str, Any]) -> None:
    """Put a state in place whole or not at all."""
    with sealed(path) as file:
        torch.save(state, file)  # type: ignore[arg-type]  # a writer is all it needs


def _read(path: Path) -> dict[str, Any] | None:
    """What `_write` put there, or None where it is damaged."""
    payload = read_sealed(path)
    if payload is None:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state
