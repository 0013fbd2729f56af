"""Batches read ahead by a thread: the same as without, and who owns them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.builds import tar

from iianet.errors import StoreError
from loaders import PrefetchedEmbeddings, ShardedEmbeddings
from shardwriter import write_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    embeddings = [rng.standard_normal((4, 5 + number % 3)).astype(np.float16) for number in range(50)]
    write_store(path, ((f"u{number}", one, {}) for number, one in enumerate(embeddings)), utterances_per_shard=10)
    return path


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("prefetch", [0, 1, 3, 100])
def test_they_are_the_batches_of_the_dataset(store: Path, reuse: bool, prefetch: int) -> None:
    reader = PrefetchedEmbeddings(ShardedEmbeddings(store, batch_size=8), prefetch=prefetch, reuse=reuse)
    dataset = ShardedEmbeddings(store, batch_size=8)
    for _ in range(2):
        for ours, theirs in zip(reader, dataset, strict=True):
            assert ours.keys == theirs.keys
            assert torch.equal(ours.embedding, theirs.embedding)
            assert torch.equal(ours.frames, theirs.frames)


def test_by_default_no_batch_shares_memory_with_another(store: Path) -> None:
    reader = PrefetchedEmbeddings(ShardedEmbeddings(store, batch_size=8))
    batches = list(reader)
    expected = list(ShardedEmbeddings(store, batch_size=8))
    assert all(torch.equal(ours.embedding, theirs.embedding) for ours, theirs in zip(batches, expected, strict=True))
    assert len({batch.embedding.data_ptr() for batch in batches}) == len(batches) == 7


def test_lent_batches_lie_in_two_buffers_that_are_kept(store: Path) -> None:
    reader = PrefetchedEmbeddings(ShardedEmbeddings(store, batch_size=8), prefetch=1, reuse=True)
    first = {batch.embedding.data_ptr() for batch in reader}
    assert len(first) == 2
    assert {batch.embedding.data_ptr() for batch in reader} == first


def test_an_error_of_the_thread_reaches_the_reader(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    copy.mkdir()
    for path in store.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    dataset = ShardedEmbeddings(copy, batch_size=8, read_ahead_windows=0)
    lost = tar(copy, "train", 2)
    lost.unlink()
    with pytest.raises(StoreError, match=rf"{lost.name}: cannot be read"):
        list(PrefetchedEmbeddings(dataset))


def test_a_reader_left_early_begins_the_next_epoch(store: Path) -> None:
    reader = PrefetchedEmbeddings(ShardedEmbeddings(store, batch_size=8))
    next(iter(reader))
    expected = ShardedEmbeddings(store, batch_size=8, epoch=1)
    assert [batch.keys for batch in reader] == [batch.keys for batch in expected]


def test_the_state_is_of_what_was_handed_out_and_not_of_what_was_read_ahead(store: Path) -> None:
    dataset = ShardedEmbeddings(store, batch_size=8)
    batches = [batch.keys for batch in dataset]
    dataset.set_epoch(0)
    reading = iter(PrefetchedEmbeddings(dataset, prefetch=2))
    for _ in range(3):
        next(reading)
    state = dataset.state_dict()
    resumed = ShardedEmbeddings(store, batch_size=8)
    resumed.load_state_dict(state)
    assert [batch.keys for batch in PrefetchedEmbeddings(resumed)] == batches[3:]
