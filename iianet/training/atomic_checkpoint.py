"""Checkpoint files that appear whole or not at all, whenever a run is killed."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

PARTIAL_SUFFIX = ".partial"
"""Of a checkpoint that is being written; what a killed run leaves of one is written over by the next."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, syncs it and renames it.

    Lightning's own writes into the system's temporary folder and moves from there, which is a plain copy where that is
    another file system: a run killed within it leaves a broken checkpoint and no older one.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ARG002
    ) -> None:
        """Replace the file at `path`, a local one."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + PARTIAL_SUFFIX)  # only rank 0 writes
        with partial.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
