"""The content of every global batch is the same for any number of ranks and workers, however they are started."""

from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.batches import data
from helpers.builds import build_store, quick_encoder
from helpers.corpus import Corpus, make_corpus

from iianet.batch import Batch
from iianet.errors import ConfigError, ManifestError
from loaders.datamodule import SeparationData
from loaders.dataset import BatchLoader

STEP = 8
"""Examples of a global batch."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), {"train": 24, "val": 6, "test": 2}, frames=4)


@pytest.fixture(scope="module")
def stores(corpus: Corpus) -> dict[str, Path | None]:
    """Several shards, one shard, and one that lacks a third."""
    paths = {name: corpus.root / name for name in ("full", "one shard", "partial")}
    with quick_encoder():
        build_store(corpus, paths["full"])
        build_store(corpus, paths["one shard"], "shardwriter.utterances_per_shard=1000")
        build_store(corpus, paths["partial"], limit=16)
    return {**paths, "raw": None}


def of_rank(corpus: Corpus, store: Path | None, rank: int, world_size: int, workers: int, *more: str) -> SeparationData:
    size = f"datamodule.data_config.batch_size={STEP // world_size}"
    source = data(corpus, store, size, f"datamodule.data_config.num_workers={workers}", *more)
    source.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, num_nodes=1)  # type: ignore[assignment]
    return source


def global_batches(
    corpus: Corpus, store: Path | None, split: str = "train", world_size: int = 1, workers: int = 0, *more: str
) -> list[list[tuple[str, bytes, bytes]]]:
    """Key and audio of every row, rank after rank, step by step, of two epochs."""
    steps: list[list[list[tuple[str, bytes, bytes]]]] = []
    for rank in range(world_size):
        source = of_rank(corpus, store, rank, world_size, workers, *more)
        loader = source.train_dataloader() if split == "train" else source.val_dataloader()
        steps.append([rows(batch) for _ in range(2) for batch in loader])
    assert len({len(own) for own in steps}) == 1, "a rank with fewer steps would hang the others"
    assert steps[0]
    return [list(chain.from_iterable(parts)) for parts in zip(*steps, strict=True)]


def rows(batch: Batch) -> list[tuple[str, bytes, bytes]]:
    parts = zip(batch.keys, batch.mixture, batch.target, batch.weight.tolist(), strict=True)
    return [
        (key, mixture.numpy().tobytes(), target.numpy().tobytes()) for key, mixture, target, weight in parts if weight
    ]


@pytest.fixture(scope="module", params=["train", "val"])
def expected(corpus: Corpus, request: pytest.FixtureRequest) -> tuple[str, list[list[tuple[str, bytes, bytes]]]]:
    """Of raw mode on one rank without workers."""
    return request.param, global_batches(corpus, None, request.param)


@pytest.mark.parametrize("mode", ["raw", "full", "one shard", "partial"])
@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (1, 4), (2, 0), (2, 3), (4, 0)])
def test_global_batches_do_not_depend_on_ranks_workers_or_store(
    corpus: Corpus,
    stores: dict[str, Path | None],
    expected: tuple[str, list[list[tuple[str, bytes, bytes]]]],
    mode: str,
    world_size: int,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    split, batches = expected
    assert global_batches(corpus, stores[mode], split, world_size, workers) == batches


@pytest.mark.parametrize("context", ["spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
@pytest.mark.parametrize("persistent", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_workers_may_be_started_in_any_way(
    corpus: Corpus, stores: dict[str, Path | None], context: str, persistent: bool
) -> None:
    plain, other = (data(corpus, stores["full"]).train_dataloader() for _ in range(2))
    started = BatchLoader(other.dataset, num_workers=1, multiprocessing_context=context, persistent_workers=persistent)
    for _ in range(2):  # epochs
        pairs = list(zip(plain, started, strict=True))
        assert pairs
        for ours, theirs in pairs:
            assert ours.keys == theirs.keys
            assert torch.equal(ours.embedding, theirs.embedding)
            assert torch.equal(ours.mixture, theirs.mixture)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_validation_has_every_example_once_on_any_number_of_ranks(
    corpus: Corpus, stores: dict[str, Path | None], world_size: int
) -> None:
    """10 examples: with 8 in a step, the last step has rows for two ranks alone."""
    count = 0
    for rank in range(world_size):
        batches = list(of_rank(corpus, stores["full"], rank, world_size, 0).val_dataloader())
        assert len(batches) == 2
        assert all(len(batch) for batch in batches)
        count += sum(batch.num_examples for batch in batches)
        assert [batch.num_examples for batch in batches] == [int(batch.weight.sum()) for batch in batches]
    assert count == 10


def test_an_empty_split_is_a_clear_error(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, {"train": 4, "val": 0, "test": 0}, frames=4)
    with pytest.raises(ManifestError, match="val: there are no examples"):
        data(corpus, None).prepare_splits()


def test_too_few_examples_for_one_step_is_a_clear_error(corpus: Corpus, stores: dict[str, Path | None]) -> None:
    source = of_rank(corpus, stores["full"], 0, 1, 0, "datamodule.data_config.batch_size=1000")
    with pytest.raises(ManifestError, match="46 examples do not fill one batch of 1000"):
        source.order("train")


def test_lanes_that_the_nodes_cannot_share_are_a_clear_error(corpus: Corpus) -> None:
    source = of_rank(corpus, None, 0, 2, 0, "datamodule.data_config.order_lanes=4")
    source.trainer = SimpleNamespace(global_rank=0, world_size=6, num_nodes=3)  # type: ignore[assignment]
    with pytest.raises(
        ConfigError, match=r"datamodule\.data_config\.order_lanes is 4, and there are 3 nodes; expected a multiple of"
    ):
        source.order("train")


def test_random_segments_are_aligned_and_do_not_depend_on_the_ranks(
    corpus: Corpus, stores: dict[str, Path | None]
) -> None:
    random = ("datamodule.data_config.segment=0.08", "datamodule.data_config.segment_start=random")
    alone = global_batches(corpus, stores["full"], "train", 1, 0, *random)
    assert global_batches(corpus, None, "train", 2, 0, *random) == alone
    assert alone != global_batches(corpus, stores["full"], "train", 1, 0, random[0])
