"""What a build does after losses, interruptions and deaths, and that there is one at a time."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.builds import build_store, change_mouth, contents, interrupt_build, quick_embedding, reasons, stored
from helpers.corpus import Corpus, make_corpus

from iianet.errors import StoreError
from shardwriter.build.report import BuildReport
from shardwriter.format.index import read_index
from shardwriter.storage.lock import build_lock
from shardwriter.store.catalog import Catalog

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
    tar = store / "train-000001.tar"
    if damage == "index deleted":
        tar.with_suffix(".index").unlink()
    elif damage == "tar deleted":
        tar.unlink()
    else:
        tar.write_bytes(tar.read_bytes()[:-512] if damage == "tar truncated" else tar.read_bytes() + b"\0")
    untouched = {path: path.stat().st_mtime_ns for path in store.glob("*-*.*") if path.stem != "train-000001"}
    report = again(corpus, store)
    assert report.planned["train"]["resumed"] == report.encoded["train"] == 2
    assert report.shards == 1
    assert contents(store) == before
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched


def test_older_entry_in_a_lost_shard_does_not_hide_a_later_change(corpus: Corpus, store: Path) -> None:
    change_mouth(corpus.mouth("tr_001"))
    again(corpus, store)
    for path in store.glob("train-00000[01].tar"):
        path.unlink()
    change_mouth(corpus.mouth("tr_001"), seed=7)
    report = again(corpus, store)
    assert reasons(report, "train") == {"changed": 1, "resumed": 4}
    np.testing.assert_array_equal(stored(store, "train")["tr_001"], quick_embedding(corpus.mouth("tr_001")))


def test_index_of_a_lost_tar_is_gone_while_the_shard_is_written(corpus: Corpus, store: Path) -> None:
    (store / "train-000001.tar").unlink()
    interrupt_build(corpus, store, packs=0, splits=("train", "val"))
    assert not (store / "train-000001.index").exists()
    assert again(corpus, store).encoded == {"train": 2, "val": 0}


def test_lost_tar_counts_as_missing_until_then(corpus: Corpus, store: Path, caplog: pytest.LogCaptureFixture) -> None:
    (store / "train-000001.tar").unlink()
    assert len(stored(store, "train")) == len(corpus.names["train"]) - 2
    assert "train-000001.tar is gone" in caplog.text and "2 utterances count as missing" in caplog.text


def test_store_does_not_need_its_merged_index(corpus: Corpus, store: Path) -> None:
    kept = stored(store, "train")
    (store / "train.index").unlink()
    assert set(stored(store, "train")) == set(kept)
    assert again(corpus, store).encoded["train"] == 0
    assert (store / "train.index").exists()


def test_shard_written_again_with_other_content_replaces_it_in_the_merged_index(corpus: Corpus, store: Path) -> None:
    for key in read_index(store / "train-000001.index")[0]["key"].to_pylist():
        change_mouth(corpus.mouth(key))
    (store / "train-000001.tar").unlink()
    again(corpus, store)
    _, merged = read_index(store / "train.index")
    own = [read_index(store / f"{record.shard}.index")[1][0] for record in merged]
    assert [record.tar_digest for record in merged] == [record.tar_digest for record in own]


EVERYTHING = ("shardwriter.dtype=int8", "shardwriter.audio=embed", "shardwriter.views=1")


@pytest.mark.parametrize(
    ("members", "total", "packs", "done"),
    [
        *[((), 7, packs, done) for packs, done in {0: 0, 1: 0, 2: 0, 3: 3, 5: 5, 6: 5}.items()],
        *[(EVERYTHING, 12, packs, done) for packs, done in {0: 0, 2: 0, 4: 3, 6: 5, 9: 7, 11: 10}.items()],
    ],
)
def test_interrupted_build_goes_on_where_it_stopped(
    corpus: Corpus, tmp_path: Path, members: tuple[str, ...], total: int, packs: int, done: int
) -> None:
    whole, begun = tmp_path / "whole", tmp_path / "begun"
    again(corpus, whole, *members)
    interrupt_build(corpus, begun, "shardwriter.batch_size=1", *members, packs=packs, splits=("train", "val"))
    assert contents(begun).items() <= contents(whole).items()
    assert not list(begun.glob(".tmp-*"))
    catalog = Catalog.open(begun)
    assert sum(record.rows for split in catalog.splits for record in catalog.split(split).shards) == done
    report = again(corpus, begun)
    assert sum(counts["resumed"] for counts in report.planned.values()) == sum(report.encoded.values()) == total - done
    assert contents(begun) == contents(whole)


def test_limit_holds_for_shards_that_were_begun_before(corpus: Corpus, tmp_path: Path) -> None:
    store = tmp_path / "begun"
    interrupt_build(corpus, store, "shardwriter.utterances_per_shard=1", packs=1, splits=("train",))
    report = build_store(corpus, store, splits=("train",), limit=3)
    assert reasons(report, "train") == {"resumed": 2, "skipped": 1, "left out": 2}
    assert report.encoded == {"train": 2}


def test_second_build_is_refused_and_told_of_the_first(corpus: Corpus, store: Path) -> None:
    before = contents(store)
    (store / ".tmp-of-the-first").touch()
    with build_lock(store):
        (store / ".tmp-of-the-first").touch()
        with pytest.raises(StoreError, match=rf"another build is writing to it \(process {os.getpid()} on "):
            again(corpus, store)
        assert (store / ".tmp-of-the-first").exists()
    assert again(corpus, store).encoded == {"train": 0, "val": 0}
    assert contents(store) == before


def test_leftovers_of_dead_builds_are_cleaned(corpus: Corpus, store: Path) -> None:
    (store / ".tmp-train-000009.tar-host-1").write_bytes(b"half")
    again(corpus, store)
    assert not list(store.glob(".tmp-*"))


def test_plan_that_a_dead_build_did_not_make_count_is_dropped(corpus: Corpus, store: Path) -> None:
    before = contents(store)
    grown = make_corpus(corpus.root, {"train": 8, "val": 2})
    record = (store / "store.json").read_bytes()
    again(grown, store)
    (store / "store.json").write_bytes(record)  # as if it had died between publishing its plan and making it count
    dead = contents(store).keys() - before.keys()
    assert len(dead) == 3
    again(make_corpus(corpus.root, {"train": 5, "val": 2}), store)
    assert contents(store) == before


def test_plan_of_a_build_that_died_before_its_first_record_is_dropped(corpus: Corpus, store: Path) -> None:
    before = contents(store)
    (store / "store.json").unlink()
    for path in (*store.glob("*.tar"), *store.glob("*.index")):
        path.unlink()
    assert again(corpus, store).planned["train"]["new"] == 5
    assert contents(store) == before


def test_complete_shards_without_a_record_are_never_deleted(corpus: Corpus, store: Path) -> None:
    before, record = contents(store), (store / "store.json").read_bytes()
    (store / "store.json").unlink()
    with pytest.raises(StoreError, match=r"no store.json, but plan-000.parquet with 3 complete shards.*--reindex"):
        again(corpus, store)
    (store / "store.json").write_bytes(record)
    assert contents(store) == before
    assert again(corpus, store).planned["train"]["new"] == 0


def test_damaged_index_is_named_with_the_cure(corpus: Corpus, store: Path) -> None:
    path = store / "train-000000.index"
    path.write_bytes(path.read_bytes()[:50])
    (store / "train.index").unlink()
    with pytest.raises(StoreError, match=r"train-000000.index: not an index .* Delete it and run build-shards"):
        again(corpus, store)
