"""What a build does when it is run again: only what is missing, new or changed."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.builds import (
    build_store,
    change_mouth,
    contents,
    interrupt_build,
    opened,
    plans,
    quick_embedding,
    reasons,
    samples,
    shards,
    stored,
)
from helpers.corpus import Corpus, make_corpus

from iianet.errors import StoreError
from shardwriter.build.report import BuildReport
from shardwriter.corpus.manifest import load_manifests

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def store(complete_store: Path) -> Path:
    """Two train shards and one val shard; every test starts from there."""
    return complete_store


def again(corpus: Corpus, store: Path, *overrides: str, **options: Any) -> BuildReport:
    return build_store(corpus, store, *overrides, splits=("train", "val"), **options)


def test_running_again_encodes_nothing_and_changes_no_file(corpus: Corpus, store: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in store.glob("*-*.*")}
    assert len(before) == 7
    report = again(corpus, store)
    assert reasons(report, "train") == {"skipped": 5}
    assert (report.stored, report.shards) == ({"train": 0, "val": 0}, 0)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in store.glob("*-*.*")} == before


def test_new_utterances_come_into_a_further_plan(corpus: Corpus, store: Path) -> None:
    before, kept = contents(store), stored(store, "train")
    grown = make_corpus(corpus.root, {"train": 9, "val": 2})
    report = again(grown, store)
    assert report.planned["train"]["new"] == report.stored["train"] == 4
    after = contents(store)
    assert before.items() <= after.items()
    first, second = plans(store)
    assert first in before
    assert after.keys() - before.keys() == {
        second,
        *(f"{shard}{suffix}" for shard in shards(store, "train")[2:] for suffix in (".tar", ".index")),
    }
    assert len(shards(store, "train")) == 4 and len(shards(store, "val")) == 1
    found = stored(store, "train")
    assert set(found) == set(grown.names["train"])
    assert all((found[key] == embedding).all() for key, embedding in kept.items())


def test_files_of_another_store_stay_and_are_named(
    corpus: Corpus, store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, theirs = contents(store), tmp_path / "theirs"
    build_store(corpus, theirs, splits=("val",))
    strays = contents(theirs)
    assert len(strays) == 3 and not before.keys() & strays.keys()
    for name, content in strays.items():
        (store / name).write_bytes(content)
    (store / "train-notes.tar").write_bytes(b"somebody's own")
    assert again(corpus, store).planned["val"]["skipped"] == 2
    assert contents(store) == {**before, **strays, "train-notes.tar": b"somebody's own"}
    assert f"3 files of no plan of this store, as {min(strays)}: not used, and not deleted" in caplog.text


def test_split_may_be_built_later(corpus: Corpus, tmp_path: Path) -> None:
    store = tmp_path / "store"
    build_store(corpus, store, splits=("train",))
    before = contents(store)
    report = build_store(corpus, store, splits=("val",))
    assert report.stored == {"val": 2}
    assert before.items() < contents(store).items()
    assert opened(store).splits == ["train", "val"]


def test_changed_npz_is_encoded_again_and_its_newest_entry_wins(corpus: Corpus, store: Path) -> None:
    before = contents(store)
    change_mouth(corpus.mouth("tr_001"))
    report = again(corpus, store)
    assert reasons(report, "train") == {"changed": 1, "skipped": 4}
    assert report.stored == {"train": 1, "val": 0}
    assert before.items() < contents(store).items()
    np.testing.assert_array_equal(stored(store, "train")["tr_001"], quick_embedding(corpus.mouth("tr_001")))
    assert again(corpus, store).stored == {"train": 0, "val": 0}


def test_touched_npz_of_the_same_content_is_not_encoded_again(corpus: Corpus, store: Path) -> None:
    os.utime(corpus.mouth("tr_001"), ns=(1, 1))
    before = contents(store)
    assert again(corpus, store).planned["train"]["skipped"] == 5
    assert contents(store) == before


def test_other_content_of_same_size_and_time_is_found_by_verify_sources_alone(corpus: Corpus, store: Path) -> None:
    change_mouth(corpus.mouth("tr_001"), mtime=False)
    assert again(corpus, store).planned["train"]["changed"] == 0
    assert again(corpus, store, verify_sources=True).planned["train"]["changed"] == 1
    np.testing.assert_array_equal(stored(store, "train")["tr_001"], quick_embedding(corpus.mouth("tr_001")))
    assert again(corpus, store, verify_sources=True).planned["train"]["changed"] == 0


def test_vanished_npz_of_a_stored_utterance_is_no_change(
    corpus: Corpus, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus.mouth("tr_001").unlink()
    assert again(corpus, store, verify_sources=True).planned["train"]["skipped"] == 5
    assert "tr_001" in stored(store, "train")
    assert "1 of 5 stored utterances have no npz" in caplog.text and "mouths/tr_001.npz" in caplog.text


def test_limit_then_everything(corpus: Corpus, tmp_path: Path) -> None:
    store = tmp_path / "store"
    report = again(corpus, store, limit=2)
    utterances = load_manifests(corpus.config(), ["train"])["train"].utterances
    first = [utterances[0].key, utterances[1].key]
    assert report.stored == {"train": 2, "val": 2}
    assert set(stored(store, "train")) == set(first)
    before = contents(store)
    report = again(corpus, store)
    assert report.stored == {"train": 3, "val": 0}
    assert before.items() < contents(store).items()
    assert set(stored(store, "train")) == set(corpus.names["train"])


def test_corpus_at_another_place_continues_the_same_store(corpus: Corpus, store: Path, tmp_path: Path) -> None:
    elsewhere = make_corpus(tmp_path / "elsewhere", {"train": 6, "val": 2})
    shutil.rmtree(corpus.root)
    report = again(elsewhere, store)
    assert reasons(report, "train") == {"new": 1, "skipped": 5}
    assert opened(store).manifest("train", elsewhere.root).data_root == elsewhere.root


def test_corpus_that_moved_is_found_by_its_own_absolute_paths(tmp_path: Path) -> None:
    old = make_corpus(tmp_path / "old/place", {"train": 3}, absolute=True)
    build_store(old, tmp_path / "store", splits=("train",))
    shutil.rmtree(tmp_path / "old")
    moved = make_corpus(tmp_path / "new/place", {"train": 5}, absolute=True)
    report = build_store(moved, tmp_path / "store", splits=("train",))
    assert (report.stored, report.failed) == ({"train": 2}, {"train": []})


def test_store_records_where_a_moved_corpus_lies_now(corpus: Corpus, store: Path, tmp_path: Path) -> None:
    elsewhere = make_corpus(tmp_path / "elsewhere", {"train": 5, "val": 2})
    assert again(elsewhere, store).stored == {"train": 0, "val": 0}
    assert opened(store).record.data_root == str(elsewhere.root)


def test_other_paths_than_the_stores_are_refused(corpus: Corpus, store: Path) -> None:
    before = contents(store)
    with pytest.raises(StoreError, match=r"tr_\d+ is mouths/tr_\d+\.npz in the store's plan-.*Give the --data_root"):
        again(corpus, store, f"datamodule.data_config.data_root={corpus.root.parent}", absolute_lists(corpus))
    assert contents(store) == before


def absolute_lists(corpus: Corpus) -> str:
    """Write whole paths into the lists of `corpus`; returns an override that changes nothing."""
    make_corpus(corpus.root, {"train": 5, "val": 2}, absolute=True)
    return f"datamodule.data_config.train_dir={corpus.root / 'json/tr'}"


def test_recorded_data_root_serves_where_none_is_given(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "a/b", {"train": 3}, absolute=True)
    store = tmp_path / "store"
    build_store(corpus, store, f"datamodule.data_config.data_root={tmp_path}", splits=("train",))
    assert build_store(corpus, store, splits=("train",)).planned["train"]["skipped"] == 3
    assert samples(store, "train")[0]["json"]["mouth"].startswith("a/b/mouths/")


def test_store_gives_the_manifest_to_machines_without_the_corpus(corpus: Corpus, store: Path) -> None:
    own, recorded = load_manifests(corpus.config(), ["train"])["train"], opened(store).manifest("train")
    assert recorded == own


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1, "named": "encoder fingerprint: quick-1 here, quick-0 there"},
        {"dtype": "float32", "named": "dtype: float32 here, float16 there"},
    ],
)
def test_other_identity_is_refused(corpus: Corpus, store: Path, change: dict[str, Any]) -> None:
    before = contents(store)
    overrides = [f"videonet.videonet_config.seed={change['seed']}"] if "seed" in change else []
    with pytest.raises(StoreError, match=change["named"]) as caught:
        again(corpus, store, *overrides, dtype=change.get("dtype"))
    assert "--overwrite" in str(caught.value)
    assert contents(store) == before


def test_dtype_of_the_store_wins_over_the_configs(corpus: Corpus, tmp_path: Path) -> None:
    store = tmp_path / "store"
    again(corpus, store, dtype="float32")
    assert again(corpus, store, "shardwriter.dtype=float16").stored["train"] == 0
    assert {embedding.dtype for embedding in stored(store, "train").values()} == {np.dtype(np.float32)}


def test_empty_split_is_no_obstacle(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", {"train": 3, "val": 0, "test": 0})
    store = tmp_path / "store"
    assert build_store(corpus, store).stored == {"train": 3, "val": 0, "test": 0}
    assert build_store(corpus, store).stored == {"train": 0, "val": 0, "test": 0}
    assert opened(store).splits == ["train"]


def test_a_split_of_which_no_shard_is_written_yet_does_not_stop_another(corpus: Corpus, tmp_path: Path) -> None:
    store = tmp_path / "begun"
    interrupt_build(corpus, store, packs=0, splits=("train",))
    report = build_store(corpus, store, splits=("val",))
    assert report.stored["val"] == len(corpus.names["val"])
