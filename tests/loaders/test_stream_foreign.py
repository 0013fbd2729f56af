"""Training Batches from tars that others made: audio as members, over HTTP, and with what cannot be trained on."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.corpus import Corpus, make_corpus
from helpers.foreign_tars import npy, traps
from helpers.streamed_tars import SEGMENT, foreign, keys, stream, write_shard
from helpers.web_server import served

from iianet.errors import ManifestError, StoreError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """For its config alone."""
    return make_corpus(tmp_path_factory.mktemp("corpus"), {"train": 2, "val": 0, "test": 0}, frames=2)


@pytest.fixture
def http(tmp_path: Path) -> Iterator[str]:
    """Address at which `tmp_path` is served."""
    with served(tmp_path) as address:
        yield address


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_audio_members_are_trained_on_over_http(corpus: Corpus, tmp_path: Path, http: str, kind: str) -> None:
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}-000000.tar", foreign(4, kind=kind))
    data = stream(corpus, f"{http}/train-{{000000..000000}}.tar", "datamodule.data_config.train_mixing=static")
    batches = list(data.train_dataloader())
    assert keys(batches) == Counter(f"clip{number}" for number in range(4)) == keys(list(data.val_dataloader()))
    for batch in batches:
        assert [f"clip{int(value)}" for value in batch.embedding[:, 0, 0]] == list(batch.keys)
        assert batch.mixture.shape == batch.target.shape == (2, SEGMENT)


def test_a_missing_shard_is_reported_before_training(corpus: Corpus, tmp_path: Path, http: str) -> None:
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}-0.tar", foreign(3))
    with pytest.raises(StoreError, match=r"-1.tar: cannot be fetched \(HTTP 404"):
        stream(corpus, f"{http}/train-{{0..1}}.tar")


def test_what_is_too_short_is_left_out_and_counted(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    long, short = foreign(3), foreign(2, SEGMENT - 1)
    for sample in short:
        sample["__key__"] = f"short-{sample['__key__']}"
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}.tar", [*short, *long])
    data = stream(corpus, str(tmp_path / "train.tar"))
    assert keys(list(data.train_dataloader())) == Counter(sample["__key__"] for sample in long)
    assert "train: 2 examples are shorter than the segment of 0.08 s and left out" in caplog.text


def test_nothing_to_train_on_is_an_error(corpus: Corpus, tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}.tar", foreign(3, SEGMENT - 1))
    data = stream(corpus, str(tmp_path / "train.tar"))
    with pytest.raises(StoreError, match="3 examples are shorter"):
        list(data.train_dataloader())
    endless = stream(corpus, str(tmp_path / "train.tar"), "datamodule.data_config.stream_batches=2")
    with pytest.raises(StoreError, match="nothing to train on"):
        list(endless.train_dataloader())


def test_one_utterance_cannot_be_mixed_anew(corpus: Corpus, tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}.tar", foreign(1))
    data = stream(corpus, str(tmp_path / "train.tar"))
    with pytest.raises(ManifestError, match="train_mixing: static"):
        list(data.train_dataloader())


def test_bad_samples_are_listed_and_the_batch_is_filled_up(corpus: Corpus, tmp_path: Path) -> None:
    for split in ("train", "val"):
        samples = foreign(5)
        samples[1]["emb.npy"] = npy(np.full((512, 2), np.nan, dtype=np.float32))
        samples[2]["source.wav"] = b"no wav"
        write_shard(tmp_path / f"{split}.tar", samples)
    data = stream(corpus, str(tmp_path / "train.tar"), "datamodule.data_config.train_mixing=static")
    for loader, rows in ((data.train_dataloader(), [2, 1]), (data.val_dataloader(), [1, 2])):
        batches = list(loader)
        assert [batch.num_examples for batch in batches] == rows
        assert {key for batch in batches for key, _ in batch.dropped} == {"clip1", "clip2"}


def test_nothing_is_ever_unpickled(corpus: Corpus, tmp_path: Path) -> None:
    pickled, objects = traps(tmp_path / "ran")
    for split in ("train", "val"):
        samples = foreign(4, pkl=pickled, pyd=pickled)
        samples[3]["emb.npy"] = objects
        write_shard(tmp_path / f"{split}.tar", samples)
    batches = list(stream(corpus, str(tmp_path / "train.tar")).train_dataloader())
    assert len(keys(batches)) == 3
    assert [key for batch in batches for key, reason in batch.dropped if "never unpickled" in reason] == ["clip3"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"x.npy": npy(np.zeros((512, 2), np.float16))}, "emb.npy, mixture.wav, source.wav, x.npy; expected one npy"),
        ({"emb.npy": npy(np.zeros((6, 2), np.float16))}, r"is \(6, 2\); expected \(512, frames\)"),
        ({"emb.npy": npy(np.zeros(512, np.float16))}, r"is \(512,\); expected \(512, frames\)"),
        ({"emb.npy": npy(np.zeros((512, 2)))}, "is of float64; expected float16 or float32 or int8"),
        ({"emb.npy": npy(np.zeros((512, 2), np.int8))}, "has no scale.npy"),
        ({"emb.npy": npy(np.full((512, 2), np.inf, np.float16))}, "not finite"),
        ({"emb.npy": npy(np.zeros((512, 2), np.float16))[:-2]}, "an npy of 2,174 bytes; expected 2,176"),
        ({"source.wav": b""}, "its audio cannot be read"),
    ],
)
def test_tars_of_another_layout_are_refused_before_training(
    corpus: Corpus, tmp_path: Path, members: dict[str, bytes], reason: str
) -> None:
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}.tar", [{**sample, **members} for sample in foreign(2)])
    with pytest.raises(StoreError, match=rf"train\.tar: cannot be trained on: .*train\.tar: clip1: .*{reason}"):
        stream(corpus, str(tmp_path / "train.tar"))


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        (None, r"its audio is s\.wav; give --data_root, the folder where such paths start"),
        (np.zeros(9, np.int16), r"audio\.npy is \(9,\) int16; expected \(5120,\) int16, int32 or float32, as its json"),
        (np.zeros(5120), r"audio\.npy is \(5120,\) float64; expected \(5120,\) int16, int32 or float32, as its json"),
    ],
)
def test_audio_that_is_not_as_the_json_says_is_refused_before_training(
    corpus: Corpus, tmp_path: Path, audio: np.ndarray | None, reason: str
) -> None:
    entry = {"mixture": "m.wav", "source": "s.wav", "speaker": 1, "num_samples": 2 * SEGMENT}
    sample = {
        "__key__": "clip0",
        "embedding.npy": npy(np.zeros((512, 4), np.float16)),
        "json": json.dumps({"audio": [entry]}).encode(),
        **({} if audio is None else {"audio.npy": npy(audio)}),
    }
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}.tar", [sample])
    with pytest.raises(StoreError, match=rf"train\.tar: cannot be trained on: .*train\.tar: clip0: {reason}"):
        stream(corpus, str(tmp_path / "train.tar"), "datamodule.data_config.data_root=null")


def test_embedding_npy_is_taken_among_several_and_dtypes_may_differ(corpus: Corpus, tmp_path: Path) -> None:
    first, second = foreign(2)
    first["embedding.npy"] = npy(np.full((512, 2), 7, dtype=">f2"))
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}.tar", [first, second])
    [batch] = stream(corpus, str(tmp_path / "train.tar")).val_dataloader()
    assert batch.embedding[:, 0, 0].tolist() == [7, 1]
    assert batch.embedding.dtype == torch.float32


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_a_damaged_tar_is_an_error_that_names_it(corpus: Corpus, tmp_path: Path, damage: str) -> None:
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}.tar", foreign(12))
    tar = tmp_path / "train.tar"
    content = tar.read_bytes()
    magic = content.rindex(b"ustar")  # in the header of the last member
    tar.write_bytes(content[: magic + 1000] if damage == "cut" else content[:magic] + b"X" + content[magic + 1 :])
    with pytest.raises(StoreError, match=r"train\.tar: cannot be read to its end"):
        list(stream(corpus, str(tar)).train_dataloader())


@pytest.mark.parametrize("word", ["pipe:touch {ran}", "{{pipe:touch {ran},a}}train.tar", "-", "s3://b/train.tar"])
def test_no_command_is_run_for_a_word(corpus: Corpus, tmp_path: Path, word: str) -> None:
    with pytest.raises(StoreError, match="refused"):
        stream(corpus, word.format(ran=tmp_path / "ran"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("path", ["../outside.wav", "/etc/outside.wav"])
def test_a_json_cannot_lead_out_of_data_root(corpus: Corpus, tmp_path: Path, path: str) -> None:
    entry = {"mixture": path, "source": path, "speaker": 1, "num_samples": SEGMENT}
    sample = {"__key__": "clip", "npy": npy(np.zeros((512, 2), dtype=np.float32))}
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}.tar", [{**sample, "json": json.dumps({"audio": [entry]}).encode()}])
    with pytest.raises(StoreError, match="below data_root"):
        stream(corpus, str(tmp_path / "train.tar"))


def test_tars_of_an_unknown_encoder_need_trust_as_an_imported_store_does(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}.tar", foreign(3))
    word, trust = str(tmp_path / "train.tar"), "datamodule.data_config.trust_imported"
    with pytest.raises(
        StoreError,
        match=r"\.tar: the encoder .* unknown \(nothing .* says which\); expected the config's.* --trust_imported",
    ):
        stream(corpus, word, f"{trust}=false")
    stream(corpus, word, f"{trust}=true")
    assert "--trust_imported takes it for the config's random weights of seed 0" in caplog.text
