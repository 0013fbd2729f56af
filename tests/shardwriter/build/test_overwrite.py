"""--overwrite: the old store serves until the new one is complete, however often the build dies in between."""

from pathlib import Path
from typing import Any

import pytest
from helpers.builds import (
    CPU,
    build_store,
    change_mouth,
    contents,
    interrupt_build,
    opened,
    plans,
    reasons,
    stored,
)
from helpers.corpus import Corpus, make_corpus

from iianet.errors import ConfigError, ManifestError, StoreError
from shardwriter.build.build import create, prepare
from shardwriter.build.options import BuildOptions
from shardwriter.build.report import BuildReport
from shardwriter.corpus.manifest import load_manifests
from shardwriter.storage.folder import Folder

pytestmark = pytest.mark.usefixtures("quick")

OTHER = "videonet.videonet_config.seed=1"
SPLITS = ("train", "val")


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus", {"train": 8, "val": 2})


@pytest.fixture
def store(corpus: Corpus, tmp_path: Path) -> Path:
    """A complete store of seed 0: train shards 0 to 2, val shard 0."""
    path = tmp_path / "store"
    build_store(corpus, path, splits=SPLITS)
    return path


def again(corpus: Corpus, store: Path, *overrides: str, **options: Any) -> BuildReport:
    return build_store(corpus, store, *overrides, **{"splits": SPLITS, **options})


def interrupt(corpus: Corpus, store: Path, *overrides: str, shards: int) -> None:
    """Begin an overwrite that is stopped when so many shards are written."""
    interrupt_build(corpus, store, *overrides, packs=shards, splits=SPLITS, overwrite=True)
    assert not list(store.glob(".tmp-*"))


def seed_of(store: Path) -> int:
    seed: int = opened(store).record.identity.encoder["seed"]
    return seed


def test_overwrite_replaces_the_whole_store(corpus: Corpus, store: Path) -> None:
    before = stored(store, "train")
    report = again(corpus, store, OTHER, overwrite=True)
    assert report.stored == {"train": 8, "val": 2}
    assert seed_of(store) == 1
    after = stored(store, "train")
    assert set(after) == set(before) == set(corpus.names["train"])
    assert not any((after[key] == before[key]).all() for key in after)


def test_an_overwrite_in_another_layout_takes_nothing_of_the_old_store_for_damaged(
    corpus: Corpus, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupt_build(corpus, store, packs=2, splits=SPLITS, overwrite=True, dtype="int8")
    assert opened(store).pending is not None
    again(corpus, store, overwrite=True, dtype="int8")
    assert opened(store).identity.dtype == "int8" and len(stored(store, "train")) == 8
    assert not [said for said in caplog.messages if "not an index" in said]


def test_overwritten_store_keeps_no_old_shard_index_or_plan(corpus: Corpus, store: Path) -> None:
    before = contents(store)
    again(corpus, store, OTHER, overwrite=True)
    after = contents(store)
    assert len(after) == len(before)
    assert not after.keys() & before.keys()


def test_overwritten_store_is_complete_for_a_build_without_overwrite(corpus: Corpus, store: Path) -> None:
    again(corpus, store, OTHER, overwrite=True)
    before = contents(store)
    assert again(corpus, store, OTHER).stored == {"train": 0, "val": 0}
    assert contents(store) == before


@pytest.mark.parametrize("shards", [0, 1, 3])
def test_old_store_serves_while_the_overwrite_is_incomplete(corpus: Corpus, store: Path, shards: int) -> None:
    old, kept = contents(store), stored(store, "train")
    interrupt(corpus, store, OTHER, shards=shards)
    assert old.items() < contents(store).items()
    assert len(contents(store)) == len(old) + 1 + 2 * shards
    assert opened(store).split("train").is_merged
    assert seed_of(store) == 0
    assert opened(store).split("train").newest.keys() == kept.keys()
    found = stored(store, "train")
    assert all((found[key] == embedding).all() for key, embedding in kept.items())


@pytest.mark.parametrize("overwrite", [False, True])
def test_interrupted_overwrite_is_resumed_and_switches(corpus: Corpus, store: Path, overwrite: bool) -> None:
    old = contents(store)
    interrupt(corpus, store, OTHER, shards=2)
    started = contents(store)
    report = again(corpus, store, OTHER, overwrite=overwrite)
    assert report.shards == 2
    assert sum(counts["resumed"] for counts in report.planned.values()) == sum(report.stored.values()) < 10
    assert seed_of(store) == 1
    after = contents(store)
    assert not after.keys() & old.keys()
    assert {name: started[name] for name in started.keys() - old.keys()}.items() < after.items()
    assert set(stored(store, "train")) == set(corpus.names["train"])


def test_overwrite_resumed_for_one_split_does_not_switch(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    assert again(corpus, store, OTHER, splits=("train",)).stored == {"train": 5}
    assert seed_of(store) == 0
    assert again(corpus, store, OTHER).stored == {"train": 0, "val": 2}
    assert seed_of(store) == 1


def test_overwrite_with_the_same_identity_builds_everything_anew(corpus: Corpus, store: Path) -> None:
    before = contents(store)
    assert again(corpus, store, overwrite=True).stored == {"train": 8, "val": 2}
    after = contents(store)
    assert not after.keys() & before.keys()
    tars = [[content for name, content in files.items() if name.endswith(".tar")] for files in (before, after)]
    assert tars[0] == tars[1] and len(tars[0]) == 4


def test_overwrite_with_a_third_identity_abandons_the_unfinished_one(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=2)
    again(corpus, store, "videonet.videonet_config.seed=2", overwrite=True)
    assert seed_of(store) == 2
    assert len(contents(store)) == 1 + 2 * 4


def test_overwrite_of_no_store_makes_one(corpus: Corpus, tmp_path: Path) -> None:
    store = tmp_path / "new"
    assert again(corpus, store, overwrite=True).stored == {"train": 8, "val": 2}
    assert len(plans(store)) == 1


def test_replaced_plans_are_deleted_by_the_next_build_where_one_dies_after_its_switch(
    corpus: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = contents(store)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "readers", interrupted)  # who reads what was replaced is asked before it is deleted
        with pytest.raises(KeyboardInterrupt):
            again(corpus, store, OTHER, overwrite=True)
    assert seed_of(store) == 1
    assert old.items() < contents(store).items()
    assert again(corpus, store, OTHER).stored == {"train": 0, "val": 0}
    assert not contents(store).keys() & old.keys()
    assert set(stored(store, "train")) == set(corpus.names["train"])


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("options", "asked"), [({"splits": ("val",)}, "without train"), ({"limit": 2}, "--limit 2")])
def test_overwrite_of_a_part_is_refused(corpus: Corpus, store: Path, options: dict[str, Any], asked: str) -> None:
    before = contents(store)
    with pytest.raises(ConfigError, match=f"keeps one identity, but was asked {asked}. Give --data_split all"):
        again(corpus, store, OTHER, overwrite=True, **options)
    assert contents(store) == before


def test_the_old_identity_may_add_to_the_store_while_an_overwrite_is_in_progress(
    corpus: Corpus, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    before = contents(store)
    assert again(corpus, store).stored == {"train": 0, "val": 0}
    assert "an --overwrite with another identity is in progress" in caplog.text
    assert contents(store) == before
    assert again(corpus, store, OTHER).shards == 3


def test_third_identity_is_refused_while_an_overwrite_is_in_progress(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    with pytest.raises(StoreError, match="quick-2 here, quick-0 there"):
        again(corpus, store, "videonet.videonet_config.seed=2")


def test_utterances_added_while_an_overwrite_is_in_progress_stay(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    grown = make_corpus(corpus.root, {"train": 12, "val": 2})
    assert again(grown, store).stored["train"] == 4
    assert again(grown, store).stored["train"] == 0


def test_utterances_that_are_new_since_the_overwrite_began_are_stored_with_it(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    grown = make_corpus(corpus.root, {"train": 12, "val": 2})
    report = again(grown, store, OTHER)
    assert report.planned["train"]["new"] == 4
    assert set(stored(store, "train")) == set(grown.names["train"])


def test_overwrite_that_can_store_nothing_leaves_the_old_store(corpus: Corpus, store: Path) -> None:
    for name in (*corpus.names["train"], *corpus.names["val"]):
        corpus.mouth(name).unlink()
    with pytest.raises(StoreError, match="the old store stays"):
        again(corpus, store, overwrite=True)
    assert len(stored(store, "train")) == 8


def test_overwrite_of_a_corpus_that_is_not_there_is_refused_before_it_begins(
    corpus: Corpus, store: Path, tmp_path: Path
) -> None:
    before = contents(store)
    with pytest.raises(
        ManifestError, match=r"none of the first 20 files in the lists can be found.*wrong.*--data_root"
    ):
        again(corpus, store, f"datamodule.data_config.data_root={tmp_path / 'wrong'}", overwrite=True)
    assert contents(store) == before and opened(store).pending is None


def test_counts_of_a_resumed_overwrite_add_up(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    change_mouth(corpus.mouth(stored_first(corpus)))
    grown = make_corpus(corpus.root, {"train": 10, "val": 2})
    assert reasons(again(grown, store, OTHER), "train") == {"new": 2, "changed": 1, "resumed": 5, "skipped": 2}


def stored_first(corpus: Corpus) -> str:
    """The train utterance that the first shard begins with."""
    return load_manifests(corpus.config(), ["train"])["train"].utterances[0].key


def test_overwrite_that_begins_now_reports_its_utterances_as_new(corpus: Corpus, store: Path) -> None:
    assert reasons(again(corpus, store, OTHER, overwrite=True), "train") == {"new": 8}


def test_resumed_overwrite_verifies_the_sources_of_shards_written_before(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    change_mouth(corpus.mouth(stored_first(corpus)), mtime=False)
    assert again(corpus, store, OTHER, verify_sources=True).planned["train"]["changed"] == 1


def test_overwrite_is_resumed_after_the_old_store_grew(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    grown = make_corpus(corpus.root, {"train": 12, "val": 2})
    again(grown, store)
    report = again(grown, store, OTHER)
    assert reasons(report, "train") == {"new": 4, "resumed": 5, "skipped": 3}
    assert len(stored(store, "train")) == 12


def test_an_overwrite_that_another_one_replaced_never_comes_back(corpus: Corpus, store: Path) -> None:
    """The first has no base, as one of an empty store: it would fit every store."""
    fresh = store.with_name("fresh")
    create(corpus.config(), Folder(fresh), BuildOptions(splits=SPLITS, device=CPU))
    again(corpus, fresh, overwrite=True)
    (first,) = plans(fresh)
    content = (fresh / first).read_bytes()
    again(corpus, fresh, overwrite=True)
    before, active = contents(fresh), plans(fresh)
    assert first not in before
    (fresh / first).write_bytes(content)  # as if somebody had put it back
    again(corpus, fresh)
    assert contents(fresh) == {**before, first: content} and plans(fresh) == active


def test_dry_run_says_what_an_unfinished_overwrite_would_encode(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    before = contents(store)
    options = BuildOptions(splits=SPLITS, device=CPU)
    work = prepare(corpus.config(OTHER), Folder(store), options).survey()
    assert contents(store) == before
    report = again(corpus, store, OTHER)
    assert {split: len(item.resumed) for split, item in work.items()} == {"train": 5, "val": 2}
    assert {split: counts["resumed"] for split, counts in report.planned.items()} == {"train": 5, "val": 2}


def test_dry_run_refuses_what_an_overwrite_would(corpus: Corpus, store: Path) -> None:
    options = BuildOptions(splits=("val",), device=CPU, overwrite=True)
    with pytest.raises(ConfigError, match="replaces the whole store"):
        prepare(corpus.config(), Folder(store), options).survey()


def test_an_overwrite_of_some_splits_is_reported_as_waiting(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    assert again(corpus, store, OTHER, splits=("val",)).waiting == opened(store).record.pending
    assert opened(store).record.pending is not None
    assert again(corpus, store, OTHER).waiting is None
    assert opened(store).record.pending is None
