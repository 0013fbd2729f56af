"""Which devices encode: --device and --num_processes."""

from collections.abc import Sequence

import torch

from configs.errors import ConfigError


def choose_device(name: str | None) -> torch.device:
    """The device that was asked for; by default the first GPU, or the CPU where there is none."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: not a device; expected cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name}: this machine has {torch.cuda.device_count()} GPUs; give one of them or cpu"
        )
    return device


def choose_devices(names: str | None, num_processes: int = 1) -> Sequence[torch.device]:
    """The device of each process.

    Args:
        names: cpu, cuda (all GPUs), cuda:N, or some with commas between them; by default as `choose_device`.
        num_processes: Processes on each.

    Raises:
        ConfigError: One is no device, is not here, or is named twice.
    """
    devices = [device for name in (names.split(",") if names else [None]) for device in _named(name)]
    if len(set(devices)) < len(devices):
        raise ConfigError(f"--device {names}: names a device twice; --num_processes N starts N processes on each")
    return [device for device in devices for _ in range(num_processes)]


def _named(name: str | None) -> list[torch.device]:
    device = choose_device(name)
    if name == "cuda":
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [device]
