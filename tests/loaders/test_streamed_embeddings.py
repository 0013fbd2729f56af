"""StreamedEmbeddings: batches out of tars without an index."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers.foreign_tars import embedding, npy, own_members, traps, write_tar
from helpers.serving import served
from torch.utils.data import DataLoader

from iianet.errors import StoreError
from loaders.sharded_embeddings import EmbeddingBatch, ShardedEmbeddings
from loaders.stream import StreamedEmbeddings
from shardwriter import write_store

SAMPLES, SHARDS = 17, 5


@pytest.fixture(scope="module", params=["float16", "float32", "int8"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store")
    samples = ((f"utt.{number}", embedding(number % 7, dtype="float32"), {}) for number in range(SAMPLES))
    write_store(path, samples, utterances_per_shard=4, dtype=request.param)
    return path


def pattern(store: Path) -> str:
    return f"{store}/train-{{000000..{SHARDS - 1:06d}}}.tar"


def read(dataset: Any, workers: int = 0) -> list[EmbeddingBatch]:
    return list(DataLoader(dataset, batch_size=None, num_workers=workers))


def by_key(batches: Iterable[EmbeddingBatch]) -> dict[str, npt.NDArray[Any]]:
    """The embeddings, each checked to come once and to have zeros after its end."""
    found: dict[str, npt.NDArray[Any]] = {}
    for batch in batches:
        for key, values, frames in zip(batch.keys, batch.embedding.numpy(), batch.frames.tolist(), strict=True):
            assert key not in found
            assert not values[:, frames:].any()
            found[key] = values[:, :frames]
    return found


def same(one: dict[str, npt.NDArray[Any]], other: dict[str, npt.NDArray[Any]]) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and np.array_equal(one[key], other[key]) for key in one
    )


@pytest.mark.parametrize("workers", [0, 2, 7])
@pytest.mark.parametrize("shuffle_buffer", [0, 6])
def test_every_sample_comes_once_and_as_the_store_reads_it(store: Path, workers: int, shuffle_buffer: int) -> None:
    stream = StreamedEmbeddings(pattern(store), batch_size=3, shuffle_buffer=shuffle_buffer)
    assert same(by_key(read(stream, workers)), by_key(read(ShardedEmbeddings(store, batch_size=3))))


@pytest.mark.parametrize("world_size", [2, 5])
def test_ranks_share_the_samples(store: Path, world_size: int) -> None:
    batches = [
        batch
        for rank in range(world_size)
        for batch in read(StreamedEmbeddings(pattern(store), 3, rank=rank, world_size=world_size), workers=2)
    ]
    assert same(by_key(batches), by_key(read(ShardedEmbeddings(store))))


def test_ranks_are_found_in_the_environment(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        counts.update(key for batch in read(StreamedEmbeddings(pattern(store), 3)) for key in batch.keys)
    assert set(counts.values()) == {1}
    assert len(counts) == SAMPLES


def order(stream: StreamedEmbeddings, workers: int = 0) -> list[str]:
    return [key for batch in read(stream, workers) for key in batch.keys]


def test_the_order_follows_from_seed_and_epoch(store: Path) -> None:
    stream = StreamedEmbeddings(pattern(store), 3, shuffle_buffer=8, seed=1)
    first = order(stream)
    assert order(stream) == first
    stream.set_epoch(1)
    assert order(stream) != first
    assert order(StreamedEmbeddings(pattern(store), 3, shuffle_buffer=8, seed=1, epoch=1)) == order(stream)
    assert order(StreamedEmbeddings(pattern(store), 3, shuffle_buffer=8, seed=2)) != first


def test_persistent_workers_see_the_epoch(store: Path) -> None:
    stream = StreamedEmbeddings(pattern(store), 3, shuffle_buffer=8)
    loader = DataLoader(stream, batch_size=None, num_workers=1, persistent_workers=True)
    first = [batch.keys for batch in loader]
    stream.set_epoch(1)
    assert [batch.keys for batch in loader] != first


def test_shards_come_over_http(store: Path) -> None:
    with served(store) as address:
        stream = StreamedEmbeddings(f"{address}/train-{{000000..{SHARDS - 1:06d}}}.tar", 4)
        assert same(by_key(read(stream, workers=2)), by_key(read(ShardedEmbeddings(store))))


def test_a_missing_shard_stops_the_run(store: Path) -> None:
    with served(store) as address, pytest.raises(StoreError, match=r"train-000009\.tar: cannot be fetched \(HTTP 404"):
        read(StreamedEmbeddings(f"{address}/train-00000{{0,9}}.tar", 4))
    with pytest.raises(StoreError, match="no such file"):
        StreamedEmbeddings(f"{store}/train-00000{{0,9}}.tar", 4)


def test_a_shard_named_twice_is_refused(store: Path) -> None:
    first = f"{store}/train-000000.tar"
    with pytest.raises(StoreError, match="is named 2 times"):
        StreamedEmbeddings([first, f"{store}/train-{{000000..000001}}.tar"])


def test_fewer_shards_than_ranks_are_refused(store: Path) -> None:
    with pytest.raises(StoreError, match="5 shards and 6 ranks"):
        StreamedEmbeddings(pattern(store), 3, rank=0, world_size=6)


def test_idle_workers_are_told_of(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    stream = StreamedEmbeddings(pattern(store), 3, rank=0, world_size=5)
    list(stream)
    assert not caplog.text
    with pytest.MonkeyPatch.context() as patch:
        worker = type("Worker", (), {"id": 0, "num_workers": 3})()
        patch.setattr("loaders.stream.get_worker_info", lambda: worker)
        list(stream)
    assert "3 workers share 1 shards, so 2 stand idle" in caplog.text


def test_other_members_are_left_alone_and_nothing_is_unpickled(tmp_path: Path) -> None:
    trap, objects = traps(tmp_path / "unpickled")
    members = {**own_members("a", embedding(0)), "a.pyd": trap, "a.pickle": trap, "a.pth": trap}
    path = write_tar(tmp_path / "x.tar", members)
    assert same(by_key(read(StreamedEmbeddings(str(path)))), {"a": embedding(0)})
    bad = write_tar(tmp_path / "y.tar", {"b.npy": objects})
    with pytest.raises(StoreError, match="never unpickled"):
        read(StreamedEmbeddings(str(bad)))
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("given", ["pipe:touch {}/ran", "{{x.tar,pipe:touch {}/ran}}", "-"])
def test_commands_are_refused(given: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        StreamedEmbeddings(given.format(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"a.x.npy": npy(embedding(0)), "a.y.npy": npy(embedding(0))}, "expected one npy"),
        ({"a.json": b"{}"}, "expected one npy"),
        ({"a.npy": npy(np.zeros(3, np.float32))}, r"expected \(dim, frames\)"),
        ({"a.npy": npy(np.zeros((6, 3), np.int8))}, "expected a scale.npy"),
        ({"a.npy": npy(embedding(0)), "b.npy": npy(embedding(0, dtype="float32"))}, "of one dtype"),
        ({"a.npy": npy(embedding(0))[:-2]}, "an npy of"),
        ({"a.npy": npy(np.full((6, 3), np.nan, np.float16))}, "not finite"),
    ],
)
def test_what_is_no_embedding_is_an_error_that_names_it(members: dict[str, bytes], reason: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", members)
    with pytest.raises(StoreError, match=reason) as raised:
        read(StreamedEmbeddings(str(path)))
    assert "x.tar" in str(raised.value)
