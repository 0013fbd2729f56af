"""ShardedEmbeddings: batches of any store for any model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers.builds import tar
from torch.utils.data import DataLoader

from iianet.errors import StoreError
from loaders import EmbeddingBatch, ShardedEmbeddings
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
    assert sorted(key for batch in batches for key in batch.keys) == sorted(f"utt%2E{n}" for n in range(25))
    for batch in batches:
        assert batch.embedding.shape == (len(batch), DIM, int(batch.frames.max()))
        for key, frames, found in zip(batch.keys, batch.frames.tolist(), batch.embedding, strict=True):
            expected = embedding(int(key.removeprefix("utt%2E")))
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


def test_every_rank_knows_how_many_batches_it_has(store: Path) -> None:
    ranks = [ShardedEmbeddings(store, batch_size=4, rank=rank, world_size=3) for rank in range(3)]
    assert [len(rank) for rank in ranks] == [len(read(rank)) for rank in ranks] == [2, 2, 3]
    even = [ShardedEmbeddings(store, batch_size=4, rank=rank, world_size=3, drop_last=True) for rank in range(3)]
    assert [len(rank) for rank in even] == [len(read(rank)) for rank in even] == [2, 2, 2]


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
