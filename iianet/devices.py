"""Devices for training: the requested ones that exist."""

import logging
from collections.abc import Sequence

import torch

from iianet.wording import counted

logger = logging.getLogger(__name__)


def training_devices(requested: Sequence[int] | int | None) -> tuple[str, list[int] | int]:
    """Choose accelerator and devices for the Trainer.

    Args:
        requested: training.gpus: indices of GPUs, how many, or None for one if there is any.

    Returns:
        "gpu" and the indices that exist, or "cpu" and 1.
    """
    if requested is None:
        requested = min(torch.cuda.device_count(), 1)
    indices = list(range(requested)) if isinstance(requested, int) else list(dict.fromkeys(requested))
    existing = [index for index in indices if 0 <= index < torch.cuda.device_count()]
    if existing != indices:
        used = f"GPUs {existing}" if existing else "the CPU"
        found = counted(torch.cuda.device_count(), "GPU")
        logger.warning("training.gpus asks for %s; found %s on this machine, using %s", indices, found, used)
    return ("gpu", existing) if existing else ("cpu", 1)
