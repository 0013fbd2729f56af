"""Weights and inputs made by formula, and what the reference network answered to them.

The files in golden/ were written once by running JusperLee/IIANet itself in eval mode, its state dict filled by
`published_weights`: names.json holds its parameter names and shapes, the npz files a selection of its outputs. The
numbers come from RandomState, whose streams NumPy promises never to change.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"

PUBLISHED_CONFIG: dict[str, int] = {
    "out_channels": 128,
    "in_channels": 512,
    "vpre_channels": 512,
    "vin_channels": 64,
    "vout_channels": 64,
    "num_blocks": 16,
    "upsampling_depth": 5,
    "enc_kernel_size": 1,
    "num_sources": 1,
}
SMALL_CONFIG: dict[str, int] = {
    **PUBLISHED_CONFIG,
    "out_channels": 16,
    "in_channels": 32,
    "vin_channels": 8,
    "vout_channels": 8,
    "num_blocks": 6,
    "upsampling_depth": 4,
}


def published_shapes(network: str) -> dict[str, tuple[int, ...]]:
    """Published name -> shape for "separator", "separator_small" or "encoder"."""
    names: dict[str, dict[str, list[int]]] = json.loads((GOLDEN / "names.json").read_text())
    return {name: tuple(shape) for name, shape in names[network].items()}


def published_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Fill a state dict from names and shapes alone, scaled so that activations stay near one."""
    return {name: _fill(name, tuple(shape)) for name, shape in shapes.items()}


def uniform(seed: int, shape: Sequence[int]) -> Tensor:
    """Draw float32 values between -1 and 1, of any shape."""
    return torch.from_numpy(np.random.RandomState(seed).uniform(-1, 1, tuple(shape)).astype(np.float32))


def load_golden(name: str) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of one npz of golden/."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def selection(num_samples: int) -> npt.NDArray[np.int64]:
    """Indices of the samples of an estimate that golden/ holds: both ends whole, every seventh between."""
    return np.unique(np.r_[0:64, 64 : num_samples - 64 : 7, num_samples - 64 : num_samples])


def relative_difference(found: Tensor, expected: npt.NDArray[Any]) -> float:
    """Divide the largest difference by the largest expected magnitude."""
    return float(np.abs(found.numpy() - expected).max() / np.abs(expected).max())


def _fill(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    noise = uniform(zlib.crc32(name.encode()), shape)
    if name.endswith("running_var"):
        return 1 + noise / 2  # 0.5 to 1.5
    if len(shape) > 1:  # a convolution: unit variance for unit inputs, but no gain that iterations would multiply up
        return noise * min(1.0, math.sqrt(3 / math.prod(shape[1:])))
    if name.endswith("weight"):
        return 0.7 + noise / 2  # 0.2 to 1.2: scales of norms and slopes of PReLUs
    return noise / 10  # biases and running means
