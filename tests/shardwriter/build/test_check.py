"""build-shards --check and --dry_run: they say what a build would do, and change nothing."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.builds import Run, build_store, interrupt_build, opened
from helpers.commands import Outcome, run_main
from helpers.corpus import SAMPLE_RATE, Corpus, make_corpus, make_frames, write_mouth

from shardwriter.build import check
from shardwriter.build.check import Finding, show
from shardwriter.build_cli import main
from shardwriter.storage.folder import Folder
from shardwriter.storage.lock import build_lock

pytestmark = pytest.mark.usefixtures("quick")

OTHER = ["--set", "videonet.videonet_config.seed=1"]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus", {"train": 4, "val": 2, "test": 2})


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_dry_run_says_what_is_new_and_makes_nothing(run: Run, store: Path) -> None:
    outcome = run("--dry-run")
    assert outcome.code == 0
    assert re.search(r"^train +4 +0 +0 +0 +4$", outcome.out, re.MULTILINE)
    assert "Nothing was written" in outcome.out
    assert not store.exists()


@pytest.mark.parametrize("flag", ["--dry_run", "--check"])
def test_looking_changes_nothing_in_a_store(run: Run, corpus: Corpus, store: Path, flag: str) -> None:
    interrupt_build(corpus, store, packs=1)
    make_corpus(corpus.root, {"train": 6, "val": 2, "test": 2})
    (store / ".tmp-of-another").touch()
    before = everything(store)
    outcome = run(flag)
    assert outcome.code == 0
    if flag == "--dry_run":
        assert re.search(r"^train +2 +0 +0 +1 +6$", outcome.out, re.MULTILINE)
    assert everything(store) == before


@pytest.mark.parametrize("flag", ["--dry_run", "--check"])
def test_looking_leaves_the_plan_that_a_running_build_is_publishing(
    run: Run, corpus: Corpus, store: Path, flag: str
) -> None:
    run()
    record = (store / "store.json").read_bytes()
    make_corpus(corpus.root, {"train": 6, "val": 2, "test": 2})
    build_store(corpus, store)
    (store / "store.json").write_bytes(record)
    before = everything(store)
    with build_lock(store):
        assert run(flag).code == 0
    before[".lock"] = everything(store)[".lock"]
    assert everything(store) == before


def rows_left(store: Path) -> int:
    """Utterances in the shards that an --overwrite in progress has not written."""
    snapshot = opened(store)
    assert snapshot.pending is not None
    done = {path.stem for path in store.glob("*.index")}
    return sum(len(task.rows) for task in snapshot.plan(snapshot.pending).tasks() if task.shard not in done)


def rows_of(outcome: Outcome) -> dict[str, str]:
    """First column of the table of --check -> second."""
    found = re.findall(r"^(\w+(?: \w+)?) {2,}(ok|FIX) {2,}", outcome.out, re.MULTILINE)
    return dict(found)


def test_check_of_a_good_corpus_exits_0_with_every_row_ok(run: Run, store: Path) -> None:
    outcome = run("--check")
    assert outcome.code == 0
    samples = [f"{split} {kind}" for split in ("train", "val", "test") for kind in ("npz", "wav")]
    asked = ["config", "imports", "weights", "device", "manifests", *samples, "store", "disk", "time"]
    assert set(asked) <= rows_of(outcome).keys() and set(rows_of(outcome).values()) == {"ok"}
    assert "train 4 utterances, val 2 utterances, test 2 utterances" in outcome.out
    assert "checked by their headers, all match the manifest" in outcome.out
    assert not store.exists()


def test_check_of_a_store_that_has_everything_says_so(run: Run) -> None:
    run()
    outcome = run("--check")
    assert outcome.code == 0 and "nothing to encode: everything is stored already" in outcome.out


def test_check_of_a_missing_manifest_exits_2_with_what_to_fix(run: Run, corpus: Corpus) -> None:
    corpus.list_file("train", "s1").unlink()
    outcome = run("--check")
    assert outcome.code == 2
    assert rows_of(outcome)["manifests"] == "FIX"
    assert str(corpus.list_file("train", "s1")) in outcome.out and "train_dir" in outcome.out


def test_check_of_missing_weights_exits_2_with_what_to_fix(run: Run) -> None:
    outcome = run("--check", "--set", "videonet.videonet_config.pretrain=none.pth.tar")
    assert outcome.code == 2
    assert rows_of(outcome)["weights"] == "FIX" and rows_of(outcome)["manifests"] == "ok"


def test_check_of_a_wrong_device_looks_at_all_else(run: Run) -> None:
    outcome = run("--check", "--device", "mps")
    assert outcome.code == 2
    rows = rows_of(outcome)
    assert {what for what, state in rows.items() if state == "FIX"} == {"device"}
    assert {"weights", "manifests", "store", "time"} <= rows.keys()
    assert "--device mps: found 'mps', expected cpu, cuda or cuda:N" in outcome.out


def test_check_of_a_wrong_device_and_config_names_both(run: Run) -> None:
    outcome = run("--check", "--device", "mps", "--set", "shardwriter.views=-1")
    assert outcome.code == 2
    assert rows_of(outcome)["device"] == "FIX"
    assert re.search(r"^config and flags  FIX .*shardwriter.views", outcome.out, re.MULTILINE)


def test_check_of_another_identity_exits_2_with_what_to_fix(run: Run) -> None:
    run()
    outcome = run("--check", *OTHER)
    assert outcome.code == 2 and rows_of(outcome)["store"] == "FIX"
    assert run("--check", *OTHER, "--overwrite").code == 0


def test_check_of_an_overwrite_of_a_part_exits_2_as_the_build_does(run: Run) -> None:
    run()
    outcome = run("--check", "--overwrite", "--limit", 2)
    assert outcome.code == 2 and rows_of(outcome)["store"] == "FIX"
    assert "--overwrite replaces the whole store" in outcome.out


def test_check_of_an_overwrite_in_progress_counts_what_is_left_of_it(run: Run, corpus: Corpus, store: Path) -> None:
    run()
    interrupt_build(corpus, store, OTHER[1], packs=1, overwrite=True)
    left = rows_left(store)
    outcome = run("--check", *OTHER)
    assert outcome.code == 0 and "that is in progress will be resumed" in outcome.out
    assert 0 < left < 8 and f"for {left} embeddings on cpu" in outcome.out


def test_check_goes_by_the_store_s_own_members_and_views(run: Run) -> None:
    run("--dtype", "int8", "--audio", "embed", "--views", 1)
    outcome = run("--check", "--views", 2)
    assert outcome.code == 0 and rows_of(outcome)["store"] == "ok"
    assert "for 4 embeddings on cpu" in outcome.out
    assert not any("view" in row and row != "manifests" for row in rows_of(outcome))
    assert "audio: path here, embed there" in run("--check", "--audio", "path").out


def test_check_counts_some_bad_npz_but_refuses_only_where_all_are(run: Run, corpus: Corpus) -> None:
    corpus.mouth("tr_000").unlink()
    outcome = run("--check")
    assert outcome.code == 0 and "3 of 4 sampled are fine; 1 would be listed as failed" in outcome.out
    for name in corpus.names["train"][1:]:
        corpus.mouth(name).unlink()
    outcome = run("--check")
    assert outcome.code == 2 and rows_of(outcome)["train npz"] == "FIX"


@pytest.mark.parametrize("damage", ["missing", "length"])
def test_check_opens_wavs(run: Run, corpus: Corpus, damage: str) -> None:
    wav = corpus.root / corpus.rows("val", "mix")[0][0]
    if damage == "missing":
        wav.unlink()
    else:
        soundfile.write(wav, np.zeros(100, np.int16), SAMPLE_RATE)
    outcome = run("--check")
    assert outcome.code == 2
    assert rows_of(outcome)["val wav"] == "FIX" and str(wav) in outcome.out


@pytest.mark.parametrize("flags", [["--check"], []])
def test_an_empty_training_split_is_refused_by_check_and_by_the_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    corpus = make_corpus(tmp_path, {"train": 0, "val": 2, "test": 2})
    outcome = run_main(main, ["--conf_dir", corpus.config_file, "--shards", tmp_path / "s", *flags], capsys)
    assert outcome.code == 2
    assert f"{tmp_path / 'json/tr'}: its lists are empty, so there is nothing to train on" in outcome.out + outcome.err


@pytest.mark.parametrize("flags", [["--check"], []])
def test_check_takes_an_empty_split_as_the_build_does_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    corpus = make_corpus(tmp_path, {"train": 2, "val": 0, "test": 0})
    outcome = run_main(main, ["--conf_dir", corpus.config_file, "--shards", tmp_path / "s", *flags], capsys)
    assert outcome.code == 0
    assert f"{tmp_path / 'json/cv'}: its lists are empty: there is nothing to store for val" in outcome.err


def test_check_of_a_folder_that_may_not_be_written_exits_2(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)
    outcome = run("--check")
    assert outcome.code == 2 and rows_of(outcome)["disk"] == "FIX"
    assert "cannot be written; choose another --shards folder" in outcome.out


def test_check_of_a_full_disk_says_how_much_is_needed(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folder, "free_bytes", lambda _: 1000)
    outcome = run("--check")
    assert outcome.code == 2 and rows_of(outcome)["disk"] == "FIX"
    said = f"0.00 GB needed, 0.0 GB free in {store.parent}; free some, or choose another --shards folder"
    assert said in outcome.out


def test_check_names_packages_that_are_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PACKAGES", ("torch", "soundfail"))
    outcome = run("--check")
    assert outcome.code == 2 and rows_of(outcome)["imports"] == "FIX"
    assert "soundfail cannot be imported; install with make install" in outcome.out


def test_check_counts_mixtures_examples_and_hours(run: Run) -> None:
    assert "; 5 mixtures, 10 examples, 0.00 h" in run("--check").out
    assert "corpus: 5 mixtures, 10 examples, 0.00 h" in run().out


WRONG_ROOT = (
    r"none of the first 16 files in the lists can be found, e\.g\. (/\S+/none/mouths/\S+)\. .*"
    r"data_root, (/\S+/none), .*--data_root"
)


def test_check_of_a_wrong_data_root_says_so_in_one_row(run: Run, tmp_path: Path) -> None:
    outcome = run("--check", "--data_root", tmp_path / "none")
    assert outcome.code == 2
    assert [row for row, state in rows_of(outcome).items() if state == "FIX"] == ["manifests"]
    assert re.search(WRONG_ROOT, outcome.out)


def test_a_build_with_a_wrong_data_root_is_refused_before_anything_is_written(
    run: Run, store: Path, tmp_path: Path
) -> None:
    outcome = run("--data_root", tmp_path / "none")
    assert outcome.code == 2 and re.search(WRONG_ROOT, outcome.err)
    assert not list(store.glob("plan-*")) and "not stored" not in outcome.err


def test_a_wrong_data_root_does_not_take_the_place_of_the_recorded_one(run: Run, store: Path, tmp_path: Path) -> None:
    assert run().code == 0
    before = (store / "store.json").read_bytes()
    outcome = run("--data_root", tmp_path / "none")
    assert outcome.code == 2 and re.search(WRONG_ROOT, outcome.err)
    assert (store / "store.json").read_bytes() == before


def test_check_refuses_mouths_of_another_rate_and_counts_a_few(run: Run, corpus: Corpus) -> None:
    write_mouth(corpus.mouth("tr_000"), make_frames(9))
    outcome = run("--check")
    assert outcome.code == 0
    assert re.search(r"; 1 of another length than their audio: mouths/tr_000.npz: 9 frames, 2 expected", outcome.out)
    for name in corpus.names["train"][1:]:
        write_mouth(corpus.mouth(name), make_frames(9))
    outcome = run("--check")
    assert outcome.code == 2 and rows_of(outcome)["train npz"] == "FIX"
    assert "none of 4 sampled npz is as long as its audio at 25 frames a second: mouths/" in outcome.out
    assert "9 frames" in outcome.out and "frame_tolerance" in outcome.out
    assert run("--check", "--set", "datamodule.data_config.frame_tolerance=9").code == 0


def test_audio_beyond_what_the_lists_say_is_as_good_in_check_as_in_the_build(run: Run, corpus: Corpus) -> None:
    for wav in (corpus.root / "audio").rglob("*.wav"):
        samples, _ = soundfile.read(wav, dtype="int16")
        soundfile.write(wav, np.concatenate([samples, samples]), SAMPLE_RATE)
    assert run("--check").code == 0
    assert run("--audio", "embed").code == 0


def test_a_wav_that_cannot_be_used_is_named_once(run: Run, corpus: Corpus) -> None:
    wav = corpus.root / corpus.rows("val", "mix")[0][0]
    wav.write_bytes(b"RIFF")
    out = run("--check").out
    assert out.count(str(wav)) == 1 and "1 of 3 checked cannot be used" in out


def test_check_is_as_wide_as_the_terminal_and_keeps_paths_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/a/folder/of/which/the/name/is/rather/long/" + "x" * 80 + ".npz"
    findings = [Finding(what="train npz", found="", problem=f"{path}: not a complete npz; " + "words " * 40)]
    assert max(map(len, show(findings).splitlines())) > 200
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "90")
    lines = show(findings).splitlines()
    assert any(path in line for line in lines)
    assert max(len(line) for line in lines if path not in line) <= 90
