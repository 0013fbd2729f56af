"""build-shards --import_embeddings: a build whose embeddings an earlier tool made."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers.builds import build_store, opened, reasons, samples, stored
from helpers.commands import run_main
from helpers.corpus import Corpus, make_corpus, make_frames, write_mouth

from iianet.errors import ConfigError, ManifestError, StoreError
from shardwriter import build_cli, inspect_cli
from shardwriter.corpus.embedding_npz import write_embedding_npz
from shardwriter.corpus.manifest import load_manifests
from shardwriter.corpus.mouth_npz import read_mouth_npz
from shardwriter.encode import imported
from shardwriter.format.sample import Failed, Sample
from shardwriter.inspect.inspected import InspectedStore
from shardwriter.inspect.sample import find_samples
from shardwriter.storage.folder import Folder

NO_WEIGHTS = "videonet.videonet_config.pretrain=/nowhere/weights.pth"


def embedding_of(corpus: Corpus, name: str, seed: int = 0) -> npt.NDArray[np.float32]:
    """What an earlier tool might have made of a mouth."""
    frames = len(read_mouth_npz(corpus.mouth(name)).frames)
    random = np.random.default_rng([seed, *name.encode()])
    return random.normal(size=(512, frames)).astype(np.float32)


def file_of(corpus: Corpus, name: str) -> Path:
    return corpus.mouth(f"{name}_embedding")


def write_embeddings(corpus: Corpus) -> dict[str, npt.NDArray[np.float32]]:
    made = {name: embedding_of(corpus, name) for names in corpus.names.values() for name in names}
    for name, embedding in made.items():
        write_embedding_npz(file_of(corpus, name), embedding)
    return made


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """A corpus where the earlier tool has been."""
    made = make_corpus(tmp_path / "corpus")
    write_embeddings(made)
    return made


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_embeddings_are_packed_as_they_are_and_no_weights_are_needed(corpus: Corpus, store: Path, dtype: str) -> None:
    report = build_store(corpus, store, NO_WEIGHTS, f"shardwriter.dtype={dtype}", import_embeddings=True)
    assert not report.any_failed
    for split, names in corpus.names.items():
        found = stored(store, split)
        assert set(found) == set(names)
        for name in names:
            np.testing.assert_array_equal(found[name], embedding_of(corpus, name).astype(dtype))


def test_the_store_says_that_nobody_knows_the_encoder(corpus: Corpus, store: Path) -> None:
    build_store(corpus, store, import_embeddings=True)
    encoder = opened(store).record.identity.encoder
    assert encoder == {"name": "ResNetVideoModel", "imported": True, "fingerprint": None}


def test_samples_name_their_mouth_and_the_index_the_file_that_was_read(corpus: Corpus, store: Path) -> None:
    build_store(corpus, store, import_embeddings=True)
    [sample] = [sample for sample in samples(store, "val") if sample["__key__"] == "cv_000"]
    assert sample["json"]["mouth"] == "mouths/cv_000.npz"
    origins = opened(store).split("val").entries["mouth"].to_pylist()
    assert set(origins) == {"mouths/cv_000_embedding.npz", "mouths/cv_001_embedding.npz"}
    [shown] = find_samples(InspectedStore.open(Folder(store)), "cv_000")
    assert shown.facts()["mouth"] == "mouths/cv_000.npz"
    assert shown.facts()["imported_from"] == "mouths/cv_000_embedding.npz"


def test_files_that_cannot_be_taken_are_listed_and_tried_again_once_fixed(corpus: Corpus, store: Path) -> None:
    file_of(corpus, "cv_000").unlink()
    padded = np.zeros((512, 50), dtype=np.float32)
    write_embedding_npz(file_of(corpus, "cv_001"), padded)
    report = build_store(corpus, store, splits=("val",), import_embeddings=True)
    reasons_given = {failure.key: failure.reason for failure in report.failed["val"]}
    assert "mouths/cv_000_embedding.npz: cannot be read" in reasons_given["cv_000"]
    assert "batched mode stored padding as data" in reasons_given["cv_001"]
    assert reasons(build_store(corpus, store, splits=("val",), import_embeddings=True), "val") == {"skipped": 2}
    for name in corpus.names["val"]:
        write_embedding_npz(file_of(corpus, name), embedding_of(corpus, name))
    report = build_store(corpus, store, splits=("val",), import_embeddings=True)
    assert reasons(report, "val") == {"retried": 2}
    assert not report.any_failed


def test_a_file_that_was_made_anew_is_imported_again(corpus: Corpus, store: Path) -> None:
    build_store(corpus, store, import_embeddings=True)
    write_embedding_npz(file_of(corpus, "cv_000"), embedding_of(corpus, "cv_000", seed=1))
    os.utime(file_of(corpus, "cv_001"))  # another time, the same bytes
    os.utime(corpus.mouth("cv_001"))
    report = build_store(corpus, store, import_embeddings=True)
    assert reasons(report, "val") == {"changed": 1, "skipped": 1}
    expected = embedding_of(corpus, "cv_000", seed=1).astype(np.float16)
    np.testing.assert_array_equal(stored(store, "val")["cv_000"], expected)


def test_an_interrupted_import_is_resumed(corpus: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = load_manifests(corpus.config(), ["train"])["train"].utterances[-1].key
    read = imported.read_embedding

    def read_or_stop(row: Mapping[str, Any], **places: Any) -> Sample | Failed:
        if row["key"] == last:
            raise KeyboardInterrupt
        return read(row, **places)

    with monkeypatch.context() as patch:
        patch.setattr(imported, "read_embedding", read_or_stop)
        with pytest.raises(KeyboardInterrupt):
            build_store(corpus, store, import_embeddings=True)
    assert len(stored(store, "train")) == 3 and not list(store.glob(".tmp-*"))
    report = build_store(corpus, store, import_embeddings=True)
    assert reasons(report, "train") == {"resumed": 3, "skipped": 3}
    assert set(stored(store, "train")) == set(corpus.names["train"])


@pytest.mark.usefixtures("quick")
def test_imported_and_encoded_embeddings_never_mix(corpus: Corpus, store: Path, tmp_path: Path) -> None:
    build_store(corpus, store, import_embeddings=True)
    with pytest.raises(StoreError, match="encoder fingerprint"):
        build_store(corpus, store)
    build_store(corpus, tmp_path / "encoded")
    with pytest.raises(StoreError, match="encoder fingerprint"):
        build_store(corpus, tmp_path / "encoded", import_embeddings=True)


def test_an_import_that_finds_no_file_is_refused_before_a_store_is_made(corpus: Corpus, store: Path) -> None:
    for name in corpus.names["val"]:
        file_of(corpus, name).unlink()
    with pytest.raises(ManifestError, match=r"none of 2 files is there, e\.g\. .*_embedding\.npz; .*--data_root"):
        build_store(corpus, store, splits=("val",), import_embeddings=True)
    assert not (store / "store.json").exists()
    write_embedding_npz(file_of(corpus, "cv_001"), embedding_of(corpus, "cv_001"))
    assert build_store(corpus, store, splits=("val",), import_embeddings=True).stored["val"] == 1


def test_there_is_nothing_to_make_views_of(corpus: Corpus, store: Path) -> None:
    with pytest.raises(ConfigError, match="--import_embeddings"):
        build_store(corpus, store, "shardwriter.views=1", import_embeddings=True)


def test_inspect_says_where_it_came_from_and_how_to_add_to_it(
    corpus: Corpus, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file_of(corpus, "cv_000").unlink()
    build_store(corpus, store, splits=("val",), import_embeddings=True)
    out = run_main(inspect_cli.main, [store, "--against", corpus.config_file], capsys).out
    assert "weights not recorded: from an earlier tool's files, packed by --import_embeddings" in out
    assert "  cv_000  mouths/cv_000.npz: failed: mouths/cv_000_embedding.npz: cannot be read (No such file" in out
    assert f"--shards {store} --import_embeddings\n" in out


def test_audio_is_embedded_as_in_any_build(corpus: Corpus, store: Path) -> None:
    build_store(corpus, store, audio="embed", import_embeddings=True)
    [shown] = find_samples(InspectedStore.open(Folder(store)), "cv_000")
    assert shown.audio is not None and shown.metadata is not None
    [example] = shown.metadata["audio"]
    assert len(shown.audio) == 2 * example["num_samples"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_what_was_exported_is_imported_the_same(tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    build_store(corpus, tmp_path / "one", f"shardwriter.dtype={dtype}")
    words = [tmp_path / "one", "--export_embeddings", corpus.root]
    assert run_main(inspect_cli.main, words, capsys).code == 0
    build_store(corpus, tmp_path / "two", NO_WEIGHTS, f"shardwriter.dtype={dtype}", import_embeddings=True)
    for split, names in corpus.names.items():
        for name in names:
            [before], [after] = (
                find_samples(InspectedStore.open(Folder(tmp_path / store)), name) for store in ("one", "two")
            )
            assert before.entry.split == split and before.embedding is not None and after.embedding is not None
            np.testing.assert_array_equal(after.embedding, before.embedding)
            assert before.values is not None and after.values is not None
            np.testing.assert_allclose(after.values, before.values, rtol=1e-6)  # a scale may move by its last bit


@pytest.mark.usefixtures("quick")
def test_recheck_tells_whether_the_config_s_encoder_may_have_made_them(
    corpus: Corpus, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--against", corpus.config_file, "--recheck", 9, "--device", "cpu"]
    build_store(corpus, tmp_path / "noise", import_embeddings=True)
    ended = run_main(inspect_cli.main, [tmp_path / "noise", *words], capsys)
    assert ended.code == 1
    assert "when encoded again; expected at most 0.01" in ended.out
    for file in corpus.root.glob("mouths/*_embedding.npz"):
        file.unlink()
    build_store(corpus, tmp_path / "encoded")
    run_main(inspect_cli.main, [tmp_path / "encoded", "--export_embeddings", corpus.root], capsys)
    build_store(corpus, store, import_embeddings=True)
    assert run_main(inspect_cli.main, [store, *words], capsys).code == 0


@pytest.mark.usefixtures("quick")
def test_recheck_names_an_embedding_of_other_frames_than_its_mouth(
    corpus: Corpus, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_store(corpus, store, import_embeddings=True)
    frames = len(read_mouth_npz(corpus.mouth("cv_001")).frames)
    write_mouth(corpus.mouth("cv_001"), make_frames(frames + 1, 0))
    words = ["--against", corpus.config_file, "--recheck", 99, "--device", "cpu"]
    ended = run_main(inspect_cli.main, [store, *words], capsys)
    assert ended.code == 1
    assert f"val cv_001: is stored as (512, {frames}); encoded again it is (512, {frames + 1})" in ended.out


def test_the_check_looks_at_the_files(corpus: Corpus, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--conf_dir", corpus.config_file, "--set", NO_WEIGHTS, "--shards", store, "--import_embeddings", "--check"]
    file_of(corpus, "cv_000").unlink()
    ended = run_main(build_cli.main, words, capsys)
    assert ended.code == 0
    assert "none needed, embeddings are imported" in ended.out
    assert "1 of 2 sampled can be imported; 1 would be listed as failed: mouths/cv_000_embedding.npz" in ended.out
    file_of(corpus, "cv_001").unlink()
    ended = run_main(build_cli.main, words, capsys)
    assert ended.code == 2
    assert "none of 2 sampled files can be imported" in ended.out


def test_the_command_imports(corpus: Corpus, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--conf_dir", corpus.config_file, "--set", NO_WEIGHTS, "--shards", store, "--import_embeddings"]
    ended = run_main(build_cli.main, words, capsys)
    assert ended.code == 0, ended.err
    assert "10 utterances in 4 shards" in ended.out
