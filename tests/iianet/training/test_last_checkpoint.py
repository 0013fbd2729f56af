"""A checkpoint is there whole or not at all."""

from pathlib import Path
from typing import IO, Any

import pytest
import torch

from iianet.errors import TrainingError, WeightsError
from iianet.training.last_checkpoint import AtomicCheckpointIO


def test_a_run_that_is_killed_while_it_saves_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, writer = tmp_path / "new" / "last.ckpt", AtomicCheckpointIO(tmp_path)
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


def test_only_files_are_deleted(tmp_path: Path) -> None:
    """Lightning's own would delete a folder with all that is in it."""
    folder, path = tmp_path / "old.ckpt", tmp_path / "new.ckpt"
    (folder / "thesis").mkdir(parents=True)
    path.write_bytes(b"")
    for each in (folder, path, tmp_path / "absent.ckpt"):
        AtomicCheckpointIO(tmp_path).remove_checkpoint(each)
    assert list(tmp_path.iterdir()) == [folder]
    assert (folder / "thesis").exists()


@pytest.mark.parametrize("name", ["../victim.ckpt", "link/victim.ckpt"])
def test_nothing_outside_the_runs_folder_is_deleted(tmp_path: Path, name: str) -> None:
    folder, victim = tmp_path / "run", tmp_path / "victim.ckpt"
    folder.mkdir()
    victim.write_bytes(b"kept")
    (folder / "link").symlink_to(tmp_path)
    (folder / "old.ckpt").symlink_to(victim)
    checkpoints = AtomicCheckpointIO(folder)
    with pytest.raises(
        TrainingError, match=r"victim\.ckpt: found .* expected files in .*run alone; it is kept\. Resume"
    ):
        checkpoints.remove_checkpoint(folder / name)
    checkpoints.remove_checkpoint(folder / "old.ckpt")
    assert victim.read_bytes() == b"kept"
    assert not (folder / "old.ckpt").is_symlink()


def test_a_damaged_checkpoint_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO(tmp_path).save_checkpoint({"state_dict": {"model.w": torch.zeros(1000)}}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"last\.ckpt: is damaged"):
        AtomicCheckpointIO(tmp_path).load_checkpoint(path)
