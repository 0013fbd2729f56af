"""ShardedEmbeddings: batches of any store for any model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from helpers.builds import tar
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader

from iianet.errors import ConfigError, StoreError
from loaders import EmbeddingBatch, PrefetchedEmbeddings, ShardedEmbeddings
from shardwriter import write_store

DIM = 6


def embedding(number: int) -> npt.NDArray[np.float16]:
    frames = 3 + number % 4
    return (np.arange(DIM * frames).reshape(DIM, frames) + 100 * number).astype(np.float16)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "store"
    write_store(path, samples(25), utterances_per_shard=4)
    return path


def samples(count: int) -> Iterator[tuple[str, npt.NDArray[np.float16], dict[str, int]]]:
    return ((f"utt.{number}", embedding(number), {"number": number}) for number in range(count))


def read(dataset: ShardedEmbeddings, workers: int = 0) -> list[EmbeddingBatch]:
    return list(DataLoader(dataset, batch_size=None, num_workers=workers))


def keys(batches: list[EmbeddingBatch]) -> list[list[str]]:
    return [batch.keys for batch in batches]


def test_every_utterance_comes_once_and_whole(store: Path) -> None:
    batches = read(ShardedEmbeddings(store, batch_size=4))
    assert sorted(key for batch in batches for key in batch.keys) == sorted(f"utt.{n}" for n in range(25))
    for batch in batches:
        assert batch.embedding.shape == (len(batch), DIM, int(batch.frames.max()))
        for key, frames, found in zip(batch.keys, batch.frames.tolist(), batch.embedding, strict=True):
            expected = embedding(int(key.removeprefix("utt.")))
            assert np.array_equal(found[:, :frames].numpy(), expected)
            assert not found[:, frames:].any()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_do_not_depend_on_the_workers(store: Path, workers: int) -> None:
    assert keys(read(ShardedEmbeddings(store, batch_size=4), workers)) == keys(
        read(ShardedEmbeddings(store, batch_size=4))
    )


def test_epochs_and_seeds_differ_and_repeat(store: Path) -> None:
    def order(**settings: int) -> list[list[str]]:
        return keys(read(ShardedEmbeddings(store, batch_size=4, **settings)))

    assert order() == order()
    assert order() != order(epoch=1)
    assert order() != order(seed=1)


def test_set_epoch_reaches_persistent_workers(store: Path) -> None:
    dataset = ShardedEmbeddings(store, batch_size=4)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    first = keys(list(loader))
    dataset.set_epoch(1)
    second = keys(list(loader))
    assert first == keys(read(ShardedEmbeddings(store, batch_size=4)))
    assert second == keys(read(ShardedEmbeddings(store, batch_size=4, epoch=1)))


def test_without_shuffle_the_order_is_the_same_in_every_epoch(store: Path) -> None:
    def order(epoch: int) -> list[list[str]]:
        return keys(read(ShardedEmbeddings(store, shuffle=False, epoch=epoch)))

    assert order(0) == order(1)


def test_ranks_share_an_epoch(store: Path) -> None:
    parts = [keys(read(ShardedEmbeddings(store, batch_size=3, rank=rank, world_size=2))) for rank in range(2)]
    found = [key for part in parts for batch in part for key in batch]
    assert len(found) == 25
    assert len(set(found)) == 25


@pytest.mark.parametrize(("batch_size", "world_size"), [(4, 3), (2, 4), (8, 3), (3, 8), (12, 2), (5, 5), (24, 1)])
def test_ranks_have_equally_many_batches_and_read_everything_once(
    store: Path, batch_size: int, world_size: int
) -> None:
    ranks = [ShardedEmbeddings(store, batch_size=batch_size, rank=n, world_size=world_size) for n in range(world_size)]
    batches = [read(rank) for rank in ranks]
    assert {len(found) for found in batches} == {len(rank) for rank in ranks} == {-(-25 // (batch_size * world_size))}
    assert all(1 <= len(batch) <= batch_size for found in batches for batch in found)
    assert sorted(key for found in batches for batch in found for key in batch.keys) == sorted(
        f"utt.{n}" for n in range(25)
    )


@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 7), (2, 40)])
def test_too_few_utterances_for_all_ranks_are_read_again(store: Path, batch_size: int, world_size: int) -> None:
    ranks = [ShardedEmbeddings(store, batch_size=batch_size, rank=n, world_size=world_size) for n in range(world_size)]
    batches = [read(rank) for rank in ranks]
    assert {len(found) for found in batches} == {-(-25 // (batch_size * world_size))}
    assert {key for found in batches for batch in found for key in batch.keys} == {f"utt.{n}" for n in range(25)}


def test_what_does_not_fill_a_step_is_left_out_where_that_is_asked_for(store: Path) -> None:
    ranks = [ShardedEmbeddings(store, batch_size=4, rank=rank, world_size=3, drop_last=True) for rank in range(3)]
    assert [[len(batch) for batch in read(rank)] for rank in ranks] == [[4, 4]] * 3
    with pytest.raises(ConfigError, match=r"has 25 utterances, and drop_last .* takes 26; give a smaller batch_size"):
        ShardedEmbeddings(store, batch_size=26, drop_last=True)


def test_the_length_is_the_number_of_batches(store: Path) -> None:
    dataset = ShardedEmbeddings(store, batch_size=4)
    assert len(dataset) == len(read(dataset)) == 7


def test_splits_are_added_and_read_separately(tmp_path: Path) -> None:
    write_store(tmp_path, samples(3), split="train")
    write_store(tmp_path, samples(5), split="val")
    assert sum(map(len, read(ShardedEmbeddings(tmp_path, split="train")))) == 3
    assert sum(map(len, read(ShardedEmbeddings(tmp_path, split="val")))) == 5


@pytest.mark.parametrize("split", ["val", "trian"])
def test_a_split_that_is_not_there_is_named(store: Path, split: str) -> None:
    with pytest.raises(StoreError, match=rf"no split '{split}'; it has train"):
        ShardedEmbeddings(store, split=split)


def test_a_folder_that_is_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="build-shards"):
        ShardedEmbeddings(tmp_path)


def test_a_shard_cut_after_opening_is_an_error_not_garbage(tmp_path: Path) -> None:
    write_store(tmp_path, samples(8), utterances_per_shard=8)
    dataset = ShardedEmbeddings(tmp_path, batch_size=8, read_ahead_windows=0)
    path = tar(tmp_path, "train")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(StoreError, match=rf"{path.name}: has 3,000 bytes now"):
        read(dataset)


def test_a_damaged_shard_is_found_before_its_epoch_is_over(tmp_path: Path) -> None:
    write_store(tmp_path, samples(8), utterances_per_shard=4)
    path = tar(tmp_path, "train", 1)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1  # a finite value still
    path.write_bytes(content)
    with pytest.raises(StoreError, match=rf"{path.name}: its digest is .* Delete it and run build-shards"):
        read(ShardedEmbeddings(tmp_path, batch_size=8))
    assert read(ShardedEmbeddings(tmp_path, batch_size=8, read_ahead_windows=0))


def test_many_shards_need_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loaders.reader.OPEN_SHARDS", 2)
    write_store(tmp_path, samples(12), utterances_per_shard=1)
    dataset = ShardedEmbeddings(tmp_path, batch_size=5)
    assert sum(map(len, dataset)) == 12
    assert len(dataset.reader.files._open) <= 2


def test_batches_move_to_a_device(store: Path) -> None:
    batch = next(iter(ShardedEmbeddings(store))).to(torch.device("meta"))
    assert batch.embedding.device.type == "meta"
    assert batch.frames.device.type == "meta"


def test_metadata_comes_back_as_it_was_given(store: Path) -> None:
    for workers in (0, 2):
        for batch in read(ShardedEmbeddings(store, batch_size=4), workers):
            assert [f"utt.{metadata['number']}" for metadata in batch.metadata] == batch.keys


def test_metadata_of_a_batch_may_be_read_while_others_are_read_ahead(store: Path) -> None:
    for batch in PrefetchedEmbeddings(ShardedEmbeddings(store, batch_size=4)):
        assert [f"utt.{metadata['number']}" for metadata in batch.metadata] == batch.keys


def test_damaged_metadata_names_the_batch_and_the_cure(tmp_path: Path) -> None:
    write_store(tmp_path, [("one", embedding(1), {"word": "abcdef"})])
    path = tar(tmp_path, "train")
    path.write_bytes(path.read_bytes().replace(b'{"word":', b'?"word":'))
    [batch] = read(ShardedEmbeddings(tmp_path, read_ahead_windows=0))
    with pytest.raises(StoreError, match=r"one to one: the metadata .* is damaged \(.*\). Run inspect-shards --verify"):
        batch.metadata  # noqa: B018


LONG = "a/speaker" * 12


def test_keys_are_the_names_that_were_given(tmp_path: Path) -> None:
    names = ["spk4/utt139", "a.b", "50%", "漢字", LONG, LONG + "'", "x" * 63 + "-" + "0123456789abcdef"]
    write_store(tmp_path, [(name, embedding(1), {"name": name}) for name in names])
    batches = read(ShardedEmbeddings(tmp_path, batch_size=3))
    assert sorted(key for batch in batches for key in batch.keys) == sorted(names)
    assert [metadata["name"] for batch in batches for metadata in batch.metadata] == [
        key for batch in batches for key in batch.keys
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": 0}, r"batch_size is 0 \(int\); expected a whole number, at least 1"),
        ({"batch_size": -3}, "batch_size is -3"),
        ({"batch_size": 2.0}, r"batch_size is 2.0 \(float\)"),
        ({"batch_size": True}, r"batch_size is true \(bool\)"),
        ({"block_size": 0}, "block_size is 0"),
        ({"window_blocks": 0}, "window_blocks is 0"),
        ({"read_ahead_windows": -1}, r"read_ahead_windows is -1 \(int\); expected a whole number, at least 0"),
        ({"seed": -1}, "seed is -1"),
        ({"epoch": -1}, "epoch is -1"),
        ({"rank": 2, "world_size": 2}, "rank is 2 and world_size is 2; expected both, and a rank below world_size"),
        ({"rank": 1}, "rank is 1 and world_size is None; expected both"),
        ({"world_size": 2}, "rank is None and world_size is 2; expected both"),
        ({"rank": 0, "world_size": 0}, "world_size is 0"),
    ],
)
def test_a_wrong_argument_is_named(store: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"ShardedEmbeddings: {said}"):
        ShardedEmbeddings(store, **arguments)


def test_one_utterance_is_asked_of_the_store(store: Path) -> None:
    with pytest.raises(ConfigError, match=r"ShardedEmbeddings\[0\]: .*shardwriter\.open_store\(store, split\)\[key\]"):
        ShardedEmbeddings(store)[0]


@pytest.fixture
def join_group() -> Iterator[Callable[[int, int], None]]:
    """Makes this process a rank of a group that has no other ranks in fact."""
    yield lambda rank, world_size: dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    dist.destroy_process_group()


def test_the_place_is_that_in_the_process_group(store: Path, join_group: Callable[[int, int], None]) -> None:
    early = ShardedEmbeddings(store, batch_size=4)
    join_group(1, 3)
    given = ShardedEmbeddings(store, batch_size=4, rank=1, world_size=3)
    assert keys(read(ShardedEmbeddings(store, batch_size=4))) == keys(read(given))
    for workers in (0, 1):
        with pytest.raises(ConfigError, match=r"was made as rank 0 of 1, but .* \(1, 3\).*after init_process_group"):
            read(early, workers)


def test_variables_that_somebody_left_count_for_nothing(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    dataset = ShardedEmbeddings(store, batch_size=4)
    assert "WORLD_SIZE=4 and RANK=3 are set, but no process group stands" in caplog.text
    assert sum(map(len, read(dataset))) == 25


def test_the_row_of_an_unknown_key_reads_nothing(store: Path) -> None:
    reader = ShardedEmbeddings(store).reader
    [row] = reader.rows_of(pa.array(["unknown"]))
    for read_row in (reader.read, lambda row: reader.read_rows(np.array([0, row]), np.empty((2, DIM, 9), np.float16))):
        with pytest.raises(KeyError, match="row -1 of a store: expected at least 0"):
            read_row(row)
