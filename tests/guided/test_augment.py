"""Images on the device: statistics against numpy's, changes that are exact where they can be."""

from __future__ import annotations

from math import pi
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guided.augment import Images, channel_statistics, quarter_turned, rotated
from guided.config import Augment

STILL = Augment(flips=False, rotation="none", stain=0.0, light=0.0)


@pytest.fixture(scope="module")
def batch() -> torch.Tensor:
    values = np.random.default_rng(0).standard_normal((6, 3, 17, 17)).astype(np.float32)
    return torch.from_numpy(values)


def augmented(batch: torch.Tensor, config: Augment, rng: np.random.Generator) -> torch.Tensor:
    """Images whose pixels are already normalised."""
    images = Images(batch.permute(0, 2, 3, 1).contiguous(), torch.zeros(3), torch.ones(3))
    return images.augmented(np.arange(len(batch)), config, rng)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), cells=st.integers(1, 150), size=st.integers(1, 9))
def test_statistics_are_numpys(seed: int, cells: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (cells + 5, size, size, 3), dtype=np.uint8)
    rows = rng.permutation(cells + 5)[:cells]
    mean, sd = channel_statistics(images, rows)
    chosen = images[rows].astype(np.float64)
    np.testing.assert_allclose(mean, chosen.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(sd, np.maximum(chosen.std((0, 1, 2)), 1.0), rtol=1e-9)


def test_a_blank_channel_keeps_a_scale_of_one_grey_level() -> None:
    images = np.zeros((4, 5, 5, 3), np.uint8)
    images[..., 1] = 200
    mean, sd = channel_statistics(images, np.arange(4))
    assert mean.tolist() == [0, 200, 0] and sd.tolist() == [1, 1, 1]


def test_a_batch_is_normalised_by_the_training_cells_only() -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    images[15:] //= 8  # the others are darker, and must not be looked at
    train = np.arange(15)
    found = Images.of(images, train, torch.device("cpu")).batch(np.arange(20))
    assert found.shape == (20, 3, 8, 8) and found.dtype == torch.float32
    training = images[:15].astype(np.float64)
    expected = (images - training.mean((0, 1, 2))) / training.std((0, 1, 2))
    np.testing.assert_allclose(found.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)


def test_rows_come_in_the_order_asked_for_from_an_array_that_is_only_read() -> None:
    images = np.arange(10 * 4 * 4 * 3, dtype=np.uint8).reshape(10, 4, 4, 3)
    images.flags.writeable = False
    made = Images.of(images, np.arange(10), torch.device("cpu"))
    whole = made.batch(np.arange(10))
    assert torch.equal(made.batch(np.array([7, 2, 7])), whole[[7, 2, 7]])


def test_nothing_changes_where_nothing_is_asked(batch: torch.Tensor) -> None:
    assert torch.equal(augmented(batch, STILL, np.random.default_rng(0)), batch)


@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
@pytest.mark.parametrize("mirror", [False, True])
def test_quarter_turns_and_flips_are_exact(batch: torch.Tensor, quarter: int, mirror: bool) -> None:
    size = len(batch)
    expected = torch.rot90(batch, quarter, (2, 3))
    if mirror:
        expected = expected.flip(3)
    mirrored = np.full(size, mirror)
    assert torch.equal(quarter_turned(batch, np.full(size, quarter), mirrored), expected)
    found = rotated(batch, np.full(size, quarter * pi / 2), mirrored)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_each_image_gets_its_own_turn(batch: torch.Tensor) -> None:
    angle = np.array([0, pi / 2, pi, -pi / 2, 0.3, 0.3])
    mirrored = np.array([False, True, False, True, False, True])
    together = rotated(batch, angle, mirrored)
    for k in range(len(batch)):
        torch.testing.assert_close(
            together[k : k + 1], rotated(batch[k : k + 1], angle[k : k + 1], mirrored[k : k + 1])
        )


def test_a_turn_and_its_reverse_give_a_smooth_image_back() -> None:
    axis = torch.linspace(-1, 1, 65)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    spot = torch.exp(-((x - 0.3) ** 2 + (y + 0.2) ** 2) / 0.1).expand(1, 3, 65, 65)
    there = rotated(spot, np.array([0.7]), np.array([False]))
    back = rotated(there, np.array([-0.7]), np.array([False]))
    assert (there - spot).abs().max() > 0.3
    assert (back - spot)[..., 16:-16, 16:-16].abs().max() < 0.02


def test_flips_alone_give_the_four_symmetries_each_equally_often(batch: torch.Tensor) -> None:
    config = STILL.model_copy(update={"flips": True})
    one = batch[:1]
    symmetries = torch.cat([one, one.flip(3), one.flip(2), one.flip((2, 3))])
    many = augmented(one.expand(400, -1, -1, -1), config, np.random.default_rng(3))
    apart = (many[:, None] - symmetries[None]).abs().amax((2, 3, 4))
    assert (apart.amin(1) < 2e-5).all()
    assert (torch.bincount(apart.argmin(1), minlength=4) - 100).abs().max() < 35


def test_quarter_turns_mix_the_eight_symmetries_of_a_batch(batch: torch.Tensor) -> None:
    one = batch[:1]
    symmetries = torch.cat([turn for k in range(4) for turn in (one.rot90(k, (2, 3)), one.rot90(k, (2, 3)).flip(3))])
    config = STILL.model_copy(update={"flips": True, "rotation": "quarter"})
    many = augmented(one.expand(800, -1, -1, -1), config, np.random.default_rng(3))
    same = (many[:, None] == symmetries[None]).flatten(2).all(2)
    assert (same.sum(1) == 1).all() and (same.sum(0) - 100).abs().max() < 40
    turns_only = augmented(
        one.expand(80, -1, -1, -1), config.model_copy(update={"flips": False}), np.random.default_rng(3)
    )
    assert not (turns_only[:, None] == symmetries[None, 1::2]).flatten(2).all(2).any()


@pytest.mark.parametrize("rotation", ["any", "quarter", "none"])
def test_a_seed_gives_the_same_batch_and_another_seed_another(
    batch: torch.Tensor, rotation: Literal["any", "quarter", "none"]
) -> None:
    config = Augment(rotation=rotation)
    first, again, other = (augmented(batch, config, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert first.shape == batch.shape and first.is_contiguous(memory_format=torch.channels_last)


def test_stain_and_light_are_gains_and_shifts_of_whole_channels(batch: torch.Tensor) -> None:
    def fitted(config: Augment) -> tuple[np.ndarray, np.ndarray]:
        """Slope and offset (B, 3) of each channel; the channels must be straight lines of what they were."""
        many = batch.repeat(50, 1, 1, 1)
        before = many.flatten(2).double().numpy()
        after = augmented(many, config, np.random.default_rng(0)).flatten(2).double().numpy()
        centred = before - before.mean(2, keepdims=True)
        slope = (centred * after).sum(2) / (centred**2).sum(2)
        offset = after.mean(2) - slope * before.mean(2)
        np.testing.assert_allclose(after, slope[..., None] * before + offset[..., None], atol=1e-5)
        return slope, offset

    slope, offset = fitted(STILL.model_copy(update={"light": 0.1}))
    np.testing.assert_allclose(slope, 1, atol=1e-5)
    np.testing.assert_allclose(offset, offset[:, :1].repeat(3, 1), atol=1e-5)
    assert offset.std() == pytest.approx(0.1, rel=0.2)
    slope, offset = fitted(STILL.model_copy(update={"stain": 0.05}))
    assert slope.std() == pytest.approx(0.05, rel=0.2) and offset.std() == pytest.approx(0.05, rel=0.2)
    assert abs(np.corrcoef(offset[:, 0], offset[:, 1])[0, 1]) < 0.3
