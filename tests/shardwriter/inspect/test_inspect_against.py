"""inspect-shards --against and --recheck: the store beside its corpus."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.builds import change_mouth, index, read_index
from helpers.corpus import edit_lists
from helpers.inspection import BROKEN, STORED, Place, damage, run, run_json

from shardwriter.format.digest import digest_of
from shardwriter.format.index import encode_index


def forget(place: Place, split: str, name: str) -> None:
    """Take an utterance out of the corpus."""
    edit_lists(place.corpus, split, lambda rows: [row for row in rows if name not in row[0]])


def test_a_corpus_that_is_stored_whole_is_fine(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    forget(place, "train", BROKEN)
    code, document = run_json(capsys, place.store, "--against", place.config)
    assert code == 0
    for split in STORED:
        assert document["splits"][split]["missing"] == document["splits"][split]["stale"] == 0
        assert document["splits"][split]["missing_keys"] == document["splits"][split]["stale_keys"] == []


def test_a_failed_utterance_is_missing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place.store, "--against", place.config) == 1
    out = capsys.readouterr().out
    assert f"{BROKEN}  mouths/{BROKEN}.npz: failed: not a complete npz" in out
    assert out.count("not a complete npz") == 1  # not among what is not stored, too
    assert f"build-shards --conf_dir {place.config} --shards {place.store}" in out


def test_an_utterance_that_the_store_lacks_is_missing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    index(place.store, "val").unlink()
    code, document = run_json(capsys, place.store, "--against", place.config)
    assert code == 1
    assert document["splits"]["val"]["missing"] == 2
    assert sorted(document["splits"]["val"]["missing_keys"]) == ["fay", "gus"]


def test_an_npz_written_anew_is_stale(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    change_mouth(place.mouth("fay"))
    code, document = run_json(capsys, place.store, "--against", place.config)
    assert code == 1
    assert document["splits"]["val"]["stale_keys"] == ["fay"]
    assert document["splits"]["val"]["stale"] == 1
    assert "val: 1 stored utterances are stale, for their npz has changed" in document["problems"]


def test_a_mouth_of_another_length_than_its_audio_is_listed(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    forget(place, "train", BROKEN)
    edit_lists(place.corpus, "val", lambda rows: [[*row[:-1], 9 * 640] for row in rows])
    assert run(place.store, "--against", place.config) == 1
    out = capsys.readouterr().out
    assert "val: 2 stored mouths are longer or shorter than their audio" in out
    assert "  mouths/fay.npz: 3 frames, 9 expected for its audio" in out
    allowed = ["--set", "datamodule.data_config.frame_tolerance=6"]
    assert run(place.store, "--against", place.config, *allowed) == 0


def test_a_mouth_of_another_length_is_listed_once_and_not_with_its_views(
    full: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = full.copy(tmp_path)
    forget(place, "train", BROKEN)
    edit_lists(place.corpus, "train", lambda rows: [[*row[:-1], 9 * 640] for row in rows])
    assert run(place.store, "--against", place.config) == 1
    out = capsys.readouterr().out
    assert out.count("mouths/ann.npz: 4 frames, 9 expected") == 1 and "train_view1, of another length" not in out


def test_an_npz_with_another_time_and_the_same_bytes_is_not_stale(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    os.utime(place.mouth("fay"))
    document = run_json(capsys, place.store, "--against", place.config)[1]
    assert document["splits"]["val"]["stale"] == 0


def test_a_split_that_only_the_corpus_has_is_all_missing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    val, test = (place.corpus.list_file(split, "mix").parent for split in ("val", "test"))
    val.rename(test)  # the val manifest is now the test manifest
    document = run_json(capsys, place.store, "--against", place.config)[1]
    assert document["splits"]["test"] == {
        "planned_shards": 0, "shards": 0, "utterances": 0, "examples": 0, "frames": 0, "bytes": 0, "failed": 0,
        "missing": 2, "stale": 0, "missing_keys": document["splits"]["test"]["missing_keys"], "stale_keys": [],
        "other_lengths": [],
    }  # fmt: skip
    assert document["splits"]["val"]["missing"] is None  # the store alone has it
    assert document["splits"]["val"]["missing_keys"] is None


def test_the_command_that_fixes_it_repeats_the_flags(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--against", place.config, "--data-root", place.root, "--set", "exp.exp_name=a b"]
    run(place.store, *words)
    told = f"--conf_dir {place.config} --data_root {place.root} --set 'exp.exp_name=a b' --shards {place.store}"
    assert f"To fix it: build-shards {told}" in capsys.readouterr().out


def test_a_corpus_without_any_manifest_is_exit_code_2(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.root / "json").rename(place.root / "elsewhere")
    assert run(place.store, "--against", place.config) == 2
    assert "mix.json" in capsys.readouterr().err


def test_stored_utterances_come_out_the_same_when_encoded_again(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(place, "train", BROKEN)
    code, document = run_json(capsys, place.store, "--against", place.config, "--recheck", 3)
    assert code == 0
    assert len(document["recheck"]) == 3
    for item in document["recheck"]:
        assert 0 < item["difference"] < 1e-3
        assert item["problem"] is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"\x00\x54", "differs by .* when encoded again; expected at most 0.001"),  # 64.0, finite and far off
        (b"\x00\x7e", "is stored with values that are not finite"),
    ],
)
def test_a_changed_value_is_found_by_encoding_again(
    value: bytes, said: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = place.inspected().entry("val", "gus")
    assert entry.embedding_offset is not None
    damage(place, entry.shard, entry.embedding_offset + 128, value)
    with (place.store / f"{entry.shard}.tar").open("rb") as tar:
        digest = digest_of(tar)[0]  # which says that it is what was written
    rows, (record,) = read_index(place.store / f"{entry.shard}.index")
    (place.store / f"{entry.shard}.index").write_bytes(encode_index(rows, [replace(record, tar_digest=digest)]))
    (place.store / "val.index").unlink(missing_ok=True)
    code, document = run_json(capsys, place.store, "--against", place.config, "--recheck", 9)
    assert code == 1
    ((key, problem),) = {item["key"]: item["problem"] for item in document["recheck"] if item["problem"]}.items()
    assert key == "gus" and re.search(said, problem)


def test_an_npz_that_changed_cannot_be_rechecked(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    change_mouth(place.mouth("fay"))
    assert run(place.store, "--against", place.config, "--recheck", 9) == 1
    assert "val fay: mouths/fay.npz has changed since it was encoded" in capsys.readouterr().out


def test_other_weights_are_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--against", place.config, "--recheck", 1, "--set", "videonet.videonet_config.seed=1"]
    assert run(place.store, *words) == 2
    assert "was made with another identity (encoder fingerprint" in capsys.readouterr().err


def test_other_weights_are_a_problem_that_train_would_refuse_too(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(place, "train", BROKEN)
    assert run(place.store, "--against", place.config) == 0
    assert "Weights and preprocessing are as the config says" in capsys.readouterr().out
    assert run(place.store, "--against", place.config, "--set", "videonet.videonet_config.seed=7") == 1
    out = capsys.readouterr().out
    assert f"{place.store}: was made with another identity (encoder fingerprint: " in out
    assert "Use the config and flags that it was made with" in out


def test_weights_that_are_not_here_are_not_compared_and_said_so(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(place, "train", BROKEN)
    elsewhere = place.root / "elsewhere.pth.tar"
    assert run(place.store, "--against", place.config, "--set", f"videonet.videonet_config.pretrain={elsewhere}") == 0
    assert f"Weights not compared: {elsewhere}" in capsys.readouterr().out
