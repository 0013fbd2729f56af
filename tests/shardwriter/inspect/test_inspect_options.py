"""inspect-shards on a store with all that stores may hold: int8 with scales, its audio, and augmented views."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.builds import change_mouth, index, tar
from helpers.inspection import BROKEN, FRAMES, STORED, Place, damage, run, run_json

from shardwriter import inspect_cli
from shardwriter.format.index import Entry
from shardwriter.inspect.plot import drawing_of
from shardwriter.inspect.sample import Sample, find_samples

VIEWS = ("train_view1", "train_view2")
MEMBERS = ["embedding.npy", "scale.npy", "json"]
SAMPLES = STORED["train"] * (1 + len(VIEWS)) + STORED["val"]


@pytest.fixture
def changed(full: Place, tmp_path: Path) -> Place:
    """A copy, to be changed."""
    return full.copy(tmp_path)


def entry_of(place: Place, split: str, key: str) -> Entry:
    return place.inspected().entry(split, key)


def sample_of(place: Place, key: str) -> Sample:
    [sample] = find_samples(place.inspected(), key)
    return sample


def test_views_have_rows_of_their_own(full: Place, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = run_json(capsys, full.store)
    assert code == 0
    assert list(document["splits"]) == ["train", *VIEWS, "val"]
    for split in ("train", *VIEWS):
        assert document["splits"][split]["utterances"] == STORED["train"]
    assert document["store"]["dtype"] == "int8"
    assert document["store"]["audio"] == "embed"


def test_people_see_how_it_is_stored(full: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run(full.store)
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[2:6]] == ["train", *VIEWS, "val"]
    assert "(512, frames) int8 with a float32 scale for each row" in out
    assert "each sample holds its sources and mixtures" in out


def test_an_utterance_that_failed_is_listed_once_for_all_views(full: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run(full.store)
    out = capsys.readouterr().out
    assert "Not stored (1)" in out
    assert out.count(f"mouths/{BROKEN}.npz: not a complete npz") == 1


def test_a_sample_shows_all_members_and_its_views(full: Place, capsys: pytest.CaptureFixture[str]) -> None:
    [sample] = run_json(capsys, full.store, "--key", "ann")[1]["samples"]
    assert list(sample["members"]) == [*MEMBERS, "audio.npy"]
    assert sample["views"] == ["ann@1", "ann@2"]
    assert sample["dtype"] == "int8"
    assert 0 < sample["max"] < 100  # of what the integers stand for
    expected = 2 * sum(example["num_samples"] for example in sample["metadata"]["audio"])
    assert sample["audio"] == {"num_samples": expected, "dtype": "int16"}
    run(full.store, "--key", "ann")
    out = capsys.readouterr().out
    assert "views         ann@1, ann@2" in out
    assert f"audio         {expected:,} samples int16" in out


@pytest.mark.parametrize("given", ["cat%2Etwo@2", "cat.two@2"])
def test_a_view_is_shown_under_its_own_key(full: Place, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = run_json(capsys, full.store, "--key", given)
    [sample] = document["samples"]
    assert code == 0
    assert (sample["key"], sample["utterance"], sample["split"]) == ("cat%2Etwo@2", "cat.two", "train_view2")
    assert list(sample["members"]) == MEMBERS
    assert sample["shape"] == [512, 5]


def test_a_view_that_the_store_has_not_is_unknown(full: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(full.store, "--key", "ann@3") == 1
    assert "has no such utterance or mixture; did you mean ann@" in capsys.readouterr().out


def test_every_member_of_a_sound_store_is_as_it_should_be(full: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(full.store, "--verify") == 0
    assert f"Verified {SAMPLES} samples in 10 shards: all as the indexes say." in capsys.readouterr().out


def test_a_broken_scale_of_a_view_is_found(changed: Place, capsys: pytest.CaptureFixture[str]) -> None:
    entry = entry_of(changed, "train_view1", "bob@1")
    damage(changed, entry.shard, entry.members["scale.npy"].offset + 128, np.float32(np.nan).tobytes())
    code, document = run_json(capsys, changed.store, "--verify")
    assert code == 1
    assert f"{entry.shard}.tar: bob@1: scale.npy: has 1 values that are not finite" in document["problems"]


def test_a_changed_sample_of_audio_is_found_in_its_shard(changed: Place, capsys: pytest.CaptureFixture[str]) -> None:
    entry = entry_of(changed, "val", "gus")
    damage(changed, entry.shard, entry.members["audio.npy"].offset + 200, b"\x11\x22")
    [problem] = run_json(capsys, changed.store, "--verify")[1]["problems"]
    assert problem.startswith(f"{tar(changed.store, 'val').name}: has changed since it was written")


def test_a_changed_header_before_the_audio_is_found(changed: Place, capsys: pytest.CaptureFixture[str]) -> None:
    entry = entry_of(changed, "val", "gus")
    damage(changed, entry.shard, entry.members["audio.npy"].offset - 500, b"\x11")
    problems = run_json(capsys, changed.store, "--verify")[1]["problems"]
    name = tar(changed.store, "val").name
    assert any(f"{name}: gus: header " in problem for problem in problems)


def test_views_are_compared_with_the_corpus(changed: Place, capsys: pytest.CaptureFixture[str]) -> None:
    splits = run_json(capsys, changed.store, "--against", changed.config)[1]["splits"]
    for split in ("train", *VIEWS):
        assert (splits[split]["missing"], splits[split]["stale"]) == (1, 0)
    assert splits["train_view1"]["missing_keys"] == [f"{BROKEN}@1"]
    for path in changed.store.glob("train_view2*.index"):
        path.unlink()
    change_mouth(changed.mouth("ann"))
    splits = run_json(capsys, changed.store, "--against", changed.config)[1]["splits"]
    assert splits["train"]["stale_keys"] == ["ann"]
    assert splits["train_view1"]["stale_keys"] == ["ann@1"]
    assert len(splits["train_view2"]["missing_keys"]) == len(FRAMES["train"])


def test_views_that_the_store_was_not_asked_for_are_not_missing(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(run_json(capsys, place.store, "--against", place.config)[1]["splits"]) == ["train", "val"]


def test_all_views_come_out_the_same_when_encoded_again(full: Place, capsys: pytest.CaptureFixture[str]) -> None:
    document = run_json(capsys, full.store, "--against", full.config, "--recheck", SAMPLES)[1]
    checked = document["recheck"]
    assert {item["split"] for item in checked} == {"train", *VIEWS, "val"}
    for item in checked:
        assert item["problem"] is None
        assert 1e-4 < item["difference"] < 4e-3  # what rounding to int8 costs


def test_a_drawing_has_the_values_the_views_crop_and_the_stored_voice(full: Place, tmp_path: Path) -> None:
    sample = sample_of(full, "ann")
    shutil.copytree(full.root / "mouths", tmp_path / "mouths")  # and no wavs
    drawn = drawing_of(sample, 25, tmp_path)
    assert drawn.embedding.dtype == np.float32
    assert sample.metadata is not None
    first = sample.metadata["audio"][0]
    expected = soundfile.read(full.root / first["source"], frames=first["num_samples"], dtype="float32")[0]
    assert not isinstance(drawn.voice, str) and drawn.voice[1] == 16000
    np.testing.assert_array_equal(drawn.voice[0], expected)
    seen = drawing_of(sample_of(full, "ann@1"), 25, tmp_path)
    assert isinstance(seen.mouth, np.ndarray) and seen.mouth.shape == (4, 88, 88)
    assert isinstance(seen.voice, str)


def test_such_a_store_is_drawn(full: Place, tmp_path: Path) -> None:
    assert run(full.store, "--plot", tmp_path / "p.png") == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_views_are_drawn_only_where_one_is_asked_for(full: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr(inspect_cli, "draw", lambda drawn, _path: titles.extend(item.title for item in drawn))
    monkeypatch.setattr(inspect_cli, "PLOTTED", SAMPLES)
    run(full.store, "--plot", "p.png")
    assert len(titles) == sum(STORED.values())
    assert not any("@" in title for title in titles)
    run(full.store, "--plot", "p.png", "--key", "ann@1")
    assert titles[-1].startswith("ann@1")


def test_what_integers_stand_for_is_exported_without_the_views(
    full: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = run_json(capsys, full.store, "--export_embeddings", tmp_path)[1]["exported"]
    assert (exported["written"], exported["views"]) == (sum(STORED.values()), len(VIEWS) * STORED["train"])
    sample = sample_of(full, "ann")
    assert sample.values is not None
    with np.load(tmp_path / "mouths/ann_embedding.npz") as archive:
        np.testing.assert_array_equal(archive["embedding"], sample.values)


def test_what_is_not_complete_is_one_line_for_a_split_and_its_views(
    changed: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", *VIEWS):
        index(changed.store, split).unlink()
    run(changed.store)
    lines = [line for line in capsys.readouterr().out.splitlines() if "not complete" in line]
    assert lines == ["train and its views: 3 of 9 planned shards are not complete"]
