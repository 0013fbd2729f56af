"""How an encoder computes: arithmetic, layout, and how many frames at a time.

BatchNorm is folded into the convolutions, and TF32 is off. All settings give the same embeddings up to rounding: in
float32 to 1e-6 of the largest value, in bfloat16 to 1e-2. They are recorded in a store's identity, so that whatever is
encoded for it later rounds as it did.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PRECISIONS = {"float32": "float32", "bf16": "bfloat16"}
"""What users write, and the arithmetic that it names."""


@contextmanager
def exact_kernels(device: torch.device) -> Iterator[None]:
    """Full float32 and repeatable kernels, whatever precision a Trainer has set around the encoder."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    tf32 = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with (
            torch.autocast(device.type, enabled=False),
            cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            yield
    finally:
        matmul.allow_tf32 = tf32


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Settings of an encoder.

    Attributes:
        device: Type of device that the settings are for: cpu or cuda.
        dtype: Type of weights and features: float32 or bfloat16. Embeddings are float32 in any case.
        memory_format: Layout of features: contiguous (channel by channel) or channels_last.
        max_frames: Frames encoded at a time. It bounds the memory for features, in the lip encoder about 2 MB a frame
            of 88 rows, and less in proportion for fewer; the pixels of a whole pack, 8 KB a frame, are in memory at
            once.
    """

    device: str = "cpu"
    dtype: str = "float32"
    memory_format: str = "contiguous"
    max_frames: int = 64

    def record(self) -> dict[str, Any]:
        """The settings as the identity of a store holds them."""
        return {
            "device": self.device,
            "dtype": self.dtype,
            "tf32": False,
            "memory_format": self.memory_format,
            "batch_norm": "folded",
            "max_frames": self.max_frames,
        }

    def on(self, device: torch.device) -> "Kernels":
        """The same settings on their own type of device; on another type its default ones, of the same arithmetic."""
        return self if device.type == self.device else replace(_defaults(device), dtype=self.dtype)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Kernels":
        """The settings that the identity of a store holds.

        Raises:
            ValueError: A setting is unknown to this version.
        """
        allowed: dict[str, Collection[object]] = {
            "dtype": DTYPES,
            "memory_format": MEMORY_FORMATS,
            "batch_norm": ("folded",),
            "tf32": (False,),
        }
        for name, values in allowed.items():
            if not isinstance(record.get(name), str | bool) or record[name] not in values:
                raise ValueError(f"{name} {record.get(name)!r}; expected {' or '.join(map(str, values))}")
        frames = record.get("max_frames")
        if not isinstance(frames, int) or frames < 1:
            raise ValueError(f"max_frames {frames!r}; expected a whole number above 0")
        return cls(
            device=str(record.get("device")),
            dtype=record["dtype"],
            memory_format=record["memory_format"],
            max_frames=frames,
        )


_DEFAULTS = (
    Kernels(device="cpu", memory_format="channels_last", max_frames=32),
    Kernels(device="cuda", memory_format="channels_last", max_frames=1024),
)
"""Default settings of each type of device; those of a type that is not here are the defaults of Kernels."""


def _defaults(device: torch.device) -> Kernels:
    return next((kernels for kernels in _DEFAULTS if kernels.device == device.type), Kernels(device=device.type))


def default_kernels(device: torch.device, precision: str | None = None) -> Kernels:
    """What is quick on most devices of a type; `precision` is float32 (the default) or bf16.

    They are constants: settings measured on the spot would let the bytes of a store depend on the load of a machine.
    """
    return replace(_defaults(device), dtype=PRECISIONS[precision or "float32"])
