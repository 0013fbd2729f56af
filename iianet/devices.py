"""Devices for training: those wished for that exist."""

import logging
from collections.abc import Sequence

import torch

logger = logging.getLogger(__name__)


def training_devices(wished: Sequence[int] | int | None) -> tuple[str, list[int] | int]:
    """Accelerator and devices for the Trainer.

    Args:
        wished: training.gpus: indices of GPUs, how many, or None for one where there is one.

    Returns:
        "gpu" and the indices that exist, else "cpu" and 1.
    """
    if wished is None:
        wished = min(torch.cuda.device_count(), 1)
    indices = list(range(wished)) if isinstance(wished, int) else list(dict.fromkeys(wished))
    existing = [index for index in indices if 0 <= index < torch.cuda.device_count()]
    if existing != indices:
        taken = f"GPUs {existing}" if existing else "the CPU"
        logger.warning(
            "training.gpus asks for %s; this machine has %d, so %s is taken", indices, torch.cuda.device_count(), taken
        )
    return ("gpu", existing) if existing else ("cpu", 1)
