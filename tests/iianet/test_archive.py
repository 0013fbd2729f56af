"""A damaged checkpoint or weights file never loads with other contents than were saved."""

import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from iianet.checkpoint import read_checkpoint
from iianet.errors import WeightsError

FLIPS = 300


def equal(one: Any, other: Any) -> bool:
    """Whether two nested values are the same, bit by bit."""
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
        )
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    return bool(one == other)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    random_numbers = torch.Generator().manual_seed(0)
    weights = {f"model.{number}": torch.randn(40, generator=random_numbers) for number in range(10)}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": weights, "global_step": 12, "settings": {"optimizer.lr": 1e-3}}, path)
    return path


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_no_flipped_bit_loads_other_contents(saved: Path) -> None:
    contents, content = read_checkpoint(saved), saved.read_bytes()
    refused = 0
    for bit in random.Random(0).sample(range(8 * len(content)), FLIPS):
        saved.write_bytes(flipped(content, bit))
        try:
            assert equal(read_checkpoint(saved), contents), bit
        except WeightsError as error:
            refused += 1
            assert str(saved) in str(error)
    assert refused > FLIPS / 3, "what is refused is damage in data and in the archive's directory"


def test_a_member_marked_as_a_folder_is_refused(saved: Path) -> None:
    """torch gives uninitialised memory for it, and no error."""
    content = saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        start = archive.start_dir
        name = next(member.filename for member in archive.infolist() if member.filename.endswith("/data/0"))
    entry = content.index(name.encode(), start) - 46
    saved.write_bytes(flipped(content, 8 * (entry + 38) + 4))
    with pytest.raises(WeightsError, match=r"last\.ckpt: is damaged: last/data/0 is marked as a folder.*Copy it"):
        read_checkpoint(saved)


def test_a_flipped_weight_is_named_with_what_was_expected_and_the_cure(saved: Path) -> None:
    content = saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        weights = next(member for member in archive.infolist() if member.filename.endswith("/data/3"))
    saved.write_bytes(flipped(content, 8 * (weights.header_offset + 100) + 1))
    with pytest.raises(WeightsError) as refusal:
        read_checkpoint(saved)
    for words in (str(saved), "last/data/3", "every checksum right", "take another one"):
        assert words in str(refusal.value)


def test_an_archive_that_would_grow_in_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    bomb, overlapping = tmp_path / "bomb.ckpt", tmp_path / "overlapping.ckpt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(10**7))
    with pytest.raises(WeightsError, match=r"bomb\.ckpt: is damaged: its members claim 10,000,000 bytes, and the file"):
        read_checkpoint(bomb)
    with zipfile.ZipFile(overlapping, "w") as archive:
        archive.writestr("overlapping/data.pkl", bytes(10**5))
        archive.filelist *= 100
    with pytest.raises(WeightsError, match=r"members claim 10,000,000 bytes"):
        read_checkpoint(overlapping)


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("small/data.pkl", b"ab" * 20)
    with pytest.raises(WeightsError, match=r"data\.pkl is compressed, which torch\.save does not do"):
        read_checkpoint(path)
