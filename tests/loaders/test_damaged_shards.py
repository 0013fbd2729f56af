"""A shard that turns out to be damaged while training: its utterances count as missing, and are never trained on."""

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.batches import data
from helpers.builds import build_store, shards, tar
from helpers.corpus import Corpus, make_corpus

from iianet.batch import Batch
from iianet.encoder.mouth import center_crop
from iianet.errors import StoreError, UnreachableError
from loaders.datamodule import SeparationData
from shardwriter.storage.folder import Folder

pytestmark = pytest.mark.usefixtures("quick")

ON_MISSING = "datamodule.data_config.on_missing="
SMALL_BLOCKS = ("datamodule.data_config.block_size=2", "datamodule.data_config.window_blocks=1")


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus", {"train": 8, "val": 2, "test": 0}, frames=4)


def flip(path: Path) -> None:
    """Change a byte of each embedding, which leaves the size and the index as they are."""
    content = bytearray(path.read_bytes())
    for place in range(700, len(content), 512):
        content[place] ^= 0x10
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-512])


def keys_of(source: SeparationData, shard: int) -> set[str]:
    """Keys that a shard holds."""
    stored = source.splits["train"].stored
    assert stored is not None
    return {key for row, key in enumerate(stored.centre.keys.to_pylist()) if stored.centre.shard_of[row] == shard}


def train(source: SeparationData, epochs: int = 2) -> list[Batch]:
    loader = source.train_dataloader()
    return [batch for _ in range(epochs) for batch in loader]


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("blocks", [(), SMALL_BLOCKS])
def test_utterances_of_a_damaged_shard_are_encoded_on_the_fly(
    corpus: Corpus,
    tmp_path: Path,
    harm: Callable[[Path], None],
    workers: int,
    blocks: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    build_store(corpus, tmp_path / "store", splits=("train", "val"))
    source = data(corpus, tmp_path / "store", f"datamodule.data_config.num_workers={workers}", *blocks)
    lost = keys_of(source, 1)
    assert lost
    harm(tar(tmp_path / "store", "train", 1))
    batches = train(source)
    encoder = corpus.config().encoder_source().load(torch.device("cpu"))
    found = set()
    for batch in batches:
        assert not batch.dropped
        for row, key in enumerate(batch.keys):
            found.add(key)
            assert (row in batch.mouth_rows) == (key in lost)
            if key not in lost:
                with np.load(corpus.mouth(key), allow_pickle=False) as npz:
                    expected = encoder.encode([center_crop(torch.from_numpy(npz["data"]))])[0]
                assert torch.equal(batch.embedding[row], expected.half())
    assert found == set(corpus.names["train"])


def test_a_shard_that_is_cut_counts_as_missing_also_where_shards_are_not_read_ahead(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_store(corpus, tmp_path / "store", splits=("train", "val"))
    source = data(corpus, tmp_path / "store", "datamodule.data_config.read_ahead_windows=0")
    lost = keys_of(source, 1)
    path = tar(tmp_path / "store", "train", 1)
    size = path.stat().st_size
    cut(path)
    for batch in train(source):
        assert not batch.dropped
        assert {batch.keys[row] for row in batch.mouth_rows} == lost & set(batch.keys)
    [said] = [record.getMessage() for record in caplog.records if str(path) in record.getMessage()]
    assert said.startswith(f"{path}: has {size - 512:,} bytes now, and had {size:,} when the store was opened")
    assert "Run inspect-shards --verify, then build-shards. Until then its utterances count as missing" in said


def test_a_damaged_shard_is_said_once_with_the_cure(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    build_store(corpus, store, splits=("train", "val"))
    source = data(corpus, store)
    source.prepare_splits()
    flip(path := tar(store, "train", 1))
    train(source, epochs=3)
    [said] = [record.getMessage() for record in caplog.records if "digest" in record.getMessage()]
    assert said.startswith(f"{path}: its digest is ") and "its index says" in said
    assert "run build-shards, which writes it again. Until then its utterances count as missing" in said


def test_with_on_missing_skip_its_rows_are_left_out(corpus: Corpus, tmp_path: Path) -> None:
    build_store(corpus, tmp_path / "store", splits=("train", "val"))
    source = data(corpus, tmp_path / "store", f"{ON_MISSING}skip")
    lost = keys_of(source, 0)
    flip(tar(tmp_path / "store", "train", 0))
    batches = train(source, epochs=1)
    assert {drop.key for batch in batches for drop in batch.dropped} == lost
    assert not lost & {key for batch in batches for key in batch.keys}


@pytest.mark.parametrize("harm", [flip, cut])
def test_with_on_missing_error_it_ends_the_run(corpus: Corpus, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    build_store(corpus, tmp_path / "store", splits=("train", "val"))
    source = data(corpus, tmp_path / "store", f"{ON_MISSING}error")
    source.prepare_splits()
    harm(tar(tmp_path / "store", "train", 0))
    with pytest.raises(StoreError, match=rf"{shards(tmp_path / 'store', 'train')[0]}\.tar: "):
        train(source)


def test_audio_of_a_damaged_shard_is_read_from_its_wavs(corpus: Corpus, tmp_path: Path) -> None:
    build_store(corpus, tmp_path / "store", audio="embed", splits=("train", "val"))
    source = data(corpus, tmp_path / "store")
    source.prepare_splits()
    flip(tar(tmp_path / "store", "train", 0))
    for found, expected in zip(train(source), train(data(corpus, None)), strict=True):
        assert torch.equal(found.mixture, expected.mixture) and torch.equal(found.target, expected.target)


def test_damaged_audio_is_read_from_its_wavs_also_where_shards_are_not_read_ahead(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_store(corpus, tmp_path / "store", audio="embed", splits=("train", "val"))
    quiet = "datamodule.data_config.read_ahead_windows=0"
    source = data(corpus, tmp_path / "store", quiet)
    stored = source.splits["train"].stored
    assert stored is not None and stored.centre.audio_offsets is not None
    path = tar(tmp_path / "store", "train", int(stored.centre.shard_of[0]))
    content, place = bytearray(path.read_bytes()), int(stored.centre.audio_offsets[0])
    assert content[place + 1 : place + 6] == b"NUMPY"
    content[place + 2] ^= 0x10
    path.write_bytes(bytes(content))
    for found, expected in zip(train(source), train(data(corpus, None)), strict=True):
        assert torch.equal(found.mixture, expected.mixture) and torch.equal(found.target, expected.target)
        assert not found.dropped
    [said] = [record.getMessage() for record in caplog.records if "audio.npy" in record.getMessage()]
    assert said.startswith(f"{path}: {stored.centre.key(0)}: audio.npy begins with") and "count as missing" in said
    strict = data(corpus, tmp_path / "store", quiet, f"{ON_MISSING}error")
    with pytest.raises(StoreError, match=r"audio\.npy begins with .*expected \d+ samples or more.*--verify"):
        train(strict)


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), OSError(errno.EIO, "I/O error")])
def test_a_shard_that_cannot_be_reached_ends_the_run_and_does_not_count_as_missing(
    corpus: Corpus, tmp_path: Path, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_store(corpus, tmp_path / "store", splits=("train", "val"))
    source = data(corpus, tmp_path / "store")
    stored = source.splits["train"].stored
    assert stored is not None

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "open_tar", fail)
        with pytest.raises(UnreachableError, match=rf"\.tar: cannot be read \({error.strerror}\); it was there when"):
            train(source)
    assert not any(stored.is_damaged(shard) for shard in range(len(stored.centre.files.tars)))


def test_what_a_bucket_refuses_does_not_count_as_missing_whatever_its_words(corpus: Corpus, tmp_path: Path) -> None:
    build_store(corpus, tmp_path / "store", splits=("train", "val"))
    stored = data(corpus, tmp_path / "store").splits["train"].stored
    assert stored is not None
    with pytest.raises(UnreachableError, match="403"):
        stored.give_up(0, UnreachableError("s3://bucket/train-000000.tar: cannot be read (403 Forbidden)"))
    assert not stored.is_damaged(0)
    stored.give_up(0, StoreError("its digest is another; a name such as 'cannot be read after' changes nothing"))
    assert stored.is_damaged(0)
