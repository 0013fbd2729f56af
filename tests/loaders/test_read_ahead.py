"""Reading ahead: each shard is checked once a run, by one of those that share it, and never too early."""

import os
from pathlib import Path

import numpy as np
import pytest
import xxhash

from iianet.errors import StoreError
from loaders.read_ahead import ReadAhead, Share
from loaders.reader import ShardFiles
from shardwriter.storage.folder import Folder
from shardwriter.storage.storage import StoredTar

SHARD = np.arange(12).repeat(2)
WINDOW = np.arange(6).repeat(4)
ALONE = Share(number=0, of=1)


@pytest.fixture
def reader(tmp_path: Path) -> ReadAhead:
    folder = Folder(tmp_path)
    tars = []
    for number in range(12):
        content = bytes([number]) * 100
        folder.write(f"{number}.tar", content)
        tars.append(StoredTar(folder, f"{number}.tar", 100, xxhash.xxh3_64_hexdigest(content)))
    return ReadAhead([ShardFiles(tars[:5]), ShardFiles(tars[5:])], windows=1)


def path_of(reader: ReadAhead, number: int) -> Path:
    return Path(reader.tars[number].where)


def test_it_stays_within_its_windows(reader: ReadAhead) -> None:
    with reader.start_epoch(SHARD, WINDOW, ALONE) as ahead:
        ahead.advance(0)
        ahead.finish()
        assert np.flatnonzero(reader.checked).tolist() == [0, 1, 2, 3]
        ahead.advance(2)
        ahead.finish()
        assert np.flatnonzero(reader.checked).tolist() == list(range(8))


def test_a_system_without_advice_on_files_reads_ahead_too(reader: ReadAhead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    for _ in range(2):  # the second time they are checked, and only asked for
        reader.read(3)
    assert reader.checked[3]


@pytest.mark.parametrize("readers", [1, 2, 5, 20])
def test_those_who_share_check_every_shard_once(
    reader: ReadAhead, readers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    check = ReadAhead._check

    def note(self: ReadAhead, shard: int, descriptor: int) -> None:
        checked.append(shard)
        check(self, shard, descriptor)

    monkeypatch.setattr(ReadAhead, "_check", note)
    for _ in range(3):  # epochs
        for number in range(readers):
            with reader.start_epoch(SHARD, WINDOW, Share(number=number, of=readers)) as ahead:
                ahead.advance(5)
                ahead.finish()
    assert sorted(checked) == list(range(12))


def test_damage_is_told_with_both_digests_and_the_cure(reader: ReadAhead) -> None:
    path_of(reader, 3).write_bytes(b"\0" * 100)
    found = xxhash.xxh3_64_hexdigest(b"\0" * 100)
    with (
        reader.start_epoch(SHARD, WINDOW, ALONE) as ahead,
        pytest.raises(StoreError, match=f"3.tar: its digest is {found}, and its index says {reader.tars[3].digest}"),
    ):
        ahead.advance(0)
        ahead.finish()


def test_a_vanished_shard_is_an_error(reader: ReadAhead) -> None:
    path_of(reader, 1).unlink()
    with reader.start_epoch(SHARD, WINDOW, ALONE) as ahead, pytest.raises(StoreError, match=r"1\.tar: cannot be read"):
        ahead.advance(0)
        ahead.finish()


def test_what_is_not_stored_is_not_read_and_zero_windows_read_nothing(reader: ReadAhead) -> None:
    none = ReadAhead([ShardFiles(reader.tars)], windows=0)
    for one, shard in ((reader, np.full(24, -1)), (none, SHARD)):
        with one.start_epoch(shard, WINDOW, ALONE) as ahead:
            ahead.advance(5)
            ahead.finish()
        assert not one.checked.any()
