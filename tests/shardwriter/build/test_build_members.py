"""Builds with `--dtype int8` and `--audio embed`: what their samples hold, and that a store keeps to what it holds."""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.builds import (
    build_store,
    index,
    load_npy,
    opened,
    quick_embedding,
    read_index,
    samples,
    stored,
    tar,
)
from helpers.corpus import Corpus, make_corpus

from iianet.errors import StoreError
from shardwriter.build.report import BuildReport
from shardwriter.format.sample import decode_pcm, dequantize

pytestmark = pytest.mark.usefixtures("quick")

FULL = ("shardwriter.dtype=int8", "shardwriter.audio=embed")
MEMBERS = ["embedding.npy", "scale.npy", "json", "audio.npy"]
PAYLOAD_BYTES = 28_000
"""Most that the embedding of a 50-frame utterance may take as int8, scale and headers included."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, quick: None) -> tuple[Corpus, Path, BuildReport]:
    """A corpus of 50-frame mouths, its store with all members, and how the build went, to read only."""
    corpus = make_corpus(tmp_path_factory.mktemp("shared"), {"train": 5, "val": 2}, frames=50)
    store = corpus.root / "store"
    return corpus, store, build_store(corpus, store, *FULL, splits=("train", "val"))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus", {"train": 4})


def expected_audio(corpus: Corpus, sample: dict[str, Any]) -> np.ndarray:
    """The wavs that a sample's json member names, one after the other."""
    parts = []
    for entry in sample["json"]["audio"]:
        for role in ("source", "mixture"):
            parts.append(soundfile.read(corpus.root / entry[role], frames=entry["num_samples"], dtype="float32")[0])
    return np.concatenate(parts)


def test_webdataset_reads_every_member(shared: tuple[Corpus, Path, BuildReport]) -> None:
    corpus, store, _ = shared
    found = samples(store, "train")
    assert {sample["__key__"] for sample in found} == set(corpus.names["train"])
    for sample in found:
        assert {name for name in sample if not name.startswith("__")} == set(MEMBERS)
        exact = quick_embedding(corpus.mouth(sample["__key__"])).astype(np.float32)
        values, scale = sample["embedding.npy"], sample["scale.npy"]
        assert (values.dtype, scale.dtype, sample["audio.npy"].dtype) == (np.int8, np.float32, np.int16)
        assert (np.abs(dequantize(values, scale) - exact) <= 0.5 * scale[:, None] + 0.0005).all()  # exact is float16
        np.testing.assert_array_equal(decode_pcm(sample["audio.npy"]), expected_audio(corpus, sample))


def test_members_of_every_sample_are_the_same_and_adjacent(shared: tuple[Corpus, Path, BuildReport]) -> None:
    _, store, _ = shared
    tars = list(store.glob("*.tar"))
    assert len(tars) == 3
    for path in tars:
        with tarfile.open(path) as archive:
            names = archive.getnames()
        keys = [name.split(".", 1)[0] for name in names[:: len(MEMBERS)]]
        assert names == [f"{key}.{member}" for key in keys for member in MEMBERS]


def test_50_frames_take_at_most_28000_bytes(shared: tuple[Corpus, Path, BuildReport]) -> None:
    _, store, _ = shared
    tars = list(store.glob("*.tar"))
    assert len(tars) == 3
    for path in tars:
        with tarfile.open(path) as archive:
            sizes = {member.name.split(".", 1)[1]: member.size for member in archive.getmembers()}
        assert 512 * 50 < sizes["embedding.npy"] + sizes["scale.npy"] <= PAYLOAD_BYTES


def test_index_points_at_every_member(shared: tuple[Corpus, Path, BuildReport]) -> None:
    _, store, _ = shared
    content = tar(store, "train").read_bytes()
    found = {sample["__key__"]: sample for sample in samples(store, "train")}
    rows = read_index(index(store, "train"))[0].to_pylist()
    assert len(rows) == 3
    for row in rows:
        for member in ("embedding", "scale", "audio"):
            array = load_npy(content[row[f"{member}_offset"] :][: row[f"{member}_length"]])
            np.testing.assert_array_equal(array, found[row["key"]][f"{member}.npy"])


def test_report_tells_how_much_of_it_is_audio(shared: tuple[Corpus, Path, BuildReport]) -> None:
    corpus, store, report = shared
    held = sum(sample["audio.npy"].nbytes for split in corpus.names for sample in samples(store, split))
    assert report.audio_bytes == held == 2 * 2 * 2 * 32_000 * sum(len(names) - 1 for names in corpus.names.values())


def test_store_without_options_has_no_further_members(corpus: Corpus, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert build_store(corpus, store, splits=("train",)).audio_bytes == 0
    members = {name for sample in samples(store, "train") for name in sample if not name.startswith("__")}
    assert members == {"embedding.npy", "json"}
    rows = read_index(index(store, "train"))[0].to_pylist()
    assert {row[name] for row in rows for name in ("scale_offset", "audio_offset")} == {None}


def test_additions_have_the_store_s_own_members(corpus: Corpus, tmp_path: Path) -> None:
    store = tmp_path / "store"
    build_store(corpus, store, *FULL, splits=("train",))
    grown = make_corpus(corpus.root, {"train": 6})
    assert build_store(grown, store, splits=("train",)).stored == {"train": 2}
    identity = opened(store).record.identity
    assert (identity.dtype, identity.audio) == ("int8", "embed")
    assert {tuple(name for name in MEMBERS if name in sample) for sample in samples(store, "train")} == {tuple(MEMBERS)}
    assert len(stored(store, "train")) == 6


def test_overwrite_goes_by_the_config(corpus: Corpus, tmp_path: Path) -> None:
    build_store(corpus, tmp_path, *FULL, splits=("train",))
    build_store(corpus, tmp_path, splits=("train",), overwrite=True)
    identity = opened(tmp_path).record.identity
    assert (identity.dtype, identity.audio) == ("float16", "path")


@pytest.mark.parametrize(
    ("made", "asked", "message"),
    [
        ((), {"audio": "embed"}, "audio: embed here, path there"),
        (FULL, {"audio": "path"}, "audio: path here, embed there"),
        (FULL, {"dtype": "float16"}, "dtype: float16 here, int8 there"),
    ],
)
def test_other_members_than_the_store_s_are_refused(
    corpus: Corpus, tmp_path: Path, made: tuple[str, ...], asked: dict[str, str], message: str
) -> None:
    store = tmp_path / "store"
    build_store(corpus, store, *made, splits=("train",))
    with pytest.raises(StoreError, match=message):
        build_store(corpus, store, splits=("train",), **asked)
    assert build_store(corpus, store, splits=("train",), overwrite=True, **asked).stored == {"train": 4}
    identity = opened(store).record.identity
    assert {name: getattr(identity, name) for name in asked} == asked


def test_wav_that_cannot_be_stored_fails_its_utterances_with_the_reason(corpus: Corpus, tmp_path: Path) -> None:
    wav, mouth, _ = corpus.rows("train", "s1")[1]
    (corpus.root / wav).unlink()
    store = tmp_path / "store"
    report = build_store(corpus, store, *FULL, splits=("train",))
    (failure,) = report.failed["train"]
    assert failure.mouth == mouth
    assert failure.reason == f"{wav}: no such file; copy it there, or correct data_root or the lists"
    assert report.stored == {"train": 3}
    tables = [read_index(path)[0] for path in store.glob("train-*.index")]
    shown = str([table.to_pylist() for table in tables])
    assert failure.reason in shown and str(corpus.root) not in shown


def test_wav_that_was_fixed_is_stored_on_request(corpus: Corpus, tmp_path: Path) -> None:
    wav = corpus.root / corpus.rows("train", "mix")[1][0]
    content = wav.read_bytes()
    wav.write_bytes(b"RIFF")
    store = tmp_path / "store"
    assert len(build_store(corpus, store, *FULL, splits=("train",)).failed["train"]) == 2
    wav.write_bytes(content)
    report = build_store(corpus, store, splits=("train",), retry_failed=True)
    assert (report.stored, report.failed) == ({"train": 2}, {"train": []})
