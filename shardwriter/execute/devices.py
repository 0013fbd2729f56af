"""Which devices encode: --device and --num_processes."""

from collections.abc import Sequence

import torch

from iianet.errors import ConfigError
from iianet.launch import Launch, choose_device


def choose_devices(names: str | None, num_processes: int = 1, rank: Launch | None = None) -> Sequence[torch.device]:
    """The device of each process.

    Args:
        names: cpu, cuda (all GPUs), cuda:N, or some with commas between them; by default as `choose_device`.
        num_processes: Processes on each.
        rank: Of a job whose ranks share the GPUs of their machine.

    Raises:
        ConfigError: One is no device, is not here, or is named twice.
    """
    if names is None and torch.cuda.is_available() and rank is not None:
        names = "cuda"
    devices = [device for name in ([None] if names is None else names.split(",")) for device in _named(name, rank)]
    if len(set(devices)) < len(devices):
        raise ConfigError(f"--device {names}: names a device twice; --num_processes N starts N processes on each")
    return [device for device in devices for _ in range(num_processes)]


def _named(name: str | None, rank: Launch | None) -> list[torch.device]:
    device = choose_device(name)
    if name != "cuda":
        return [device]
    return [torch.device("cuda", index) for index in own_gpus(torch.cuda.device_count(), rank)]


def own_gpus(count: int, rank: Launch | None) -> Sequence[int]:
    """Which of the GPUs that a process sees are its own: all, or every so many-th, or one where ranks share it."""
    if rank is None:
        return range(count)
    return range(count)[rank.local :: rank.local_size] or [rank.local % count]
