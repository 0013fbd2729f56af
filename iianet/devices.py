"""Devices for training: the requested ones that exist, and the cores of this process."""

import logging
import os
from collections.abc import Sequence

import torch

from iianet.errors import ConfigError
from iianet.launch import Launch
from iianet.wording import counted

logger = logging.getLogger(__name__)


def training_devices(
    requested: Sequence[int] | int | None, launch: Launch | None = None
) -> tuple[str, list[int] | int]:
    """Choose accelerator and devices for the Trainer.

    Args:
        requested: training.gpus: indices of GPUs, how many, or None for one if there is any.
        launch: Processes that a launcher started; each has a device of its own, so they decide how many.

    Returns:
        "gpu" and the indices that exist; or "cpu", and 1 or as many ranks as were started on this machine.

    Raises:
        ConfigError: `requested` contradicts the launch, or this machine has fewer GPUs than it has ranks.
    """
    count = torch.cuda.device_count()
    if requested is None:
        requested = (launch.local_size if launch else 1) if count else 0
    indices = list(range(requested)) if isinstance(requested, int) else list(dict.fromkeys(requested))
    existing = [index for index in indices if 0 <= index < count]
    if launch is not None:
        _refuse_other_count(indices, existing, launch)
    if existing != indices:
        used = f"GPUs {existing}" if existing else "the CPU"
        logger.warning(
            "training.gpus asks for %s; found %s on this machine, using %s", indices, counted(count, "GPU"), used
        )
    return ("gpu", existing) if existing else ("cpu", launch.local_size if launch else 1)


def usable_cores() -> int:
    """Cores that this process may use; where the system does not say (macOS), those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _refuse_other_count(indices: Sequence[int], existing: Sequence[int], launch: Launch) -> None:
    """Raise ConfigError where a launcher started more or fewer ranks than there are devices for them."""
    started = f"{launch.by} started {counted(launch.local_size, 'rank')} on this machine"
    if indices and len(indices) != launch.local_size:
        raise ConfigError(
            f"training.gpus asks for {counted(len(indices), 'device')}, {list(indices)}, and {started}; start as many "
            f"ranks as devices, or give --set training.gpus={launch.local_size}"
        )
    if existing and len(existing) < launch.local_size:
        raise ConfigError(
            f"{started}, which has {counted(torch.cuda.device_count(), 'GPU')}; start no more ranks than GPUs"
        )
