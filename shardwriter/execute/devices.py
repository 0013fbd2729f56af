"""Which devices encode: --device and --num_processes."""

import re
from collections.abc import Sequence

import torch

from iianet.errors import ConfigError
from iianet.launch import Launch
from iianet.wording import counted


def choose_device(name: str | None) -> torch.device:
    """The device that was asked for; by default the first GPU, or the CPU where there is none.

    Raises:
        ConfigError: It is no device that encodes, or is not on this machine.
    """
    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch("cpu|cuda(:[0-9]{1,3})?", name):
        raise ConfigError(
            f"--device {name}: found {name!r}, expected cpu, cuda or cuda:N, on which embeddings are made"
        )
    device, count = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and count == 0:
        raise ConfigError(f"--device {name}: no GPU found; use --device cpu, or leave --device out")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"--device {name}: found {counted(count, 'GPU')}, expected one from cuda:0 to cuda:{count - 1}"
        )
    return device


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
