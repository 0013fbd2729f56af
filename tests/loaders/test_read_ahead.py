"""Reading ahead: each shard is checked once a run, by one of those that share it, and never too early."""

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import numpy as np
import pytest
import xxhash
from helpers.batches import data
from helpers.builds import build_store
from helpers.corpus import make_corpus

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
@pytest.mark.parametrize("settles", [False, True])
def test_those_who_share_check_every_shard_once(
    reader: ReadAhead, readers: int, settles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    check = ReadAhead._check

    def note(self: ReadAhead, shard: int, stream: IO[bytes]) -> None:
        checked.append(shard)
        check(self, shard, stream)

    monkeypatch.setattr(ReadAhead, "_check", note)
    for _ in range(3):  # epochs
        for number in range(readers):
            with reader.start_epoch(SHARD, WINDOW, Share(number=number, of=readers)) as ahead:
                ahead.settle(5, SHARD) if settles else ahead.advance(5)
                ahead.finish()
    assert sorted(checked) == list(range(12))


def test_a_shard_that_another_worker_is_checking_is_waited_for_and_not_checked_again(
    reader: ReadAhead, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, asked = threading.Event(), threading.Event()
    checked: list[int] = []
    check = ReadAhead._check

    def note(self: ReadAhead, shard: int, stream: IO[bytes]) -> None:
        checked.append(shard)
        if checked == [1]:
            begun.set()
            assert asked.wait(30)
        asked.set()  # a second check
        check(self, shard, stream)

    monkeypatch.setattr(ReadAhead, "_check", note)
    monkeypatch.setattr("loaders.read_ahead.sleep", lambda _: asked.set())
    shard, window = np.array([1]), np.array([0])
    with reader.start_epoch(shard, window, Share(number=1, of=2)) as theirs:
        theirs.advance(0)
        assert begun.wait(30)
        with reader.start_epoch(shard, window, Share(number=0, of=2)) as ours:
            ours.settle(0, shard)
            assert reader.checked[1]
        theirs.finish()
    assert checked == [1]


def test_what_the_thread_has_begun_is_waited_for_and_not_read_a_second_time(
    reader: ReadAhead, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, twice = threading.Event(), threading.Event()
    asked: list[int] = []
    read = ReadAhead.read

    def note(self: ReadAhead, shard: int, number: int = 0) -> bool:
        asked.append(shard)
        if len(asked) == 1:
            begun.set()
            assert not twice.wait(0.2), "it was read in two threads"
        else:
            twice.set()
        return read(self, shard, number)

    monkeypatch.setattr(ReadAhead, "read", note)
    with reader.start_epoch(np.array([1]), np.array([0]), ALONE) as ahead:
        ahead.advance(0)
        assert begun.wait(30)
        ahead.settle(0, np.array([1]))
        assert reader.checked[1]
        ahead.finish()
    assert asked == [1]


def test_what_a_worker_left_when_it_was_ended_is_checked_by_the_next_one(reader: ReadAhead) -> None:
    reader._checked_by[3] = 2
    with reader.start_epoch(SHARD, WINDOW, Share(number=1, of=2)) as ahead:
        ahead.settle(1, np.array([3]))
    assert reader.checked[3]


@pytest.mark.usefixtures("quick")
def test_a_rank_checks_the_shards_alone_that_it_reads_rows_of(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", {"train": 2, "val": 8, "test": 0}, frames=4)
    build_store(corpus, tmp_path / "store", splits=("train", "val"))
    half = "datamodule.data_config.batch_size=8"
    for rank in range(2):
        source = data(corpus, tmp_path / "store", half)
        source.trainer = SimpleNamespace(global_rank=rank, world_size=2, num_nodes=1)  # type: ignore[assignment]
        batches = source.val_dataloader().dataset
        assert len(list(batches)) == 1
        stored = source.splits["val"].stored
        assert stored is not None
        used = batches.order.epoch(0).example[batches.order.positions(0, rank)]
        utterances = batches.order.utterance_of_example[used]
        shards = np.unique(stored.shard_of(utterances, np.zeros(len(utterances), np.int64)))
        assert np.flatnonzero(batches.read_ahead.checked).tolist() == shards.tolist()
        assert len(shards) < len(batches.read_ahead.checked)


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
