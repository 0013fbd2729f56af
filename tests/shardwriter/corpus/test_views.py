"""Builds with `--views K`: more embeddings of each training utterance, laid out as splits of their own."""

import re
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
    quick_embedding,
    reasons,
    samples,
    shards,
    stored,
)
from helpers.commands import run_main
from helpers.corpus import Corpus, make_corpus

from shardwriter.build.report import BuildReport
from shardwriter.build_cli import main
from shardwriter.format.names import hash_position, split_view_key, view_key

pytestmark = pytest.mark.usefixtures("quick")

SPLITS = ("train", "val")
VIEWS = "shardwriter.views={}"


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus", {"train": 5, "val": 2})


@pytest.fixture
def store(corpus: Corpus, tmp_path: Path) -> Path:
    """A complete store with two views: two shards of train and of each view, one of val."""
    path = tmp_path / "store"
    again(corpus, path, views=2)
    return path


def again(corpus: Corpus, store: Path, views: int = 0, **options: Any) -> BuildReport:
    return build_store(corpus, store, VIEWS.format(views), **{"splits": SPLITS, **options})


def views_of(store: Path) -> list[str]:
    return [split for split in opened(store).splits if split not in SPLITS]


def assert_views(corpus: Corpus, store: Path, views: int) -> None:
    """Every training utterance has so many views, each of its own crop, beside the centre crop."""
    assert views_of(store) == [f"train_view{view}" for view in range(1, views + 1)]
    centre = stored(store, "train")
    assert set(centre) == set(corpus.names["train"])
    differing = 0
    for view in range(1, views + 1):
        found = stored(store, f"train_view{view}")
        in_tars = {sample["__key__"] for sample in samples(store, f"train_view{view}")}
        assert in_tars == {f"{key}@{view}" for key in found}
        assert found.keys() == centre.keys()
        for name in centre:
            np.testing.assert_array_equal(found[name], quick_embedding(corpus.mouth(name), view))
            differing += not np.array_equal(found[name], centre[name])
    assert differing >= len(centre) * views / 2


def test_each_view_is_of_its_own_crop(corpus: Corpus, store: Path) -> None:
    assert_views(corpus, store, 2)
    for name in corpus.names["train"]:
        np.testing.assert_array_equal(stored(store, "train")[name], quick_embedding(corpus.mouth(name)))


def test_views_lie_in_the_order_of_their_split(store: Path) -> None:
    orders = [[sample["__key__"] for sample in samples(store, split)] for split in ("train", "train_view1")]
    assert orders[1] == [f"{key}@1" for key in orders[0]]


@pytest.mark.parametrize("key", ["tr_000", "50%25", "a-b_c"])
def test_hash_order_does_not_see_the_view(key: str) -> None:
    assert {hash_position(view_key(key, view)) for view in (1, 2, 10)} == {hash_position(key)}


def test_recorded_manifest_of_a_view_is_in_the_order_of_its_split(store: Path) -> None:
    snapshot = opened(store)
    keys = [utterance.key for utterance in snapshot.manifest("train").utterances]
    assert [utterance.key for utterance in snapshot.manifest("train_view2").utterances] == [f"{key}@2" for key in keys]


def test_shards_of_views_have_names_and_keys_of_their_own(store: Path) -> None:
    counted = {"train": 2, "train_view1": 2, "train_view2": 2, "val": 1}
    (header,) = opened(store).active
    names = {
        split: [f"{split}-{header.id}-{number:06d}" for number in range(count)] for split, count in counted.items()
    }
    assert {split: shards(store, split) for split in counted} == names
    assert {path.stem for path in store.glob("*.tar")} == {name for own in names.values() for name in own}
    # The shards of a split alone, as `train-*.tar` names them, hold none of its views.
    keys = [sample["__key__"] for split in counted for sample in samples(store, split)]
    assert len(keys) == len(set(keys)) == 3 * 5 + 2


def test_samples_of_views_tell_of_the_same_mouth_and_audio(store: Path) -> None:
    centre = {sample["__key__"]: sample["json"] for sample in samples(store, "train")}
    for sample in samples(store, "train_view2"):
        key, view = split_view_key(sample["__key__"])
        assert (sample["json"], view) == (centre[key], 2)


def test_views_hold_no_audio(corpus: Corpus, tmp_path: Path) -> None:
    build_store(corpus, tmp_path, VIEWS.format(1), "shardwriter.audio=embed", splits=SPLITS)
    assert all("audio.npy" in sample for split in SPLITS for sample in samples(tmp_path, split))
    assert not any("audio.npy" in sample for sample in samples(tmp_path, "train_view1"))


def test_views_are_of_the_training_split_alone(corpus: Corpus, tmp_path: Path) -> None:
    again(corpus, tmp_path, views=2, splits=("val",))
    assert opened(tmp_path).splits == ["val"]
    report = again(corpus, tmp_path, views=2, splits=("train",))
    assert report.stored == dict.fromkeys(("train", "train_view1", "train_view2"), 5)


def test_store_without_views_stays_as_it_was(corpus: Corpus, store: Path, tmp_path: Path) -> None:
    again(corpus, tmp_path / "plain")
    found = []
    for path in (tmp_path / "plain", store):
        found.append({split: [(path / f"{name}.tar").read_bytes() for name in shards(path, split)] for split in SPLITS})
    assert found[0] == found[1] and sum(map(len, found[0].values())) == 3


def test_more_views_may_come_later(corpus: Corpus, tmp_path: Path) -> None:
    again(corpus, tmp_path, views=1)
    before = contents(tmp_path)
    report = again(corpus, tmp_path, views=3)
    assert report.stored == {"train": 0, "val": 0, "train_view1": 0, "train_view2": 5, "train_view3": 5}
    assert before.items() < contents(tmp_path).items()
    assert_views(corpus, tmp_path, 3)


def test_fewer_views_leave_what_is_there_and_keep_it_up_to_date(corpus: Corpus, store: Path) -> None:
    before = contents(store)
    splits = ("train", "train_view1", "train_view2", "val")
    assert again(corpus, store, views=1).stored == dict.fromkeys(splits, 0)
    assert contents(store) == before
    grown = make_corpus(corpus.root, {"train": 7, "val": 2})
    change_mouth(corpus.mouth("tr_001"))
    report = again(grown, store)
    for split in ("train", "train_view1", "train_view2"):
        assert reasons(report, split) == {"new": 2, "changed": 1, "skipped": 4}
    assert_views(grown, store, 2)


def test_limit_takes_the_same_utterances_of_every_view(corpus: Corpus, tmp_path: Path) -> None:
    again(corpus, tmp_path, views=1, limit=2)
    assert stored(tmp_path, "train").keys() == stored(tmp_path, "train_view1").keys()
    assert again(corpus, tmp_path, limit=3).stored == {"train": 1, "val": 0, "train_view1": 1}


def test_limit_holds_for_views_in_unfinished_shards(corpus: Corpus, tmp_path: Path) -> None:
    one_each = "shardwriter.utterances_per_shard=1"
    interrupt_build(corpus, tmp_path, VIEWS.format(1), one_each, packs=6, splits=("train",))
    report = build_store(corpus, tmp_path, splits=("train",), limit=3)
    assert reasons(report, "train_view1") == {"resumed": 2, "skipped": 1, "left out": 2}
    assert report.stored == {"train": 0, "train_view1": 2}


def test_bad_npz_fails_in_each_view(corpus: Corpus, tmp_path: Path) -> None:
    corpus.mouth("tr_002").write_bytes(b"PK")
    report = again(corpus, tmp_path, views=1)
    failed = [failure for failures in report.failed.values() for failure in failures]
    assert [(failure.split, failure.key) for failure in failed] == [("train", "tr_002"), ("train_view1", "tr_002@1")]
    assert {(failure.mouth, failure.reason.split(" (")[0]) for failure in failed} == {
        ("mouths/tr_002.npz", "not a complete npz")
    }


def test_overwrite_makes_the_views_that_are_asked_for(
    corpus: Corpus, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    again(corpus, store, views=2, overwrite=True)
    assert not caplog.records
    assert_views(corpus, store, 2)
    again(corpus, store, overwrite=True)
    assert "has 2 augmented views of each training utterance, and --overwrite makes 0" in caplog.text
    assert_views(corpus, store, 0)
    assert not list(store.glob("*view*"))


@pytest.mark.parametrize("packs", [0, 2, 4])
def test_interrupted_overwrite_is_resumed_with_its_own_views(corpus: Corpus, store: Path, packs: int) -> None:
    old, other = contents(store), "videonet.videonet_config.seed=1"
    interrupt_build(corpus, store, VIEWS.format(1), other, packs=packs, splits=SPLITS, overwrite=True)
    assert old.items() < contents(store).items()
    report = build_store(corpus, store, other, splits=SPLITS)
    assert report.shards == 5 - packs
    assert views_of(store) == ["train_view1"] and not contents(store).keys() & old.keys()


def test_command_tells_of_every_view(corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_corpus(corpus.root, {"train": 5, "val": 2, "test": 2})
    words = ["--conf_dir", corpus.config_file, "--device", "cpu", "--shards", tmp_path / "store"]
    outcome = run_main(main, [*words, "--views", 1, "--dry_run"], capsys)
    assert re.search(r"^train_view1 +5 +0 +0 +0 +5$", outcome.out, re.MULTILINE)
    outcome = run_main(main, [*words, "--views", 1], capsys)
    assert outcome.code == 0
    assert re.search(r"^train_view1 +5 +5 +0$", outcome.out, re.MULTILINE)
    assert "9 utterances and 5 views in " in outcome.out
    outcome = run_main(main, [*words, "--dry_run"], capsys)
    assert re.search(r"^train_view1 +0 +0 +0 +0 +5$", outcome.out, re.MULTILINE)
