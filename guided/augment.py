"""Images on the device: normalisation and random changes of a whole batch at once."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from math import pi

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from guided.config import Augment


@dataclass(frozen=True)
class Images:
    """A data set's images on one device, uint8 (N, H, W, 3), with the statistics of its training cells.

    Batches come out as float (B, 3, H, W) in channels-last memory, which is how they are stored.
    """

    pixels: Tensor
    mean: Tensor  # (3,), of the training cells' channels, in 0-255
    sd: Tensor

    @classmethod
    def of(cls, images: np.ndarray, train: np.ndarray, device: torch.device) -> Images:
        """Put images (N, H, W, 3) on `device`; statistics from the rows `train` only."""
        mean, sd = channel_statistics(images, train)
        if device.type == "cpu":
            # Stay in the memory map that all workers share; torch only reads from it.
            pixels = torch.from_numpy(images.view(np.ndarray)) if images.flags.writeable else _read_only(images)
        else:
            pixels = torch.from_numpy(np.array(images)).to(device)
        return cls(
            pixels,
            torch.tensor(mean, dtype=torch.float32, device=device),
            torch.tensor(sd, dtype=torch.float32, device=device),
        )

    def batch(self, rows: np.ndarray) -> Tensor:
        """Normalised images of `rows` (B,), unchanged otherwise: (B, 3, H, W)."""
        return self._normalised(self._chosen(rows))

    def augmented(self, rows: np.ndarray, config: Augment, rng: np.random.Generator) -> Tensor:
        """Normalised images of `rows` (B,) with random flips, rotation, stain (a gain per channel) and light (a common
        gain): (B, 3, H, W), H = W.

        Geometry and colours are drawn from `rng` on the host, so a seed gives the same changes on every device. Flips
        and quarter turns move pixels and change none, so they act on bytes; a rotation by any angle interpolates, and
        fills the corners it turns in by reflection. The gains act on normalised values, around the data's mean.
        """
        size = len(rows)
        images = self._chosen(rows)
        mirrored = rng.random(size) < 0.5 if config.flips else np.zeros(size, dtype=bool)
        if config.rotation == "any":
            batch = rotated(self._normalised(images), rng.uniform(0, 2 * pi, size), mirrored)
        else:
            if config.rotation == "quarter":
                images = quarter_turned(images, rng.integers(0, 4, size), mirrored)
            elif config.flips:  # left to right and top to bottom: together half a turn
                images = quarter_turned(images, 2 * rng.integers(0, 2, size), mirrored)
            batch = self._normalised(images)
        gain = 1 + config.stain * rng.standard_normal((size, 1, 3))
        shift = config.light * rng.standard_normal((size, 1, 1)) + config.stain * rng.standard_normal((size, 1, 3))
        _lines(batch).mul_(self._line(gain)).add_(self._line(shift))
        return batch

    def _chosen(self, rows: np.ndarray) -> Tensor:
        return self.pixels[torch.from_numpy(rows).to(self.pixels.device)].permute(0, 3, 1, 2)

    def _normalised(self, images: Tensor) -> Tensor:
        batch = images.to(torch.float32, memory_format=torch.channels_last)
        _lines(batch).sub_(self.mean.repeat(batch.shape[3])).div_(self.sd.repeat(batch.shape[3]))
        return batch

    def _line(self, values: np.ndarray) -> Tensor:
        """Values (B, 1, 3) of the channels for each pixel of a line: (B, 1, 3 W)."""
        on_device = torch.from_numpy(values).to(self.mean.device, torch.float32)
        return on_device.repeat(1, 1, self.pixels.shape[2])


def _lines(batch: Tensor) -> Tensor:
    """The memory of batch (B, 3, H, W), channels last, as lines of pixels (B, H, 3 W): arithmetic over channels runs
    along whole lines, not along three numbers at a time."""
    return batch.permute(0, 2, 3, 1).flatten(2)


def _read_only(images: np.ndarray) -> Tensor:
    # torch.from_numpy warns about arrays it could not write to; nothing here writes.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(images.view(np.ndarray))


def channel_statistics(images: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd (3,) of the channels of images uint8 (N, H, W, 3) over the cells `rows`, from exact counts."""
    counts = np.zeros((3, 256), dtype=np.int64)
    for start in range(0, len(rows), 64):
        block = images[rows[start : start + 64]].reshape(-1, 3)
        counts += [np.bincount(block[:, channel], minlength=256) for channel in range(3)]
    grey = np.arange(256)
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ grey
    variance = np.sum(share * (grey - mean[:, None]) ** 2, axis=1)
    return mean, np.sqrt(np.maximum(variance, 1.0))  # a blank channel keeps a scale of one grey level


def rotated(batch: Tensor, angle: np.ndarray, mirrored: np.ndarray) -> Tensor:
    """Square images (B, 3, H, H), each turned counter-clockwise by `angle` (B,) radians, bilinearly, and then mirrored
    left to right where `mirrored` (B,). Corners that a rotation turns in are filled by reflection."""
    theta = np.zeros((len(batch), 2, 3), dtype=np.float32)
    theta[:, 0, 0], theta[:, 0, 1] = np.cos(angle) * np.where(mirrored, -1, 1), -np.sin(angle)
    theta[:, 1, 0], theta[:, 1, 1] = np.sin(angle) * np.where(mirrored, -1, 1), np.cos(angle)
    grid = F.affine_grid(torch.from_numpy(theta).to(batch.device), list(batch.shape), align_corners=False)
    turned = F.grid_sample(batch, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return turned.contiguous(memory_format=torch.channels_last)


def quarter_turned(batch: Tensor, turns: np.ndarray, mirrored: np.ndarray) -> Tensor:
    """The same pixel for pixel, by `turns` (B,) in 0..3 quarters."""
    count, channels, side, _ = batch.shape
    sources = _sources(side, batch.device)[torch.from_numpy(2 * turns + mirrored).to(batch.device)]
    first = torch.arange(count, device=batch.device)[:, None] * side**2
    pixels = batch.permute(0, 2, 3, 1).reshape(-1, channels)
    turned = pixels.index_select(0, (first + sources).flatten())
    return turned.view(count, side, side, channels).permute(0, 3, 1, 2)


@lru_cache(maxsize=4)
def _sources(side: int, device: torch.device) -> Tensor:
    """The place (8, side²) each pixel comes from in each symmetry of a square, in the order 2 · quarters + mirrored."""
    places = torch.arange(side**2, device=device).view(side, side)
    turned = [torch.rot90(places, quarter) for quarter in range(4)]
    return torch.stack([kind for one in turned for kind in (one, one.flip(1))]).flatten(1)
