"""--overwrite: the old store serves until the new one is complete, however often the build dies in between."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.builds import build_store, change_mouth, contents, interrupt_build, reasons, stored
from helpers.corpus import Corpus, make_corpus

from iianet.errors import ConfigError, StoreError
from shardwriter.build.build import BuildOptions, begin, prepare
from shardwriter.build.report import BuildReport
from shardwriter.corpus.manifest import load_manifests
from shardwriter.store.catalog import Catalog
from shardwriter.store.generation import Generations

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
    seed: int = Catalog.open(store).record.identity.encoder["seed"]
    return seed


def test_overwrite_replaces_the_whole_store(corpus: Corpus, store: Path) -> None:
    before = stored(store, "train")
    report = again(corpus, store, OTHER, overwrite=True)
    assert report.encoded == {"train": 8, "val": 2}
    assert seed_of(store) == 1
    after = stored(store, "train")
    assert set(after) == set(before) == set(corpus.names["train"])
    assert not any((after[key] == before[key]).all() for key in after)


def test_overwritten_store_keeps_no_old_shard_index_or_plan(corpus: Corpus, store: Path) -> None:
    before = contents(store)
    again(corpus, store, OTHER, overwrite=True)
    after = contents(store)
    assert len(after) == len(before)
    assert not after.keys() & before.keys()


def test_overwritten_store_is_continued_without_overwrite(corpus: Corpus, store: Path) -> None:
    again(corpus, store, OTHER, overwrite=True)
    before = contents(store)
    assert again(corpus, store, OTHER).encoded == {"train": 0, "val": 0}
    assert contents(store) == before


@pytest.mark.parametrize("shards", [0, 1, 3])
def test_old_store_serves_while_the_overwrite_is_incomplete(corpus: Corpus, store: Path, shards: int) -> None:
    old, kept = contents(store), stored(store, "train")
    interrupt(corpus, store, OTHER, shards=shards)
    assert old.items() < contents(store).items()
    assert len(contents(store)) == len(old) + 1 + 2 * shards
    assert seed_of(store) == 0
    assert Catalog.open(store).split("train").newest.keys() == kept.keys()
    found = stored(store, "train")
    assert all((found[key] == embedding).all() for key, embedding in kept.items())


@pytest.mark.parametrize("overwrite", [False, True])
def test_interrupted_overwrite_continues_and_switches(corpus: Corpus, store: Path, overwrite: bool) -> None:
    old = contents(store)
    interrupt(corpus, store, OTHER, shards=2)
    begun = contents(store)
    report = again(corpus, store, OTHER, overwrite=overwrite)
    assert report.shards == 2
    assert sum(counts["resumed"] for counts in report.planned.values()) == sum(report.encoded.values()) < 10
    assert seed_of(store) == 1
    after = contents(store)
    assert not after.keys() & old.keys()
    assert {name: begun[name] for name in begun.keys() - old.keys()}.items() < after.items()
    assert set(stored(store, "train")) == set(corpus.names["train"])


def test_overwrite_continued_for_one_split_does_not_switch(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    assert again(corpus, store, OTHER, splits=("train",)).encoded == {"train": 5}
    assert seed_of(store) == 0
    assert again(corpus, store, OTHER).encoded == {"train": 0, "val": 2}
    assert seed_of(store) == 1


def test_overwrite_with_the_same_identity_builds_everything_anew(corpus: Corpus, store: Path) -> None:
    before = contents(store)
    assert again(corpus, store, overwrite=True).encoded == {"train": 8, "val": 2}
    after = contents(store)
    assert not after.keys() & before.keys()
    tars = [[content for name, content in files.items() if name.endswith(".tar")] for files in (before, after)]
    assert tars[0] == tars[1]


def test_overwrite_with_a_third_identity_drops_the_one_begun(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=2)
    again(corpus, store, "videonet.videonet_config.seed=2", overwrite=True)
    assert seed_of(store) == 2
    assert len(contents(store)) == 1 + 2 * 4


def test_overwrite_of_no_store_makes_one(corpus: Corpus, tmp_path: Path) -> None:
    store = tmp_path / "new"
    assert again(corpus, store, overwrite=True).encoded == {"train": 8, "val": 2}
    assert Catalog.open(store).record.plans == ("plan-000.parquet",)


def test_plans_are_cleared_away_after_dying_between_switch_and_clearing(
    corpus: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = contents(store)
    with monkeypatch.context() as patch:
        patch.setattr(Generations, "drop", interrupted)
        with pytest.raises(KeyboardInterrupt):
            again(corpus, store, OTHER, overwrite=True)
    assert seed_of(store) == 1
    assert old.items() < contents(store).items()
    assert again(corpus, store, OTHER).encoded == {"train": 0, "val": 0}
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


def test_old_identity_may_go_on_while_an_overwrite_waits(
    corpus: Corpus, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    before = contents(store)
    assert again(corpus, store).encoded == {"train": 0, "val": 0}
    assert "an --overwrite with another identity was begun and waits" in caplog.text
    assert contents(store) == before
    assert again(corpus, store, OTHER).shards == 3


def test_third_identity_is_refused_while_an_overwrite_waits(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    with pytest.raises(StoreError, match="quick-2 here, quick-0 there"):
        again(corpus, store, "videonet.videonet_config.seed=2")


def test_utterances_added_while_an_overwrite_waits_stay(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    grown = make_corpus(corpus.root, {"train": 12, "val": 2})
    assert again(grown, store).encoded["train"] == 4
    assert again(grown, store).encoded["train"] == 0


def test_utterances_added_since_the_overwrite_was_begun_are_stored_with_it(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    grown = make_corpus(corpus.root, {"train": 12, "val": 2})
    report = again(grown, store, OTHER)
    assert report.planned["train"]["new"] == 4
    assert set(stored(store, "train")) == set(grown.names["train"])


def test_overwrite_that_can_store_nothing_leaves_the_old_store(corpus: Corpus, store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the old store stays"):
        again(corpus, store, f"datamodule.data_config.data_root={tmp_path / 'wrong'}", overwrite=True)
    assert len(stored(store, "train")) == 8


def test_counts_of_a_continued_overwrite_add_up(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    change_mouth(corpus.mouth(stored_first(corpus)))
    grown = make_corpus(corpus.root, {"train": 10, "val": 2})
    assert reasons(again(grown, store, OTHER), "train") == {"new": 2, "changed": 1, "resumed": 5, "skipped": 2}


def stored_first(corpus: Corpus) -> str:
    """The train utterance that the first shard begins with."""
    return load_manifests(corpus.config(), ["train"])["train"].utterances[0].key


def test_overwrite_that_begins_now_reports_its_utterances_as_new(corpus: Corpus, store: Path) -> None:
    assert reasons(again(corpus, store, OTHER, overwrite=True), "train") == {"new": 8}


def test_continued_overwrite_verifies_the_sources_of_shards_written_before(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    change_mouth(corpus.mouth(stored_first(corpus)), mtime=False)
    assert again(corpus, store, OTHER, verify_sources=True).planned["train"]["changed"] == 1


def test_overwrite_still_waits_after_the_old_store_grew(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    grown = make_corpus(corpus.root, {"train": 12, "val": 2})
    again(grown, store)
    report = again(grown, store, OTHER)
    assert reasons(report, "train") == {"new": 4, "resumed": 5, "skipped": 3}
    assert len(stored(store, "train")) == 12


def test_an_overwrite_that_another_one_replaced_never_comes_back(corpus: Corpus, store: Path) -> None:
    """The first has no base, as one of an empty store: it would fit every store."""
    begin(corpus.config(), store.with_name("fresh"), BuildOptions(splits=SPLITS, device=torch.device("cpu")))
    fresh = store.with_name("fresh")
    again(corpus, fresh, overwrite=True)
    first = (fresh / "plan-000.parquet").read_bytes()
    again(corpus, fresh, overwrite=True)
    before = contents(fresh)
    (fresh / "plan-000.parquet").write_bytes(first)  # as if it had died before deleting what it replaced
    again(corpus, fresh)
    assert contents(fresh) == before


def test_dry_run_says_what_a_waiting_overwrite_would_encode(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    before = contents(store)
    options = BuildOptions(splits=SPLITS, device=torch.device("cpu"))
    work = prepare(corpus.config(OTHER), store, options).survey()
    report = again(corpus, store, OTHER)
    assert {split: len(item.resumed) for split, item in work.items()} == {
        split: report.planned[split]["resumed"] for split in work
    }
    assert contents(store) != before


def test_dry_run_refuses_what_an_overwrite_would(corpus: Corpus, store: Path) -> None:
    options = BuildOptions(splits=("val",), device=torch.device("cpu"), overwrite=True)
    with pytest.raises(ConfigError, match="replaces the whole store"):
        prepare(corpus.config(), store, options).survey()


def test_an_overwrite_of_some_splits_is_reported_as_waiting(corpus: Corpus, store: Path) -> None:
    interrupt(corpus, store, OTHER, shards=1)
    assert again(corpus, store, OTHER, splits=("val",)).waiting == "plan-001.parquet"
    assert again(corpus, store, OTHER).waiting is None
