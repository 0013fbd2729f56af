"""What a store of two plans lacks of a manifest, column by column: the newest entry of a key decides."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.builds import CPU, build_store, change_mouth, index, opened, plans, read_index, shards, tar
from helpers.corpus import Corpus, make_corpus, make_frames, write_mouth

from iianet.errors import StoreError
from shardwriter.build.difference import Difference, find_differences
from shardwriter.build.options import BuildOptions
from shardwriter.corpus.manifest import load_manifests
from shardwriter.store.snapshot import Snapshot

pytestmark = pytest.mark.usefixtures("quick")

COLUMNS = ("new", "changed", "retried", "resumed")
CHANGED, FAILED = "tr_001", "tr_002"
"""Utterances of the first plan that the second plan has again: one whose npz has changed, and one that had failed."""
ADDED = {"tr_006", "tr_007"}
PLAIN = BuildOptions(device=CPU)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Eight utterances; six of them were there when the first plan was made."""
    corpus = make_corpus(tmp_path / "corpus", {"train": 6})
    corpus.mouth(FAILED).write_bytes(b"PK")
    build_store(corpus, tmp_path / "store", splits=("train",))
    corpus = make_corpus(corpus.root, {"train": 8})
    change_mouth(corpus.mouth(CHANGED))
    write_mouth(corpus.mouth(FAILED), make_frames(3))
    build_store(corpus, tmp_path / "store", splits=("train",))
    return corpus


@pytest.fixture
def store(corpus: Corpus, tmp_path: Path) -> Path:
    """Its store of two plans, with two shards of three utterances each, and two of three and one."""
    path = tmp_path / "store"
    assert keys_in(path, 2) | keys_in(path, 3) == {CHANGED, FAILED, *ADDED}
    assert len(plans(path)) == 2 and len(shards(path, "train")) == 4
    return path


def keys_in(store: Path, number: int) -> set[str]:
    return set(read_index(index(store, "train", number))[0]["key"].to_pylist())


def difference(corpus: Corpus, snapshot: Snapshot | None, options: BuildOptions = PLAIN) -> Difference:
    manifests = load_manifests(corpus.config(), ["train"])
    found = find_differences(manifests, snapshot, snapshot.active if snapshot else [], options)
    assert list(found) == ["train"]
    return found["train"]


def columns(found: Difference) -> dict[str, set[str]]:
    """Keys of each column, without empty ones; each column is in hash order, and no key is in two."""
    named = {name: getattr(found, name) for name in COLUMNS}
    together = np.concatenate(list(named.values()))
    assert len(set(together.tolist())) == len(together) == found.count
    assert all((np.diff(rows) > 0).all() for rows in named.values())
    to_plan = [rows for name, rows in named.items() if name != "resumed"]
    assert found.to_plan.tolist() == sorted(np.concatenate(to_plan).tolist())
    utterances = found.manifest.utterances
    return {name: {utterances[row].key for row in rows} for name, rows in named.items() if len(rows)}


def lacks(corpus: Corpus, store: Path, options: BuildOptions = PLAIN) -> dict[str, set[str]]:
    return columns(difference(corpus, opened(store), options))


def test_without_a_store_everything_is_new(corpus: Corpus) -> None:
    assert columns(difference(corpus, None)) == {"new": set(corpus.names["train"])}


def test_a_complete_store_lacks_nothing(corpus: Corpus, store: Path) -> None:
    assert lacks(corpus, store) == {}
    assert lacks(corpus, store, BuildOptions(device=CPU, verify_sources=True, retry_failed=True)) == {}


def test_what_no_plan_has_is_new(corpus: Corpus, store: Path) -> None:
    assert lacks(make_corpus(corpus.root, {"train": 10}), store) == {"new": {"tr_008", "tr_009"}}


@pytest.mark.parametrize("name", ["tr_000", CHANGED, "tr_006"])
def test_an_npz_is_changed_where_it_is_not_that_of_the_newest_entry(corpus: Corpus, store: Path, name: str) -> None:
    change_mouth(corpus.mouth(name), seed=7)
    assert lacks(corpus, store) == {"changed": {name}}


def test_an_npz_as_the_first_plan_stored_it_is_changed_where_the_second_stored_another(
    corpus: Corpus, store: Path, tmp_path: Path
) -> None:
    before = make_corpus(tmp_path / "before", {"train": 6})
    corpus.mouth(CHANGED).write_bytes(before.mouth(CHANGED).read_bytes())
    assert lacks(corpus, store) == {"changed": {CHANGED}}


def test_other_content_of_the_same_size_and_time_is_changed_where_sources_are_verified(
    corpus: Corpus, store: Path
) -> None:
    change_mouth(corpus.mouth("tr_000"), seed=7, mtime=False)
    assert lacks(corpus, store) == {}
    assert lacks(corpus, store, BuildOptions(device=CPU, verify_sources=True)) == {"changed": {"tr_000"}}


def test_an_npz_that_vanished_is_not_changed(corpus: Corpus, store: Path) -> None:
    corpus.mouth("tr_000").unlink()
    corpus.mouth(CHANGED).unlink()
    assert lacks(corpus, store, BuildOptions(device=CPU, verify_sources=True)) == {}


def test_what_failed_is_retried_once_its_npz_has_changed_or_on_request(corpus: Corpus, store: Path) -> None:
    corpus.mouth("tr_000").write_bytes(b"PK")  # stored by the first plan, and fails in a third one
    assert lacks(corpus, store) == {"changed": {"tr_000"}}
    build_store(corpus, store, splits=("train",))
    assert len(plans(store)) == 3
    assert lacks(corpus, store) == {}
    assert lacks(corpus, store, BuildOptions(device=CPU, retry_failed=True)) == {"retried": {"tr_000"}}
    write_mouth(corpus.mouth("tr_000"), make_frames(4))
    assert lacks(corpus, store) == {"retried": {"tr_000"}}


def test_what_a_lost_shard_held_is_resumed_unless_a_later_plan_has_it(corpus: Corpus, store: Path) -> None:
    held = [keys_in(store, number) for number in (0, 1)]
    for number in (0, 1):
        tar(store, "train", number).unlink()
    assert held[0] | held[1] > {CHANGED, FAILED}
    assert lacks(corpus, store) == {"resumed": (held[0] | held[1]) - {CHANGED, FAILED}}


@pytest.mark.parametrize("number", [2, 3])
def test_what_a_lost_shard_of_the_later_plan_held_is_resumed_though_the_earlier_one_has_it(
    corpus: Corpus, store: Path, number: int
) -> None:
    held = keys_in(store, number)
    index(store, "train", number).unlink()
    assert lacks(corpus, store) == {"resumed": held}
    for name in held:  # it is read when its shard is written, whatever it is like now
        change_mouth(corpus.mouth(name), seed=7)
    assert lacks(corpus, store) == {"resumed": held}


def test_a_failure_in_an_unfinished_shard_is_resumed_and_not_retried(corpus: Corpus, store: Path) -> None:
    corpus.mouth("tr_000").write_bytes(b"PK")
    build_store(corpus, store, splits=("train",))
    assert keys_in(store, 4) == {"tr_000"}
    index(store, "train", 4).unlink()
    assert lacks(corpus, store, BuildOptions(device=CPU, retry_failed=True)) == {"resumed": {"tr_000"}}


def test_columns_stand_beside_each_other(corpus: Corpus, store: Path) -> None:
    lost = keys_in(store, 3)
    corpus = make_corpus(corpus.root, {"train": 9})
    (name,) = sorted(keys_in(store, 0) - {CHANGED, FAILED})[:1]
    index(store, "train", 3).unlink()
    change_mouth(corpus.mouth(name), seed=7)
    assert lacks(corpus, store) == {"new": {"tr_008"}, "changed": {name}, "resumed": lost}


@pytest.mark.parametrize("limit", [0, 3, 8, 100])
def test_a_limit_leaves_out_what_lies_behind_it_in_hash_order(corpus: Corpus, store: Path, limit: int) -> None:
    keys = [utterance.key for utterance in load_manifests(corpus.config(), ["train"])["train"].utterances]
    for name in keys:
        change_mouth(corpus.mouth(name), seed=7)
    for snapshot, why in ((None, "new"), (opened(store), "changed")):
        found = difference(corpus, snapshot, BuildOptions(device=CPU, limit=limit))
        assert columns(found).get(why, set()) == set(keys[:limit])
        assert found.left_out == max(0, 8 - limit)


def test_only_the_plans_that_are_asked_for_count(corpus: Corpus, store: Path) -> None:
    snapshot = opened(store)
    manifests = load_manifests(corpus.config(), ["train"])
    first, second = (find_differences(manifests, snapshot, [header], PLAIN)["train"] for header in snapshot.active)
    assert columns(first) == {"new": ADDED, "changed": {CHANGED}, "retried": {FAILED}}
    assert columns(second) == {"new": set(corpus.names["train"]) - {CHANGED, FAILED, *ADDED}}


def test_each_split_has_its_own(corpus: Corpus, store: Path) -> None:
    corpus = make_corpus(corpus.root, {"train": 8, "val": 2})
    manifests, snapshot = load_manifests(corpus.config(), ["train", "val"]), opened(store)
    found = find_differences(manifests, snapshot, snapshot.active, PLAIN)
    assert {split: columns(its) for split, its in found.items()} == {"train": {}, "val": {"new": {"cv_000", "cv_001"}}}


@pytest.mark.parametrize(("name", "number"), [("tr_000", 0), ("tr_006", 1)])
def test_an_utterance_under_another_path_is_refused_and_its_plan_named(
    corpus: Corpus, store: Path, name: str, number: int
) -> None:
    text = {kind: corpus.list_file("train", kind).read_text() for kind in ("s1", "s2")}
    for kind, lists in text.items():
        moved = lists.replace(f"mouths/{name}.npz", f"elsewhere/{name}.npz")
        corpus.list_file("train", kind).write_text(moved)
    found = (
        rf"{name} is mouths/{name}.npz in the store's {plans(store)[number]} and elsewhere/{name}.npz in the manifest"
    )
    with pytest.raises(StoreError, match=found):
        lacks(corpus, store)


def test_an_npz_that_became_a_fifo_is_not_waited_for(corpus: Corpus, store: Path) -> None:
    before = columns(difference(corpus, opened(store), PLAIN)).get("changed", set())
    corpus.mouth("tr_003").unlink()
    os.mkfifo(corpus.mouth("tr_003"))
    assert columns(difference(corpus, opened(store), PLAIN))["changed"] == before | {"tr_003"}
