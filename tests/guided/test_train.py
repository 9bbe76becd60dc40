from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from guided.config import Config, Embedding, Validation
from guided.data import Dataset
from guided.folds import Fold, make_folds
from guided.geometry import effective_rank
from guided.guide import EmbeddingGuide, load_guide
from guided.kept import embedding_key, read_kept
from guided.losses import LOSSES, LossObject, class_weights
from guided.metrics import lineage_distances, macro_f1
from guided.train import AllCells, Diverged, Epoch, Fitted, FoldResult, _Run, fit_all, run_fold, warmup_key

Inputs = tuple[Dataset, Fold, EmbeddingGuide]


@pytest.fixture(scope="module")
def inputs(marrow: Dataset, quick: Config) -> Inputs:
    return marrow, make_folds(marrow, quick.folds)[0], load_guide(quick.guide, marrow.classes)


def drive(
    inputs: Inputs, config: Config, *, stop: int | None = None, seed: int = 0, **folders: Path
) -> tuple[list[Epoch], FoldResult | None]:
    """All epochs of a fold run and its result; or the first `stop` epochs, then the generator is closed."""
    epochs = []
    generator = run_fold(*inputs, config, seed=seed, **folders)
    while stop is None or len(epochs) < stop:
        try:
            epochs.append(next(generator))
        except StopIteration as end:
            return epochs, end.value
    generator.close()
    return epochs, None


def lasting(epochs: list[Epoch]) -> list[Epoch]:
    """What must repeat: everything but times."""
    return [{key: value for key, value in epoch.items() if not key.startswith("time/")} for epoch in epochs]


@pytest.fixture(scope="module")
def straight(inputs: Inputs, quick: Config) -> FoldResult:
    result = drive(inputs, quick)[1]
    assert result is not None
    return result


def test_every_epoch_is_recorded_with_its_length_and_losses(straight: FoldResult) -> None:
    assert [epoch["embedding/length"] for epoch in straight.history] == [2, 2, 2, 6, 6, 6]
    for number, epoch in enumerate(straight.history):
        assert epoch["epoch"] == number
        own = "train/loss_guide2d" if number < 3 else "train/loss_guide_umap"
        assert epoch["train/loss"] == pytest.approx(epoch[own] + epoch["train/loss_norm"])
        assert 0 <= epoch["val/f1_macro"] <= 1


def test_the_guide_is_refreshed_from_the_end_of_the_warmup_on(straight: FoldResult) -> None:
    assert [("guide/shift" in epoch) for epoch in straight.history] == [False, False, True, True, True, True]
    assert straight.history[-1]["guide/shift"] > 0


def test_the_best_epoch_is_the_first_of_the_highest_validation_scores(straight: FoldResult) -> None:
    scores = [epoch["val/f1_macro"] for epoch in straight.history]
    best = int(straight.metrics["best/epoch"])
    assert best == int(np.argmax(scores)) and straight.metrics["best/val_f1_macro"] == max(scores)
    assert straight.metrics["best/length"] == straight.history[best]["embedding/length"]
    assert straight.guide is not None
    assert straight.embedding.shape[1] == straight.guide.shape[1] == straight.metrics["best/length"]


def test_the_result_speaks_of_the_test_cells(straight: FoldResult, inputs: Inputs) -> None:
    data, fold, _ = inputs
    assert np.array_equal(straight.test_rows, fold.test)
    assert straight.scores.shape == (len(fold.test), len(data.classes))
    assert straight.metrics["test/accuracy"] == np.mean(straight.predicted == data.labels[fold.test])
    assert all(np.isfinite(value) for value in straight.metrics.values())


def test_the_result_holds_what_goes_beyond_f1(straight: FoldResult, inputs: Inputs) -> None:
    data, fold, guide = inputs
    true, predicted = data.labels[fold.test], straight.predicted
    ways = lineage_distances(guide.lineages, guide.stages)
    assert straight.metrics["test/severity"] == ways[true, predicted].mean()
    embedding = straight.embedding.astype(np.float64)
    assert straight.metrics["embedding/effective_rank"] == pytest.approx(effective_rank(embedding), rel=1e-2)
    assert {"test/true_maturity_error", "test/aurc", "test/guide_aurc"} <= straight.metrics.keys()


def test_it_learns(inputs: Inputs, straight: FoldResult) -> None:
    """Against labels that were shuffled, which leave nothing to learn."""
    data, fold, guide = inputs
    labels = np.random.default_rng(0).permutation(data.labels)
    config = Config.model_validate_json(
        json.dumps({"train": {"epochs": 6, "batch_size": 32}, "backbone": {"name": "densenet_small"}})
    )
    chance = drive((dataclasses.replace(data, labels=labels), fold, guide), config)[1]
    assert chance is not None
    assert straight.metrics["test/f1_macro"] > 2 * chance.metrics["test/f1_macro"]
    assert straight.history[-1]["train/loss_norm"] > 0


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6])
def test_going_on_from_a_checkpoint_is_going_straight(
    inputs: Inputs, quick: Config, straight: FoldResult, tmp_path: Path, stop: int
) -> None:
    first, nothing = drive(inputs, quick, stop=stop, checkpoint=tmp_path)
    assert nothing is None
    rest, result = drive(inputs, quick, checkpoint=tmp_path)
    assert result is not None and len(first) + len(rest) == len(straight.history), "no epoch is trained twice"
    assert lasting(result.history) == lasting(straight.history)
    assert np.array_equal(result.embedding, straight.embedding) and np.array_equal(result.scores, straight.scores)


def with_loss(config: Config, **options: Any) -> Config:
    return config.model_copy(update={"loss": config.loss.model_copy(update=options)})


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs that were trained since the test began."""
    epochs: list[int] = []
    train = _Run._train

    def watched(run: _Run, epoch: int, length: int, loss: LossObject) -> Epoch:
        epochs.append(epoch)
        return train(run, epoch, length, loss)

    monkeypatch.setattr(_Run, "_train", watched)
    return epochs


def test_a_warmup_taken_over_is_as_one_trained(
    inputs: Inputs, quick: Config, straight: FoldResult, trained: list[int], tmp_path: Path
) -> None:
    """It was left by a variant with another loss; what is interrupted behind it goes on from its own checkpoint."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    drive(inputs, with_loss(quick, lowpass=0.0), stop=4, warmups=shared)
    trained.clear()
    first, _ = drive(inputs, quick, stop=4, checkpoint=own, warmups=shared)
    assert lasting(first) == lasting(straight.history[:4]) and trained == [3]
    rest, result = drive(inputs, quick, checkpoint=own, warmups=shared)
    assert len(rest) == 2 and trained == [3, 4, 5]
    assert result is not None and lasting(result.history) == lasting(straight.history) and result.grid == straight.grid
    assert np.array_equal(result.embedding, straight.embedding) and np.array_equal(result.scores, straight.scores)


def test_a_damaged_warmup_is_trained_and_left_anew(few: Inputs, trained: list[int], tmp_path: Path) -> None:
    config = tiny("guide_umap", epochs=4)
    straight = drive(few, config, warmups=tmp_path)[0]
    (left,) = tmp_path.iterdir()
    sound = left.read_bytes()
    left.write_bytes(sound[:-1])
    trained.clear()
    again = drive(few, config, warmups=tmp_path)[0]
    assert trained == [0, 1, 2, 3] and lasting(again) == lasting(straight)
    trained.clear()
    drive(few, config, warmups=tmp_path)
    assert trained == [3] and left.stat().st_size == len(sound)


def test_a_warmup_is_shared_by_those_that_differ_in_their_loss_only(
    few: Inputs, trained: list[int], tmp_path: Path
) -> None:
    config = tiny("guide_umap", epochs=4)
    drive(few, config, warmups=tmp_path)
    rate = config.train.model_copy(update={"learning_rate": 0.002})
    for other, seed, epochs in (
        (tiny("triplet", epochs=4), 0, [3]),
        (tiny("ce", epochs=4), 0, [0, 1, 2, 3]),  # its layer is in the optimiser
        (config.model_copy(update={"train": rate}), 0, [0, 1, 2, 3]),
        (config, 1, [0, 1, 2, 3]),
    ):
        trained.clear()
        taken = drive(few, other, seed=seed, warmups=tmp_path)[0]
        assert trained == epochs and lasting(taken) == lasting(drive(few, other, seed=seed)[0])
    assert warmup_key(with_loss(config, lowpass=0.0)) == warmup_key(config)
    assert warmup_key(config.model_copy(update={"embedding": Embedding(warmup=False)})) is None


def test_another_process_gives_the_same_bits(straight: FoldResult, quick: Config, cache: Path) -> None:
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from guided.config import Config, Data\n"
        "from guided.data import load_dataset\n"
        "from guided.folds import make_folds\n"
        "from guided.guide import load_guide\n"
        "from guided.train import run_fold\n"
        "torch.set_num_threads(1)\n"
        "config = Config.model_validate_json(sys.argv[1])\n"
        "data = load_dataset(Data(source='synthetic', size=24, cells=600), Path(sys.argv[2]), progress=False)\n"
        "fold = make_folds(data, config.folds)[0]\n"
        "run = run_fold(data, fold, load_guide(config.guide, data.classes), config, seed=0)\n"
        "while True:\n"
        "    try:\n"
        "        next(run)\n"
        "    except StopIteration as end:\n"
        "        print(end.value.embedding.tobytes().hex())\n"
        "        break\n"
    )
    command = [sys.executable, "-c", code, quick.model_dump_json(), str(cache)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.strip() == straight.embedding.tobytes().hex()


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    inputs: Inputs, quick: Config, straight: FoldResult, tmp_path: Path
) -> None:
    drive(inputs, quick, stop=4, checkpoint=tmp_path)
    newest = max(tmp_path.glob("epoch-*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-100])
    rest, result = drive(inputs, quick, checkpoint=tmp_path)
    assert [epoch["epoch"] for epoch in rest] == [3, 4, 5]
    assert result is not None and np.array_equal(result.embedding, straight.embedding)


@pytest.mark.parametrize("damage", [lambda body: b"", lambda body: body[:40], lambda body: body[:-1] + b"?"])
def test_no_sound_checkpoint_is_refused_loudly(
    inputs: Inputs, quick: Config, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    drive(inputs, quick, stop=2, checkpoint=tmp_path)
    for path in tmp_path.glob("epoch-*.ckpt"):
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="no sound checkpoint"):
        drive(inputs, quick, checkpoint=tmp_path)


def test_patience_ends_a_run(inputs: Inputs, quick: Config) -> None:
    config = quick.model_copy(update={"train": quick.train.model_copy(update={"patience": 1})})
    result = drive(inputs, config)[1]
    assert result is not None
    scores = [epoch["val/f1_macro"] for epoch in result.history]
    if len(scores) < quick.train.epochs:
        assert scores[-1] <= max(scores[:-1])
    for stopped in range(1, len(scores) - 1):
        assert scores[stopped] > max(scores[:stopped]), "it would have stopped here already"


def test_seeds_differ_and_folds_stay(inputs: Inputs, quick: Config, straight: FoldResult) -> None:
    other = drive(inputs, quick, seed=1)[1]
    assert other is not None
    assert np.array_equal(other.test_rows, straight.test_rows)
    assert other.history[0]["train/loss"] != straight.history[0]["train/loss"]


def test_a_loss_that_leaves_the_finite_numbers_diverges(inputs: Inputs, quick: Config) -> None:
    config = quick.model_copy(update={"train": quick.train.model_copy(update={"learning_rate": 1e30})})
    with pytest.raises(Diverged, match="epoch 0") as caught:
        drive(inputs, config)
    assert caught.value.history == []


def test_cuda_that_is_not_there_raises(inputs: Inputs, quick: Config) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(RuntimeError, match="sees no CUDA device"):
        next(run_fold(*inputs, quick, seed=0, device="cuda"))


def test_less_than_a_batch_is_refused(inputs: Inputs, quick: Config) -> None:
    config = quick.model_copy(update={"train": quick.train.model_copy(update={"batch_size": 5000})})
    with pytest.raises(ValueError, match="less than one batch of 5000"):
        drive(inputs, config)


def test_test_cells_are_touched_once_and_only_at_the_end(
    inputs: Inputs, quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, fold, _ = inputs
    seen: list[np.ndarray] = []
    from guided.augment import Images

    plain = Images.batch

    def spy(self: Images, rows: np.ndarray) -> Any:
        seen.append(np.array(rows))
        return plain(self, rows)

    monkeypatch.setattr(Images, "batch", spy)
    drive(inputs, quick, stop=3)
    assert not np.isin(np.concatenate(seen), fold.test).any()
    seen.clear()
    drive(inputs, quick)
    touched = np.concatenate(seen)
    assert np.array_equal(np.sort(touched[np.isin(touched, fold.test)]), fold.test)


def test_unopened_components_are_zero_everywhere_downstream(inputs: Inputs, quick: Config) -> None:
    config = quick.model_copy(update={"embedding": quick.embedding.model_copy(update={"factor": 1})})
    result = drive(inputs, config)[1]
    assert result is not None
    assert [epoch["embedding/length"] for epoch in result.history] == [2, 2, 2, 3, 4, 5]
    assert result.embedding.shape[1] == result.metrics["best/length"] <= 5
    if result.metrics["best/length"] < 6:
        assert any(note.startswith("length") for note in result.notes)


def test_balanced_sampling_draws_every_class_equally_often(inputs: Inputs, quick: Config) -> None:
    data, fold, guide = inputs
    config = quick.model_copy(update={"train": quick.train.model_copy(update={"balance": "sampler"})})
    run = _Run(data, fold, guide, config, 0, torch.device("cpu"))
    drawn = np.concatenate([run._order(np.random.default_rng(k)) for k in range(40)])
    present = np.unique(data.labels[fold.train])
    share = np.bincount(data.labels[drawn], minlength=len(data.classes))[present] / len(drawn)
    assert np.allclose(share, 1 / len(present), rtol=0.15)


# --- every loss through the loop ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few(inputs: Inputs) -> Inputs:
    """A quarter of the fold, for runs of half a second."""
    data, fold, guide = inputs
    return data, dataclasses.replace(fold, train=fold.train[::4], validation=fold.validation[::4]), guide


def tiny(loss: str, **train: Any) -> Config:
    options = {"guide_umap": {"n_neighbors": 5, "fit_epochs": 5}}.get(loss, {})
    return Config.model_validate_json(
        json.dumps(
            {
                "loss": {"name": loss, **options},
                "embedding": {"length": 4, "factor": 1},
                "backbone": {"name": "densenet_small"},
                "train": {"epochs": 5, "batch_size": 32, "learning_rate": 0.003, "weight_decay": 0.01, **train},
                "classifier": {"families": ["knn"]},
                "validation": {"classifier": "centroid"},
            }
        )
    )


@pytest.mark.parametrize("loss", sorted(LOSSES))
class TestEveryLoss:
    def test_resumed_at_any_epoch_it_goes_straight(
        self, few: Inputs, loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The last epoch counts as the best, so that what the result says is the method's, not the warm-up's."""
        monkeypatch.setattr("guided.train.macro_f1", rising := Rising())
        config = tiny(loss)
        straight = drive(few, config)[1]
        assert straight is not None
        own = f"train/loss_{loss}"
        assert [own in epoch for epoch in straight.history[3:]] == [True, True]
        assert "train/loss_guide2d" in straight.history[2], "the warm-up trains guide2D whatever the method"
        assert straight.metrics["best/epoch"] == 4 and straight.embedding.shape[1] == 4
        draws = loss in ("guide2d", "guide_umap", "prototype")
        assert (straight.guide is not None) == draws
        for stop in (3, 4, 5):
            rising.calls = 0
            folder = tmp_path / str(stop)
            drive(few, config, stop=stop, checkpoint=folder)
            _, result = drive(few, config, checkpoint=folder)
            assert result is not None and lasting(result.history) == lasting(straight.history)
            assert np.array_equal(result.embedding, straight.embedding)
            assert not draws or np.array_equal(result.guide, straight.guide)  # type: ignore[arg-type]
            heads = [{key: value for key, value in run.metrics.items() if "head" in key} for run in (result, straight)]
            assert heads[0] == heads[1]

    def test_what_leaves_the_finite_numbers_diverges(self, few: Inputs, loss: str) -> None:
        config = tiny(loss, learning_rate=1e30, epochs=1)
        config = config.model_copy(
            update={"embedding": config.embedding.model_copy(update={"warmup": False, "growing": False})}
        )
        with pytest.raises(Diverged, match="epoch 0: the training loss is"):
            drive(few, config)


class Rising:
    """In place of macro-F1: every epoch scores better than the one before it."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, true: np.ndarray, predicted: np.ndarray, classes: int) -> float:
        self.calls += 1
        return self.calls + macro_f1(true, predicted, classes) / 2


def test_a_head_is_scored_beside_the_classifier(few: Inputs) -> None:
    """Only where the loss has one, and only once it is trained; the test cells by the head of the best epoch."""
    config = tiny("ce")
    config = config.model_copy(
        update={"embedding": config.embedding.model_copy(update={"warmup": False, "growing": False})}
    )
    data, fold, guide = few
    run = _Run(data, fold, guide, config, 0, torch.device("cpu"))
    by_epoch = []
    while not run.over:
        record = run.epoch()
        embedded = run.embed(fold.validation, 4)
        by_epoch.append((run.loss.state(), run.embed(fold.test, 4)))
        predicted = run.loss.predict(embedded)
        assert predicted is not None
        assert record["val/f1_macro_head"] == macro_f1(data.labels[fold.validation], predicted, len(data.classes))
    result = run.finish()
    head, test = by_epoch[int(result.metrics["best/epoch"])]
    logits = test @ head["weight"].numpy() + head["bias"].numpy()
    expected = macro_f1(data.labels[fold.test], logits.argmax(1), len(data.classes))
    assert result.metrics["test/f1_macro_head"] == pytest.approx(expected)
    assert result.guide is None


def test_a_head_that_was_not_trained_has_no_score(few: Inputs) -> None:
    result = drive(few, tiny("ce", epochs=2))[1]
    assert result is not None
    assert not any("head" in key for epoch in result.history for key in epoch)
    assert "test/f1_macro_head" not in result.metrics and "best epoch lies in the warm-up" in result.notes
    assert result.guide is not None, "at the best epoch the cells were drawn to the drawing"


def test_the_head_learns_what_it_is_trained_for(inputs: Inputs) -> None:
    config = tiny("ce", epochs=6, learning_rate=0.01, weight_decay=0.0)
    config = config.model_copy(
        update={"embedding": config.embedding.model_copy(update={"length": 16, "warmup": False, "growing": False})}
    )
    result = drive(inputs, config)[1]
    assert result is not None
    assert result.history[-1]["train/loss_ce"] < 0.8 * result.history[0]["train/loss_ce"]
    assert max(epoch["val/f1_macro_head"] for epoch in result.history) > 0.15  # chance: 1/15 at best


def test_the_norm_term_is_off_beside_cross_entropy_but_on_in_its_warmup(few: Inputs) -> None:
    norms = {}
    for loss in ("ce", "hierarchical_ce", "triplet", "prototype"):
        epochs, _ = drive(few, tiny(loss, epochs=4))
        norms[loss] = [epoch["train/loss_norm"] > 0 for epoch in epochs]
    assert norms["ce"] == norms["hierarchical_ce"] == [True, True, True, False]
    assert norms["triplet"] == norms["prototype"] == [True] * 4
    config = tiny("ce", epochs=4)
    config = config.model_copy(update={"norm": config.norm.model_copy(update={"weight": 0.001})})
    assert all(epoch["train/loss_norm"] > 0 for epoch in drive(few, config)[0])


def test_weights_are_those_of_the_training_cells_and_leave_the_norm_term(few: Inputs) -> None:
    data, fold, guide = few
    run = _Run(data, fold, guide, tiny("ce", balance="weights"), 0, torch.device("cpu"))
    expected = class_weights(data.labels[fold.train], len(data.classes))
    for loss in (run.loss, run.warmup_loss):
        assert loss._weights is not None and np.allclose(loss._weights.numpy(), expected)
    plain, weighted = (drive(few, tiny("ce", balance=balance, epochs=1))[0][0] for balance in ("none", "weights"))
    assert plain["train/loss_guide2d"] != weighted["train/loss_guide2d"]
    # One step of a batch of all cells, before anything was trained: the norm term sees the same embedding.
    whole = {"epochs": 1, "batch_size": len(fold.train)}
    plain, weighted = (drive(few, tiny("ce", balance=balance, **whole))[0][0] for balance in ("none", "weights"))
    assert plain["train/loss_norm"] == weighted["train/loss_norm"]


def test_bf16_changes_the_trunk_only_and_little(few: Inputs) -> None:
    exact, coarse = (drive(few, tiny("ce", precision=precision))[1] for precision in ("fp32", "bf16"))
    assert exact is not None and coarse is not None
    assert exact.history[0]["train/loss"] != coarse.history[0]["train/loss"]
    assert exact.history[0]["train/loss"] == pytest.approx(coarse.history[0]["train/loss"], rel=0.02)
    data, fold, guide = few
    run = _Run(data, fold, guide, tiny("ce", precision="bf16"), 0, torch.device("cpu"))
    embedded = run.embed(fold.validation, 4)
    assert embedded.dtype == np.float32
    assert (embedded != torch.from_numpy(embedded).bfloat16().float().numpy()).any(), "the head is not bf16"


def test_tf32_is_fp32_without_cuda(few: Inputs) -> None:
    exact, same = (drive(few, tiny("ce", precision=precision, epochs=1))[0] for precision in ("fp32", "tf32"))
    assert lasting(exact) == lasting(same)


# --- on all cells ---------------------------------------------------------------------------------------------------


def drive_all(inputs: Inputs, config: Config, lengths: list[int], **more: Any) -> tuple[list[Epoch], Fitted]:
    data, fold, guide = inputs
    epochs = fit_all(data, fold.train, guide, config, lengths, seed=0, **more)
    records = []
    while True:
        try:
            records.append(next(epochs))
        except StopIteration as end:
            return records, end.value


def test_all_cells_are_trained_by_the_loop_of_a_fold_run(inputs: Inputs, quick: Config, straight: FoldResult) -> None:
    data, fold, guide = inputs
    run = _Run(data, AllCells(fold.train, index=fold.index), guide, quick, 0, torch.device("cpu"))
    for record in lasting(straight.history[:5]):  # through warm-up, growth and refresh
        (own,) = lasting([run.unjudged_epoch(int(record["embedding/length"]))])
        assert own == {key: record[key] for key in own}


def test_the_fitted_network_has_the_length_of_its_last_epoch(few: Inputs, quick: Config, tmp_path: Path) -> None:
    data, fold, _ = few
    records, fitted = drive_all(few, quick, [2, 2, 2, 4])
    assert len(records) == 4 and fitted.embedding.shape == (len(fold.train), 4) and not fitted.on_drawing
    images = torch.from_numpy(np.array(data.images[fold.train[:8]])).permute(0, 3, 1, 2).float()
    mean, sd = (torch.as_tensor(part).reshape(1, 3, 1, 1) for part in (fitted.pixel_mean, fitted.pixel_sd))
    with torch.no_grad():
        again = fitted.net((images - mean) / sd, 4).numpy()
    assert again == pytest.approx(fitted.embedding[:8], rel=1e-3, abs=1e-4)
    assert drive_all(few, quick, [2, 2])[1].on_drawing, "the warm-up draws to the guide"
    # Stopped after two epochs and begun again: the same network.
    data, fold, guide = few
    begun = fit_all(data, fold.train, guide, quick, [2, 2, 2, 4], seed=0, checkpoint=tmp_path / "state")
    next(begun), next(begun)
    begun.close()
    records, resumed = drive_all(few, quick, [2, 2, 2, 4], checkpoint=tmp_path / "state")
    assert len(records) == 2 and (resumed.embedding == fitted.embedding).all()
    with pytest.raises(ValueError, match="no epochs"):
        drive_all(few, quick, [])


def test_a_result_has_the_class_means_of_its_training_cells(inputs: Inputs, straight: FoldResult) -> None:
    data, fold, _ = inputs
    assert straight.anchors.shape == (len(data.classes), straight.embedding.shape[1])
    absent = np.setdiff1d(np.arange(len(data.classes)), data.labels[fold.train])
    assert (np.flatnonzero(np.isnan(straight.anchors).any(1)) == absent).all()


# --- kept embeddings ------------------------------------------------------------------------------------------------


def alike(result: FoldResult, other: FoldResult) -> None:
    """Equal bit for bit in everything but times."""
    assert lasting([result.metrics]) == lasting([other.metrics])
    assert lasting(result.history) == lasting(other.history)
    for name in (field.name for field in dataclasses.fields(FoldResult) if field.name not in ("metrics", "history")):
        first, second = getattr(result, name), getattr(other, name)
        if isinstance(first, np.ndarray):
            assert first.dtype == second.dtype and np.array_equal(first, second, equal_nan=first.dtype.kind == "f"), (
                name
            )
        else:
            assert first == second, name


def with_classifier(config: Config, **options: Any) -> Config:
    return config.model_copy(update={"classifier": config.classifier.model_copy(update=options)})


@pytest.mark.parametrize("loss", ["guide2d", "ce"])
def test_a_kept_embedding_gives_what_a_training_gives(
    few: Inputs, trained: list[int], tmp_path: Path, loss: str
) -> None:
    """Another grid, a truncation, both: without an epoch, and bit for bit what a fold run of their own finds."""
    config = tiny(loss, epochs=2).model_copy(update={"embedding": Embedding(length=4, warmup=False, growing=False)})
    drive(few, config, embeddings=tmp_path, keep=True)
    for options in ({}, {"families": ("svm",), "components": 2}, {"knn_k": (3,), "components": 3}):
        other = with_classifier(config, **options)
        trained.clear()
        epochs, taken = drive(few, other, embeddings=tmp_path)
        assert epochs == [] and trained == [] and taken is not None
        own = drive(few, other)[1]
        assert own is not None and trained == [0, 1]
        alike(taken, own)
    assert taken.embedding.shape[1] == taken.anchors.shape[1] == 3
    assert taken.metrics["best/length"] == 4 and np.ptp(taken.embedding.astype(float), axis=0).min() > 0


def test_an_embedding_is_taken_only_where_nothing_before_it_differs(
    few: Inputs, trained: list[int], tmp_path: Path
) -> None:
    data, _, guide = few
    config = tiny("guide2d", epochs=1)
    drive(few, config, embeddings=tmp_path, keep=True)
    rate = config.model_copy(update={"train": config.train.model_copy(update={"learning_rate": 0.002})})
    other_fold = (data, make_folds(data, config.folds)[1], guide)
    other_guide = (data, few[1], dataclasses.replace(guide, points=guide.points * 2))
    for inputs, variant, seed in ((few, rate, 0), (few, config, 1), (other_fold, config, 0), (other_guide, config, 0)):
        trained.clear()
        drive(inputs, variant, seed=seed, embeddings=tmp_path)
        assert trained == [0]
    assert len(list(tmp_path.iterdir())) == 1, "what was not asked to be kept is not"


def test_a_damaged_embedding_is_trained_and_left_anew(few: Inputs, trained: list[int], tmp_path: Path) -> None:
    config = tiny("guide2d", epochs=1)
    drive(few, config, embeddings=tmp_path, keep=True)
    (left,) = tmp_path.iterdir()
    left.write_bytes(left.read_bytes()[:-1])
    drive(few, config, embeddings=tmp_path, keep=True)
    drive(few, config, embeddings=tmp_path, keep=True)
    assert trained == [0, 0] and read_kept(left) is not None


def test_what_an_embedding_depends_on(quick: Config) -> None:
    """The classifier comes after it, unless its grid scores the epochs; what it sees of the components always does."""
    for options in ({"families": ("mlp",)}, {"svm_c": (7.0,)}, {"inner_folds": 2}, {"components": 2}):
        assert embedding_key(with_classifier(quick, **options)) == embedding_key(quick)
    grid = quick.model_copy(update={"validation": Validation(classifier="grid")})
    assert embedding_key(grid) != embedding_key(quick)
    assert embedding_key(with_classifier(grid, svm_c=(7.0,))) != embedding_key(grid)
    assert embedding_key(with_classifier(grid, components=2)) == embedding_key(grid)


def test_a_truncation_has_an_id_of_its_own_only_where_it_says_something(quick: Config) -> None:
    length = quick.embedding.length
    assert "components" not in quick.model_dump(mode="json")["classifier"], "ids of before there were truncations stand"
    assert with_classifier(quick, components=length).id == with_classifier(quick, components=length + 9).id == quick.id
    assert len({with_classifier(quick, components=count).id for count in (1, 2, length)}) == 3


def test_a_model_of_a_truncated_variant_gives_as_many_components(few: Inputs) -> None:
    config = with_classifier(tiny("guide2d", epochs=1), components=3)
    generator = fit_all(few[0], few[1].train, few[2], config, [5], seed=0)
    next(generator)
    with pytest.raises(StopIteration) as end:
        next(generator)
    fitted: Fitted = end.value.value
    assert fitted.embedding.shape[1] == fitted.net.head.out_features == 3
