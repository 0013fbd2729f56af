"""Stores of int8, of views, and with their audio: training reads from them what it would read without."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.batches import batches, completed, data
from helpers.builds import build_store, quick_encoder
from helpers.corpus import Corpus, copy_corpus, make_corpus

from iianet.batch import Batch
from iianet.errors import StoreError
from loaders.reader import open_reader
from shardwriter.format.names import view_split

RANDOM = ("datamodule.data_config.segment_start=random", "datamodule.data_config.segment=0.12")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(
        tmp_path_factory.mktemp("corpus"), {"train": 8, "val": 3, "test": 2}, frames=(6, 7), num_samples=6 * 640
    )


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Nothing here depends on what an embedding is."""
    with quick_encoder():
        yield


def test_int8_is_read_within_half_a_step_of_its_scale(corpus: Corpus, tmp_path: Path) -> None:
    build_store(corpus, tmp_path / "int8", dtype="int8")
    build_store(corpus, tmp_path / "float32", dtype="float32")
    rounded, exact = open_reader(tmp_path / "int8", "train"), open_reader(tmp_path / "float32", "train")
    assert rounded.keys.equals(exact.keys) and len(exact) == 8
    for row in range(len(exact)):
        expected = exact.read(row)
        step = np.abs(expected).max(axis=1, keepdims=True) / 127
        found = rounded.read(row)
        assert found.dtype == np.float16
        assert (np.abs(found - expected) <= 0.5 * step + 1e-3 * np.abs(expected)).all()
        assert rounded.stored_bytes(row) < 0.6 * exact.stored_bytes(row)
    batch = next(iter(data(corpus, tmp_path / "int8").train_dataloader()))
    assert batch.embedding.dtype == torch.float16
    assert not batch.mouth_lengths


def same_audio(one: list[Batch], two: list[Batch]) -> None:
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys == theirs.keys
        assert torch.equal(ours.mixture, theirs.mixture)
        assert torch.equal(ours.target, theirs.target)


@pytest.mark.parametrize("mixing", ["static", "dynamic"])
@pytest.mark.parametrize("segment", [(), RANDOM])
def test_stored_audio_is_that_of_the_wavs_to_the_last_bit(
    corpus: Corpus, tmp_path: Path, mixing: str, segment: tuple[str, ...]
) -> None:
    build_store(corpus, tmp_path / "embed", audio="embed")
    settings = (
        f"datamodule.data_config.train_mixing={mixing}",
        "datamodule.data_config.normalize_audio=true",
        *segment,
    )
    by_path = batches(data(corpus, None, *settings))
    away = copy_corpus(corpus, tmp_path / "elsewhere")
    shutil.rmtree(away.root / "audio")
    same_audio(batches(data(away, tmp_path / "embed", *settings)), by_path)


def test_a_view_that_is_not_stored_is_encoded_from_its_own_crop(corpus: Corpus, tmp_path: Path) -> None:
    build_store(corpus, tmp_path / "views", "shardwriter.views=2", dtype="float32")
    build_store(corpus, tmp_path / "partial", "shardwriter.views=2", dtype="float32", limit=3)
    narrow = "datamodule.data_config.block_size=1"
    full, partial = (data(corpus, tmp_path / name, narrow) for name in ("views", "partial"))
    found = [(batches(source), source) for source in (full, partial)]
    assert any(batch.mouth_lengths for batch in found[1][0])
    drawn = {int(view) for epoch in range(2) for view in full.order("train").epoch(epoch).view}
    assert drawn == {0, 1, 2}
    ours, theirs = (completed(corpus, own) for own, _ in found)
    for one, two in zip(ours, theirs, strict=True):
        assert (one - two).abs().max() <= 1e-6


def test_only_the_drawn_views_are_read(corpus: Corpus, tmp_path: Path) -> None:
    build_store(corpus, tmp_path / "views", "shardwriter.views=2")
    source = data(corpus, tmp_path / "views")
    stored, order = source.splits["train"].stored, source.order("train").epoch(0)
    assert stored is not None
    drawn = set(order.view.tolist())
    assert len(drawn) == 1  # 8 utterances are one block
    for view in {0, 1, 2} - drawn:
        for path in (Path(tar.where) for tar in stored.readers[view].files.tars):
            path.unlink()
    assert list(source.train_dataloader())
    assert stored.readers[1].files.tars[0].name.startswith(view_split("train", 1))


def test_asking_for_more_views_than_are_stored_is_an_error(corpus: Corpus, tmp_path: Path) -> None:
    build_store(corpus, tmp_path / "views", "shardwriter.views=1")
    with pytest.raises(StoreError, match=r"has 1 views, datamodule\.data_config\.views asks for 3; build them"):
        data(corpus, tmp_path / "views", "datamodule.data_config.views=3").prepare_splits()


def test_two_stores_with_one_key_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_store(corpus, tmp_path / name)
    with pytest.raises(StoreError, match=r"train-\w+-00000\d.tar and .*train-\w+-00000\d.tar both have 'tr_00\d'"):
        data(corpus, tmp_path / "one", others=(tmp_path / "two",)).prepare_splits()
