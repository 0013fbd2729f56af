"""Audio that cannot be trained on: its rows are left out, and the file that is to blame is named."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.batches import data
from helpers.builds import build_store, tar
from helpers.corpus import SAMPLE_RATE, Corpus, edit_list, make_corpus
from helpers.streamed_tars import SEGMENT, foreign, stream, write_shard

from iianet.batch import Batch, Dropped
from iianet.errors import ManifestError, StoreError
from loaders.datamodule import SeparationData

pytestmark = pytest.mark.usefixtures("quick")

STATIC = "datamodule.data_config.train_mixing=static"
BAD = [np.nan, np.inf, -np.inf, 1e30, -2e4]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus", {"train": 6, "val": 4, "test": 0}, frames=4)


def spoil(wav: Path, value: float, place: int = 7, subtype: str = "FLOAT") -> Path:
    """Write a wav again as floats, with one sample of another value."""
    samples, rate = soundfile.read(wav, dtype="float32")
    samples[place] = value
    soundfile.write(wav, samples, rate, subtype=subtype)
    return wav


def validation(source: SeparationData) -> tuple[list[Batch], list[Dropped]]:
    found = list(source.val_dataloader())
    return found, [drop for batch in found for drop in batch.dropped]


@pytest.mark.parametrize("value", BAD)
def test_samples_that_are_no_sound_drop_their_row_and_are_named(corpus: Corpus, value: float) -> None:
    wav = spoil(corpus.root / corpus.rows("val", "s1")[0][0], value, subtype="DOUBLE" if value == 1e30 else "FLOAT")
    found, [lost] = validation(data(corpus, None))
    assert lost.key == "cv_000"
    assert lost.reason.startswith(f"{wav}: has {value:g} 7 samples after the start")
    assert "expected floats of about -1 to 1" in lost.reason and "leave it out" in lost.reason
    assert all(batch.mixture.isfinite().all() and batch.target.isfinite().all() for batch in found)
    assert sum(batch.num_examples for batch in found) == 5


def test_loud_floats_are_sound(corpus: Corpus) -> None:
    spoil(corpus.root / corpus.rows("val", "s1")[0][0], 9_000.0)
    assert not validation(data(corpus, None))[1]


def test_stored_samples_that_are_no_sound_drop_their_row_too(corpus: Corpus, tmp_path: Path) -> None:
    for row in corpus.rows("val", "s1") + corpus.rows("val", "s2") + corpus.rows("val", "mix"):
        spoil(corpus.root / row[0], 0.5)  # floats, so that the shards have floats
    build_store(corpus, tmp_path / "store", audio="embed", splits=("val",))
    path = tar(tmp_path / "store", "val")
    content, half = path.read_bytes(), np.float32(0.5).tobytes()
    assert half in content
    path.write_bytes(content.replace(half, np.float32(np.nan).tobytes(), 1))
    [lost] = validation(data(corpus, tmp_path / "store", "datamodule.data_config.read_ahead_windows=0"))[1]
    assert lost.reason.startswith(str(path)) and "audio.npy: has nan" in lost.reason


def test_a_broken_wav_of_the_partner_is_blamed_and_not_the_row(corpus: Corpus) -> None:
    """Each source serves as a target once an epoch, and as a partner of others."""
    wav = corpus.root / corpus.rows("train", "s1")[2][0]
    wav.write_bytes(b"RIFF")
    source = data(corpus, None)
    loader = source.train_dataloader()
    lost = [drop for _ in range(8) for batch in loader for drop in batch.dropped]
    assert {drop.key for drop in lost} == {"tr_002"}
    own = [drop for drop in lost if "drawn" not in drop.reason]
    others = [drop for drop in lost if "drawn to be mixed into a row of tr_" in drop.reason]
    assert own and others and len(own) + len(others) == len(lost)
    assert all(drop.reason.startswith(f"{wav}: cannot be read") for drop in lost)
    assert all(drop.reason.count(str(wav)) == 1 for drop in lost)


def test_the_partner_is_blamed_in_a_stream_too(corpus: Corpus, tmp_path: Path) -> None:
    samples = foreign(3)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(SEGMENT, np.nan), SAMPLE_RATE, format="WAV", subtype="FLOAT")
    samples[1]["source.wav"] = buffer.getvalue()
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}.tar", samples)
    source = stream(corpus, str(tmp_path / "train.tar"), "datamodule.data_config.segment=0.08")
    lost = [drop for batch in source.train_dataloader() for drop in batch.dropped]
    assert {drop.key for drop in lost} == {"clip1"}
    assert any("drawn to be mixed into a row of clip0" in drop.reason for drop in lost)


@pytest.mark.parametrize(
    ("rate", "channels", "found"),
    [(8_000, 1, r"at 8000 Hz.*expected mono at 16000 Hz"), (SAMPLE_RATE, 2, r"\(2560, 2\) samples.*expected mono")],
)
@pytest.mark.parametrize("stored", [False, True])
def test_a_corpus_whose_wavs_all_have_another_rate_or_two_channels_is_refused_before_training(
    corpus: Corpus, tmp_path: Path, rate: int, channels: int, found: str, stored: bool
) -> None:
    if stored:
        build_store(corpus, tmp_path / "store", splits=("train", "val"))
    for row in corpus.rows("val", "s1") + corpus.rows("val", "s2"):
        samples = np.zeros((row[2], channels))
        soundfile.write(corpus.root / row[0], samples, rate)
    with pytest.raises(ManifestError, match=rf"val: none of the first 6 wavs can be used, e\.g\. .*{found}") as no:
        data(corpus, tmp_path / "store" if stored else None).prepare_splits()
    assert "ffmpeg" in str(no.value) and f"paths start at {corpus.root}" in str(no.value)


@pytest.mark.parametrize("split", ["train", "val"])
def test_mixtures_that_are_not_there_are_refused_before_training_where_they_are_read(
    corpus: Corpus, split: str
) -> None:
    for row in corpus.rows(split, "mix"):
        (corpus.root / row[0]).unlink(missing_ok=True)
    with pytest.raises(ManifestError, match=rf"{split}: none of the first \d wavs .*mix.*no such file.*--data_root"):
        data(corpus, None, STATIC).prepare_splits()
    if split == "train":
        data(corpus, None).prepare_splits()  # dynamic mixing reads none


def test_one_bad_wav_does_not_end_a_run(corpus: Corpus) -> None:
    for row in (corpus.rows("val", "s1") + corpus.rows("val", "s2"))[:-1]:
        (corpus.root / row[0]).write_bytes(b"RIFF")
    data(corpus, None).prepare_splits()


@pytest.mark.timeout(20)
def test_a_pipe_in_the_place_of_a_wav_does_not_hang(corpus: Corpus) -> None:
    wav = corpus.root / corpus.rows("val", "s1")[0][0]
    wav.unlink()
    os.mkfifo(wav)
    [lost] = validation(data(corpus, None))[1]
    assert lost.reason.startswith(f"{wav}: cannot be read (a folder, a FIFO or a device; expected a regular file)")


@pytest.mark.parametrize("outside", ["../secret.wav", "/secret.wav"])
@pytest.mark.parametrize("kind", ["mix", "s1"])
def test_a_store_cannot_lead_out_of_data_root(corpus: Corpus, tmp_path: Path, outside: str, kind: str) -> None:
    """Its own lists decide where the corpus' are not at hand; whoever wrote it may have written any path there."""
    edit_list(corpus, "val", kind, lambda rows: [[str(corpus.root / outside), *rows[0][1:]], *rows[1:]])
    store = tmp_path / "store"
    build_store(corpus, store, splits=("train", "val"))
    assert validation(data(corpus, store))[0]  # the lists are the user's own
    shutil.rmtree(corpus.root / "json")
    with pytest.raises(
        StoreError, match=rf"{store}: val names 1 file outside data_root.* expected paths below it"
    ) as no:
        data(corpus, store).prepare_splits()
    assert "allow_outside_root=true" in str(no.value) and str(corpus.root) in str(no.value)
    data(corpus, store, "datamodule.data_config.allow_outside_root=true").prepare_splits()
