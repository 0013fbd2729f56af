"""Training Batches from tars that are read front to back, of a store's own shards."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.builds import build_store, stored, tar
from helpers.corpus import Corpus, make_corpus
from helpers.streamed_tars import SEGMENT, keys, stream

from iianet.errors import ConfigError, FeatureStoreError, StoreError
from shardwriter.storage.tar_urls import VAL, word_of


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), {"train": 6, "val": 4, "test": 0}, frames=(2, 3, 4))


@pytest.fixture(scope="module")
def store(corpus: Corpus, quick: None) -> Path:
    """Two training shards of 3 utterances, two validation shards of 3 and 1."""
    build_store(corpus, corpus.root / "store")
    return corpus.root / "store"


def pattern(store: Path) -> str:
    return str(tar(store, "train")).replace("000000", "{000000..000001}")


def examples(corpus: Corpus, split: str) -> Counter[str]:
    rows = [row for kind in ("s1", "s2") for row in corpus.rows(split, kind)]
    return Counter(Path(mouth).stem for _, mouth, _ in rows)


@pytest.mark.parametrize("workers", [0, 2, 5])
def test_every_example_comes_once_whatever_the_workers(corpus: Corpus, store: Path, workers: int) -> None:
    data = stream(corpus, pattern(store), f"datamodule.data_config.num_workers={workers}")
    assert keys(list(data.train_dataloader())) == examples(corpus, "train")
    assert keys(list(data.val_dataloader())) == examples(corpus, "val")


def test_more_workers_than_shards_are_not_started(
    corpus: Corpus, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    data = stream(corpus, pattern(store), "datamodule.data_config.num_workers=5")
    assert data.train_dataloader().num_workers == 2
    assert "num_workers is 5; there are 2 shards, so 2 are started" in caplog.text


def test_two_ranks_see_every_example_once(corpus: Corpus, store: Path) -> None:
    """With as many batches as a pass has, which is 3 here: 5 examples a rank in batches of 2."""
    own = [
        stream(corpus, pattern(store), "datamodule.data_config.stream_batches=3", rank=rank, world_size=2)
        for rank in range(2)
    ]
    seen = [keys(list(data.train_dataloader())) for data in own]
    assert all(seen) and not seen[0].keys() & seen[1].keys()
    assert {*seen[0], *seen[1]} == {*examples(corpus, "train")}
    validated = [list(data.val_dataloader()) for data in own]
    assert len(validated[0]) == len(validated[1])
    assert keys(validated[0]) + keys(validated[1]) == examples(corpus, "val")


def test_the_stream_starts_over_until_the_epoch_is_full(corpus: Corpus, store: Path) -> None:
    for workers in (0, 2):
        settings = ("datamodule.data_config.stream_batches=13", f"datamodule.data_config.num_workers={workers}")
        loader = stream(corpus, pattern(store), *settings).train_dataloader()
        batches = list(loader)
        assert len(batches) == len(loader) == 13
        assert sum(batch.num_examples for batch in batches) == 26


def test_epochs_are_shuffled_differently_and_again_the_same(corpus: Corpus, store: Path) -> None:
    data = stream(corpus, pattern(store))
    trainer: Any = data.trainer
    orders = []
    for epoch in (0, 1, 0):
        trainer.current_epoch = epoch
        orders.append([batch.keys for batch in data.train_dataloader()])
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize("setting", [None, "shardwriter.audio=embed", "shardwriter.dtype=int8"])
def test_rows_hold_what_the_store_and_the_wavs_hold(
    corpus: Corpus, store: Path, setting: str | None, tmp_path: Path
) -> None:
    if setting is not None:
        store = tmp_path
        build_store(corpus, store, setting)
    embeddings = stored(store, "train")
    wavs: dict[str, list[tuple[bytes, bytes]]] = {}
    for kind in ("s1", "s2"):
        for (mixture, _), (source, mouth, _) in zip(
            corpus.rows("train", "mix"), corpus.rows("train", kind), strict=True
        ):
            pair = [soundfile.read(corpus.root / path, dtype="float32")[0][:SEGMENT] for path in (mixture, source)]
            wavs.setdefault(Path(mouth).stem, []).append((pair[0].tobytes(), pair[1].tobytes()))
    data = stream(corpus, pattern(store), "datamodule.data_config.train_mixing=static")
    found: dict[str, list[tuple[bytes, bytes]]] = {}
    for batch in data.train_dataloader():
        for key, mixture, target, embedding in zip(
            batch.keys, batch.mixture, batch.target, batch.embedding, strict=True
        ):
            found.setdefault(key, []).append((mixture.numpy().tobytes(), target.numpy().tobytes()))
            assert np.array_equal(embedding.numpy(), embeddings[key][:, :2])
    assert {key: sorted(pairs) for key, pairs in found.items()} == {key: sorted(pairs) for key, pairs in wavs.items()}


def test_random_segments_of_embedding_and_audio_begin_together(corpus: Corpus, store: Path) -> None:
    embeddings = stored(store, "train")
    sources = {
        Path(mouth).stem: soundfile.read(corpus.root / wav, dtype="float32")[0]
        for kind in ("s1", "s2")
        for (wav, mouth, num_samples) in corpus.rows("train", kind)
        if num_samples > SEGMENT
    }
    starts = set()
    settings = ("train_mixing=static", "segment_start=random", "stream_batches=40")
    data = stream(corpus, pattern(store), *(f"datamodule.data_config.{setting}" for setting in settings))
    for batch in data.train_dataloader():
        for key, target, embedding in zip(batch.keys, batch.target.numpy(), batch.embedding.numpy(), strict=True):
            for start in range(2):
                if key in sources and np.array_equal(target, sources[key][640 * start :][:SEGMENT]):
                    assert np.array_equal(embedding, embeddings[key][:, start : start + 2])
                    starts.add(start)
    assert starts == {0, 1}


def test_dynamic_mixing_adds_a_source_of_another_utterance(corpus: Corpus, store: Path) -> None:
    sources = {
        soundfile.read(corpus.root / wav, dtype="float32")[0][:SEGMENT].tobytes(): Path(mouth).stem
        for kind in ("s1", "s2")
        for wav, mouth, _ in corpus.rows("train", kind)
    }
    pcm = np.float32(1 / 2**15)
    batches = list(stream(corpus, pattern(store)).train_dataloader())
    assert batches
    for batch in batches:
        for key, mixture, target in zip(batch.keys, batch.mixture.numpy(), batch.target.numpy(), strict=True):
            added = np.rint((mixture - target) / pcm).astype(np.float32) * pcm
            assert sources[added.tobytes()] != key


def test_validation_shards_are_named_by_train_or_by_themselves(corpus: Corpus, store: Path, tmp_path: Path) -> None:
    assert word_of(VAL, "http://train/x/train-{00..19}.tar") == "http://train/x/val-{00..19}.tar"
    with pytest.raises(ConfigError, match="no 'train' in its last part"):
        word_of(VAL, "/data/train/{00..19}.tar")
    one = stream(corpus, [pattern(store), str(tar(store, "val"))])
    assert [Path(url).name for url in one.urls["val"]] == [tar(store, "val").name]
    with pytest.raises(StoreError, match="is named 2 times"):
        stream(corpus, [pattern(store), str(tar(store, "train", 1))])
    (tmp_path / "train-0.tar").write_bytes(tar(store, "train").read_bytes())
    with pytest.raises(StoreError, match=r"val-0.tar: no such file.*one more --shards"):
        stream(corpus, str(tmp_path / "train-0.tar"))


@pytest.mark.parametrize(
    ("overrides", "world_size", "message"),
    [
        ((), 2, "stream_batches"),
        (("datamodule.data_config.stream_batches=2",), 3, "2 shards and 3 ranks"),
        (("training.val_check_interval=2",), 1, "val_check_interval"),
        (("training.limit_val_batches=0.5",), 1, "limit_val_batches"),
    ],
)
def test_what_needs_a_known_length_is_refused(
    corpus: Corpus, store: Path, overrides: tuple[str, ...], world_size: int, message: str
) -> None:
    data = stream(corpus, pattern(store), *overrides, world_size=world_size)
    with pytest.raises(FeatureStoreError, match=message):
        data.order_facts()


def test_tars_of_a_store_say_which_encoder_made_them(corpus: Corpus, store: Path) -> None:
    trust = "datamodule.data_config.trust_imported=false"
    stream(corpus, pattern(store), trust)
    with pytest.raises(StoreError, match=rf"{store}: .*fingerprint: quick-1 here, quick-0 there"):
        stream(corpus, pattern(store), trust, "videonet.videonet_config.seed=1")
