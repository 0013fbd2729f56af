"""Utterances that cannot be stored: listed with the reason, tried again when they changed, never in the way."""

import io
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.builds import QuickEncoder, build_store, contents, index, opened, read_index, reasons, stored, tar
from helpers.corpus import Corpus, copy_corpus, make_corpus, make_frames, write_mouth

from shardwriter.build.report import BuildReport

pytestmark = pytest.mark.usefixtures("quick")

FRAMES = make_frames(2)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def _pickle(path: Path) -> None:
    np.savez(path, data=np.array([FRAMES, None], dtype=object))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "tr_000": (Path.unlink, "cannot be read (No such file or directory)"),
    "tr_001": (_truncate, "not a complete npz (1,000 bytes); expected a zip with the key 'data'"),
    "tr_002": (lambda path: write_mouth(path, FRAMES, key="mouth"), "has the keys ['mouth']; expected 'data'"),
    "tr_003": (lambda path: write_mouth(path, FRAMES[:, 8:]), "'data' is (2, 88, 96) uint8; expected (frames, 96, 96)"),
    "tr_004": (
        lambda path: write_mouth(path, FRAMES / 255),
        "'data' is (2, 96, 96) float64; expected (frames, 96, 96)",
    ),
    "tr_005": (_pickle, "'data' cannot be decoded (an npy of Python objects, which are never unpickled"),
    "tr_006": (lambda path: write_mouth(path, FRAMES[:0]), "'data' has no frames"),
}
GOOD = {"tr_007", "tr_008"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A corpus with one npz of every kind of damage."""
    corpus = make_corpus(tmp_path_factory.mktemp("broken"), {"train": 9})
    for name, (damage, _) in DAMAGES.items():
        damage(corpus.mouth(name))
    return corpus


@pytest.fixture(scope="module")
def broken(made: Corpus, quick: None) -> tuple[Path, BuildReport]:
    """Its folder, with its store inside, and how the build went; to read or to copy."""
    return made.root, build_store(made, made.root / "store", splits=("train",))


@pytest.fixture
def corpus(made: Corpus, broken: tuple[Path, BuildReport], tmp_path: Path) -> Corpus:
    """A copy of it that may be changed, with the times of its files."""
    return copy_corpus(made, tmp_path / "copy")


def again(corpus: Corpus, *overrides: str, **options: bool) -> BuildReport:
    return build_store(corpus, corpus.root / "store", *overrides, splits=("train",), **options)


def test_every_bad_npz_is_listed_with_its_relative_path_and_reason(broken: tuple[Path, BuildReport]) -> None:
    _, report = broken
    assert report.any_failed
    listed = {failure.key: failure for failure in report.failed["train"]}
    assert set(listed) == set(DAMAGES)
    for key, (_, reason) in DAMAGES.items():
        assert (listed[key].split, listed[key].mouth) == ("train", f"mouths/{key}.npz")
        assert listed[key].reason.startswith(reason)


def test_index_holds_what_is_listed(broken: tuple[Path, BuildReport]) -> None:
    root, report = broken
    tables = [read_index(path)[0] for path in sorted((root / "store").glob("train-*.index"))]
    rows = {row["key"]: row for table in tables for row in table.to_pylist()}
    for failure in report.failed["train"]:
        row = rows[failure.key]
        assert (row["error"], row["mouth"]) == (failure.reason, failure.mouth)
        assert (row["frames"], row["embedding_offset"], row["metadata_offset"]) == (0, None, None)
    assert opened(root / "store").split("train").failures == {f.key: f.reason for f in report.failed["train"]}


def test_bad_npz_do_not_stop_the_rest(broken: tuple[Path, BuildReport]) -> None:
    root, report = broken
    assert report.stored == {"train": len(GOOD)}
    assert set(stored(root / "store", "train")) == GOOD


def test_failed_are_not_tried_again_on_the_next_run_but_listed(corpus: Corpus) -> None:
    before = contents(corpus.root / "store")
    report = again(corpus)
    assert reasons(report, "train") == {"skipped": 9}
    assert {failure.key for failure in report.failed["train"]} == set(DAMAGES)
    assert contents(corpus.root / "store") == before


def test_failed_are_tried_again_on_request(corpus: Corpus) -> None:
    before = contents(corpus.root / "store")
    report = again(corpus, retry_failed=True)
    assert reasons(report, "train") == {"retried": 7, "skipped": 2}
    assert report.stored == {"train": 0}
    assert {failure.key for failure in report.failed["train"]} == set(DAMAGES)
    assert before.items() < contents(corpus.root / "store").items()


@pytest.mark.parametrize("name", DAMAGES)
def test_failed_that_was_fixed_is_tried_again_and_stored(corpus: Corpus, name: str) -> None:
    write_mouth(corpus.mouth(name), make_frames(5))
    report = again(corpus)
    assert (report.planned["train"]["retried"], report.stored) == (1, {"train": 1})
    assert {failure.key for failure in report.failed["train"]} == set(DAMAGES) - {name}
    assert set(stored(corpus.root / "store", "train")) == GOOD | {name}
    assert again(corpus).planned["train"]["retried"] == 0


def test_stored_that_was_damaged_since_is_listed_and_missing(corpus: Corpus) -> None:
    _truncate(corpus.mouth("tr_007"))
    report = again(corpus)
    assert report.planned["train"]["changed"] == 1
    assert {failure.key for failure in report.failed["train"]} == {*DAMAGES, "tr_007"}
    assert set(stored(corpus.root / "store", "train")) == GOOD - {"tr_007"}


def test_shard_of_failures_alone_counts_as_done(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, {"train": 3})
    for name in corpus.names["train"]:
        corpus.mouth(name).unlink()
    report = again(corpus)
    store = tmp_path / "store"
    assert (report.shards, report.stored_bytes, len(report.failed["train"])) == (1, 0, 3)
    assert index(store, "train").exists() and not list(store.glob("*.tar"))
    assert again(corpus).planned["train"]["skipped"] == 3
    assert "train" in opened(store).splits


def test_shard_written_again_with_failures_alone_has_no_tar(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, {"train": 3})
    again(corpus)
    for name in corpus.names["train"]:
        corpus.mouth(name).unlink()
    index(tmp_path / "store", "train").unlink()
    again(corpus)
    assert not list((tmp_path / "store").glob("*.tar"))


def test_failure_in_a_shard_written_again_is_reported(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, {"train": 3})
    again(corpus)
    tar(tmp_path / "store", "train").unlink()
    _truncate(corpus.mouth("tr_001"))
    assert [failure.key for failure in again(corpus).failed["train"]] == ["tr_001"]


def test_embedding_too_large_for_its_dtype_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = QuickEncoder.columns

    def large(self: QuickEncoder, frames: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        return columns(self, frames, lengths) * 1e6

    monkeypatch.setattr(QuickEncoder, "columns", large)
    corpus = make_corpus(tmp_path, {"train": 2})
    report = again(corpus)
    assert len(report.failed["train"]) == 2
    assert "its embedding is not finite in float16 (largest value 1e+06)" in report.failed["train"][0].reason
    assert build_store(corpus, tmp_path / "wide", splits=("train",), dtype="float32").stored == {"train": 2}


def test_touched_but_equally_bad_npz_is_tried_once_more_only(corpus: Corpus) -> None:
    os.utime(corpus.mouth("tr_003"), ns=(1, 1))
    assert again(corpus).planned["train"]["retried"] == 1
    assert again(corpus).planned["train"]["retried"] == 0


def test_npz_whose_array_is_no_npy_does_not_stop_the_build(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, {"train": 3})
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("data.npy", b"")
    corpus.mouth("tr_001").write_bytes(stream.getvalue())
    assert again(corpus).stored == {"train": 2}
