"""What a build does after losses, interruptions and deaths, and that there is one at a time."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.builds import (
    build_store,
    change_mouth,
    contents,
    index,
    interrupt_build,
    opened,
    quick_embedding,
    read_index,
    reasons,
    shards,
    stored,
    tar,
)
from helpers.corpus import Corpus, make_corpus

from iianet.errors import StoreError
from shardwriter.build.report import BuildReport
from shardwriter.format.files import temporary_path
from shardwriter.storage.lock import build_lock

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def store(complete_store: Path) -> Path:
    """Two train shards and one val shard; every test starts from there."""
    return complete_store


def again(corpus: Corpus, store: Path, *overrides: str, **options: Any) -> BuildReport:
    return build_store(corpus, store, *overrides, splits=("train", "val"), **options)


@pytest.mark.parametrize("damage", ["index deleted", "tar deleted", "tar truncated", "tar longer"])
def test_just_the_lost_shard_is_written_again(corpus: Corpus, store: Path, damage: str) -> None:
    before = contents(store)
    path = tar(store, "train", 1)
    if damage == "index deleted":
        path.with_suffix(".index").unlink()
    elif damage == "tar deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-512] if damage == "tar truncated" else path.read_bytes() + b"\0")
    untouched = {other: other.stat().st_mtime_ns for other in store.glob("*-*.*") if other.stem != path.stem}
    assert len(untouched) == 5
    report = again(corpus, store)
    assert report.planned["train"]["resumed"] == report.stored["train"] == 2
    assert report.shards == 1
    assert contents(store) == before
    assert {other: other.stat().st_mtime_ns for other in untouched} == untouched


def test_older_entry_in_a_lost_shard_does_not_hide_a_later_change(corpus: Corpus, store: Path) -> None:
    change_mouth(corpus.mouth("tr_001"))
    again(corpus, store)
    assert len(shards(store, "train")) == 3
    for number in (0, 1):
        tar(store, "train", number).unlink()
    change_mouth(corpus.mouth("tr_001"), seed=7)
    report = again(corpus, store)
    assert reasons(report, "train") == {"changed": 1, "resumed": 4}
    np.testing.assert_array_equal(stored(store, "train")["tr_001"], quick_embedding(corpus.mouth("tr_001")))


def test_index_of_a_lost_tar_is_gone_while_the_shard_is_written(corpus: Corpus, store: Path) -> None:
    lost = index(store, "train", 1)
    tar(store, "train", 1).unlink()
    interrupt_build(corpus, store, packs=0, splits=("train", "val"))
    assert not lost.exists()
    assert again(corpus, store).stored == {"train": 2, "val": 0}


def test_lost_tar_counts_as_missing_until_then(corpus: Corpus, store: Path, caplog: pytest.LogCaptureFixture) -> None:
    lost = tar(store, "train", 1)
    lost.unlink()
    assert len(stored(store, "train")) == len(corpus.names["train"]) - 2
    assert f"{lost.name} is gone" in caplog.text and "2 utterances count as missing" in caplog.text


def test_a_build_says_once_that_a_tar_was_cut(corpus: Corpus, store: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tar(store, "train", 1)
    size = path.stat().st_size
    os.truncate(path, size - 512)
    again(corpus, store)
    (said,) = [record.getMessage() for record in caplog.records if path.name in record.getMessage()]
    assert said.startswith(f"{path} has {size - 512:,} bytes, its index says {size:,} bytes: its 2 utterances")
    assert said.endswith("Put it back, or run build-shards.")


def test_a_folder_in_the_place_of_a_file_is_named(corpus: Corpus, store: Path) -> None:
    path = index(store, "train", 1)
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match=rf"^{path}: cannot be written \(Is a directory\)\. .* run the command again"):
        again(corpus, store)
    path.rmdir()
    assert again(corpus, store).stored["train"] == 2


def test_store_does_not_need_its_merged_index(corpus: Corpus, store: Path) -> None:
    kept = stored(store, "train")
    (store / "train.index").unlink()
    assert set(stored(store, "train")) == set(kept)
    assert again(corpus, store).stored["train"] == 0
    assert (store / "train.index").exists()


def test_shard_written_again_with_other_content_replaces_it_in_the_merged_index(corpus: Corpus, store: Path) -> None:
    table, [before] = read_index(index(store, "train", 1))
    for key in table["key"].to_pylist():
        change_mouth(corpus.mouth(key))
    tar(store, "train", 1).unlink()
    again(corpus, store)
    _, merged = read_index(store / "train.index")
    own = [read_index(store / f"{record.shard}.index")[1][0] for record in merged]
    assert [record.tar_digest for record in merged] == [record.tar_digest for record in own]
    assert [record.tar_digest == before.tar_digest for record in merged] == [False, False]


EVERYTHING = ("shardwriter.dtype=int8", "shardwriter.audio=embed", "shardwriter.views=1")


@pytest.mark.parametrize(
    ("members", "total", "packs", "done"),
    [
        *[((), 7, packs, done) for packs, done in {0: 0, 1: 0, 2: 0, 3: 3, 5: 5, 6: 5}.items()],
        *[(EVERYTHING, 12, packs, done) for packs, done in {0: 0, 2: 0, 4: 3, 6: 5, 9: 8, 11: 10}.items()],
    ],
)
def test_interrupted_build_resumes_where_it_stopped(
    corpus: Corpus, tmp_path: Path, members: tuple[str, ...], total: int, packs: int, done: int
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "begun"
    again(corpus, whole, *members)
    interrupt_build(corpus, stopped, "shardwriter.batch_size=1", *members, packs=packs, splits=("train", "val"))
    assert contents(stopped).items() <= contents(whole).items()
    assert not list(stopped.glob(".tmp-*"))
    snapshot = opened(stopped)
    assert sum(record.rows for split in snapshot.splits for record in snapshot.split(split).shards) == done
    report = again(corpus, stopped)
    assert sum(counts["resumed"] for counts in report.planned.values()) == sum(report.stored.values()) == total - done
    assert contents(stopped) == contents(whole)


def test_limit_holds_for_unfinished_shards(corpus: Corpus, tmp_path: Path) -> None:
    store = tmp_path / "begun"
    interrupt_build(corpus, store, "shardwriter.utterances_per_shard=1", packs=1, splits=("train",))
    report = build_store(corpus, store, splits=("train",), limit=3)
    assert reasons(report, "train") == {"resumed": 2, "skipped": 1, "left out": 2}
    assert report.stored == {"train": 2}


def test_second_build_is_refused_and_the_first_is_named(corpus: Corpus, store: Path) -> None:
    before = contents(store)
    of_the_first = temporary_path(store / "train.index")
    of_the_first.touch()
    with build_lock(store):
        assert not of_the_first.exists()
        of_the_first.touch()
        with pytest.raises(StoreError, match=rf"another build is writing to it \(process {os.getpid()} on "):
            again(corpus, store)
        assert of_the_first.exists()
    assert again(corpus, store).stored == {"train": 0, "val": 0}
    assert contents(store) == before


def test_leftovers_of_dead_builds_are_cleaned(corpus: Corpus, store: Path) -> None:
    ours = temporary_path(store / "train-000009.tar")
    ours.write_bytes(b"half")
    (store / ours.name.replace(os.uname().nodename, "elsewhere")).write_bytes(b"half")
    (store / ".tmp-of-another-program").touch()
    again(corpus, store)
    assert [path.name for path in store.glob(".tmp-*")] == [".tmp-of-another-program"]


def test_plan_that_a_dead_build_did_not_commit_is_deleted(corpus: Corpus, store: Path) -> None:
    before = contents(store)
    grown = make_corpus(corpus.root, {"train": 8, "val": 2})
    record = (store / "store.json").read_bytes()
    again(grown, store)
    (store / "store.json").write_bytes(record)  # as if it had died between publishing its plan and committing it
    dead = contents(store).keys() - before.keys()
    assert len(dead) == 3
    again(make_corpus(corpus.root, {"train": 5, "val": 2}), store)
    assert contents(store) == before


def test_plan_of_a_build_that_died_before_its_first_commit_is_deleted(corpus: Corpus, store: Path) -> None:
    before = contents(store)
    (store / "store.json").unlink()
    for path in (*store.glob("*.tar"), *store.glob("*.index")):
        path.unlink()
    assert again(corpus, store).planned["train"]["new"] == 5
    assert contents(store) == before


def test_complete_shards_without_a_record_are_never_deleted(corpus: Corpus, store: Path) -> None:
    before, record = contents(store), (store / "store.json").read_bytes()
    (store / "store.json").unlink()
    with pytest.raises(StoreError, match=r"no store.json, but 3 complete shards.*--reindex"):
        again(corpus, store)
    (store / "store.json").write_bytes(record)
    assert contents(store) == before
    assert again(corpus, store).planned["train"]["new"] == 0


def test_damaged_index_is_named_with_the_cure(corpus: Corpus, store: Path) -> None:
    path = index(store, "train")
    path.write_bytes(path.read_bytes()[:50])
    (store / "train.index").unlink()
    with pytest.raises(StoreError, match=rf"{path.name}: not an index .* delete it and run build-shards"):
        again(corpus, store)
