"""Images on the device: normalisation and random changes of a whole batch at once."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
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
    mean: Tensor  # (3, 1, 1), of the training cells' channels, in 0-255
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
        shape = (3, 1, 1)
        return cls(
            pixels,
            torch.tensor(mean, dtype=torch.float32, device=device).reshape(shape),
            torch.tensor(sd, dtype=torch.float32, device=device).reshape(shape),
        )

    def batch(self, rows: np.ndarray) -> Tensor:
        """Normalised images of `rows` (B,), unchanged otherwise: (B, 3, H, W)."""
        chosen = self.pixels[torch.from_numpy(rows).to(self.pixels.device)]
        return (chosen.permute(0, 3, 1, 2).float() - self.mean) / self.sd


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


def augmented(batch: Tensor, config: Augment, rng: np.random.Generator) -> Tensor:
    """Random flips, rotation, stain (a gain per channel) and light (a common gain) of batch (B, 3, H, W), H = W.

    Geometry and colours are drawn from `rng` on the host, so a seed gives the same changes on every device. Flips and
    quarter turns move pixels and change none; a rotation by any angle interpolates, and fills the corners it turns in
    by reflection. The gains act on normalised values, around the data's mean.
    """
    size = len(batch)
    mirrored = rng.random(size) < 0.5 if config.flips else np.zeros(size, dtype=bool)
    if config.rotation == "any":
        batch = rotated(batch, rng.uniform(0, 2 * pi, size), mirrored)
    elif config.rotation == "quarter":
        batch = quarter_turned(batch, rng.integers(0, 4, size), mirrored)
    elif config.flips:  # left to right and top to bottom: together half a turn
        batch = quarter_turned(batch, 2 * rng.integers(0, 2, size), mirrored)
    gain = 1 + config.stain * rng.standard_normal((size, 3, 1, 1))
    shift = config.light * rng.standard_normal((size, 1, 1, 1)) + config.stain * rng.standard_normal((size, 3, 1, 1))
    changed = batch * torch.from_numpy(gain).to(batch) + torch.from_numpy(shift).to(batch)
    return changed.contiguous(memory_format=torch.channels_last)


def rotated(batch: Tensor, angle: np.ndarray, mirrored: np.ndarray) -> Tensor:
    """Square images (B, 3, H, H), each turned counter-clockwise by `angle` (B,) radians, bilinearly, and then mirrored
    left to right where `mirrored` (B,). Corners that a rotation turns in are filled by reflection."""
    theta = np.zeros((len(batch), 2, 3), dtype=np.float32)
    theta[:, 0, 0], theta[:, 0, 1] = np.cos(angle) * np.where(mirrored, -1, 1), -np.sin(angle)
    theta[:, 1, 0], theta[:, 1, 1] = np.sin(angle) * np.where(mirrored, -1, 1), np.cos(angle)
    grid = F.affine_grid(torch.from_numpy(theta).to(batch.device), list(batch.shape), align_corners=False)
    return F.grid_sample(batch, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def quarter_turned(batch: Tensor, turns: np.ndarray, mirrored: np.ndarray) -> Tensor:
    """The same pixel for pixel, by `turns` (B,) in 0..3 quarters."""
    out = torch.empty_like(batch)
    for quarter in range(4):
        for mirror in (False, True):
            rows = torch.from_numpy(np.flatnonzero((turns == quarter) & (mirrored == mirror))).to(batch.device)
            if len(rows):
                part = torch.rot90(batch[rows], quarter, (2, 3))
                out[rows] = part.flip(3) if mirror else part
    return out
