"""A checkpoint is there whole or not at all."""

from pathlib import Path
from typing import IO, Any

import pytest
import torch

from iianet.training.last_checkpoint import AtomicCheckpointIO


def test_a_run_that_is_killed_while_it_saves_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, writer = tmp_path / "new" / "last.ckpt", AtomicCheckpointIO()
    writer.save_checkpoint({"step": 1}, path)

    def write_half(_: Any, stream: IO[bytes]) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", write_half)
        writer.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [found.name for found in path.parent.glob("*.ckpt")] == ["last.ckpt"]
    writer.save_checkpoint({"step": 3}, path)
    assert torch.load(path, weights_only=True) == {"step": 3}
    assert list(path.parent.iterdir()) == [path]
