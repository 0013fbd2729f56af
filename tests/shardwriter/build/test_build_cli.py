"""The command build-shards: exit codes, flags, what it prints, and its log file."""

import errno
import logging
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.builds import Run, change_mouth, contents, opened, samples, shards, stored
from helpers.commands import Outcome, run_main
from helpers.corpus import Corpus, make_corpus

from iianet.command_line import own_environment
from shardwriter.build_cli import main
from shardwriter.encode import encoded
from shardwriter.format.shard_writer import ShardWriter
from shardwriter.storage.lock import build_lock

pytestmark = pytest.mark.usefixtures("quick")

OTHER = ["--set", "videonet.videonet_config.seed=1"]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus", {"train": 4, "val": 2, "test": 2})


def log_of(outcome: Outcome) -> Path:
    (name,) = re.findall(r"^log: +(\S+)$", outcome.out, re.MULTILINE)
    return Path(name)


def test_build_exits_0_and_says_what_it_stored(run: Run, store: Path) -> None:
    outcome = run()
    assert outcome.code == 0
    assert re.search(r"^train +4 +4 +0$", outcome.out, re.MULTILINE)
    assert "8 utterances in 4 shards" in outcome.out
    assert f"store: {store}" in outcome.out
    assert {split: len(stored(store, split)) for split in ("train", "val", "test")} == {"train": 4, "val": 2, "test": 2}


def test_summary_says_how_much_audio_was_stored_only_where_it_is(run: Run, store: Path) -> None:
    assert "of it audio" not in run().out
    outcome = run("--audio", "embed", "--overwrite")
    audio = sum(sample["audio.npy"].nbytes for split in ("train", "val", "test") for sample in samples(store, split))
    assert f"({audio / 1e6:.1f} MB of it audio)" in outcome.out


def test_running_again_says_that_everything_was_skipped(run: Run, store: Path) -> None:
    run()
    before = contents(store)
    outcome = run()
    assert outcome.code == 0
    assert "Nothing to do: everything is stored already. inspect-shards --verify tells whether" in outcome.out
    assert re.search(r"^split +skipped +encoded +not stored$", outcome.out, re.MULTILINE)
    assert contents(store) == before


def test_running_again_says_that_what_failed_is_not_stored(run: Run, corpus: Corpus) -> None:
    corpus.mouth("tr_000").write_bytes(b"no npz")
    run()
    outcome = run()
    assert outcome.code == 3
    assert "Nothing to do: everything but the 1 above is stored already." in outcome.out


def test_some_failed_exits_3_and_lists_them_in_summary_and_log(run: Run, corpus: Corpus) -> None:
    corpus.mouth("tr_000").unlink()
    corpus.mouth("cv_001").write_bytes(b"PK")
    outcome = run()
    assert outcome.code == 3
    assert "Not stored (2)" in outcome.out
    lines = [
        "train mouths/tr_000.npz: cannot be read (No such file or directory)",
        "val mouths/cv_001.npz: not a complete npz (2 bytes)",
    ]
    log = log_of(outcome).read_text()
    for line in lines:
        split, rest = line.split(" ", 1)
        assert line in outcome.out
        assert re.search(rf"not stored: {split} \w+: {re.escape(rest)}", log)
    again = run()
    assert again.code == 3
    assert all(line in again.out for line in lines)
    assert "tr_000" in log_of(again).read_text()


def test_long_list_of_failures_is_cut_in_the_summary_and_whole_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus(tmp_path, {"train": 14})
    for name in corpus.names["train"][:13]:
        corpus.mouth(name).unlink()
    arguments = ["--conf_dir", corpus.config_file, "--shards", tmp_path / "store", "--data_split", "train"]
    outcome = run_main(main, arguments, capsys)
    assert outcome.code == 3
    assert outcome.out.count("cannot be read") == 10 and "... and 3 more, in the log" in outcome.out
    log = log_of(outcome).read_text()
    assert all(re.search(rf"not stored: train {name}: ", log) for name in corpus.names["train"][:13])


def test_log_names_every_stored_utterance(run: Run, corpus: Corpus) -> None:
    log = log_of(run()).read_text()
    assert all(f"train {name}: stored" in log for name in corpus.names["train"])


def test_a_program_that_builds_logs_afterwards_as_it_did_before(
    corpus: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, ours = logging.getLogger(), logging.getLogger("shardwriter")
    for owner, name, value in ((root, "handlers", []), (root, "level", root.level), (ours, "level", logging.ERROR)):
        monkeypatch.setattr(owner, name, value)
    with pytest.raises(SystemExit):
        main(["--conf_dir", str(corpus.config_file), "--shards", str(store), "--data_split", "val"])
    assert ours.level == logging.ERROR


@pytest.mark.parametrize("spelling", ["--data_split", "--data-split"])
@pytest.mark.parametrize("equals", [False, True])
def test_flags_may_be_written_with_dash_or_underscore(run: Run, store: Path, spelling: str, equals: bool) -> None:
    outcome = run(*([f"{spelling}=val"] if equals else [spelling, "val"]), "--batch-size", "1", "--num_workers=1")
    assert outcome.code == 0
    assert opened(store).splits == ["val"]


def test_flags_reach_the_build(run: Run, store: Path) -> None:
    assert run("--utterances-per-shard", 1, "--dtype", "float32", "--limit", 3, "--data-split", "train").code == 0
    assert len(list(store.glob("train-*.tar"))) == 3
    assert opened(store).record.identity.dtype == "float32"


def test_limit_of_nothing_is_refused(run: Run) -> None:
    outcome = run("--limit", "0")
    assert (outcome.code, outcome.err) == (2, "error: --limit: found '0', expected a whole number above 0\n")


def test_verify_sources_and_retry_failed_reach_the_build(run: Run, corpus: Corpus) -> None:
    corpus.mouth("tr_000").unlink()
    assert run("--data_split", "train").code == 3
    change_mouth(corpus.mouth("tr_001"), mtime=False)
    assert re.search(r"^split +skipped +encoded", run("--data_split", "train").out, re.MULTILINE)
    outcome = run("--data_split", "train", "--retry-failed", "--verify-sources")
    assert re.search(r"^split +changed +retried +skipped", outcome.out, re.MULTILINE)


def test_store_may_come_from_the_config(run: Run, tmp_path: Path) -> None:
    store = tmp_path / "from-config"
    assert run("--set", f"datamodule.data_config.shards={store}", shards=False).code == 0
    assert len(stored(store, "train")) == 4


def test_no_store_anywhere_exits_2(run: Run) -> None:
    outcome = run(shards=False)
    assert outcome.code == 2
    assert outcome.err.startswith("error: no store: give --shards STORE")


def test_a_config_of_several_stores_must_say_which_one_is_built(run: Run, store: Path) -> None:
    words = ("--set", "datamodule.data_config.shards=[one, two]")
    outcome = run(*words, shards=False)
    assert outcome.code == 2
    assert outcome.err.startswith("error: datamodule.data_config.shards names 2 stores, and one is built at a time")
    assert "say which: --shards" in outcome.err
    assert run(*words).code == 0 and store.is_dir()


def test_another_corpus_is_not_added_to_a_store(run: Run, store: Path, tmp_path: Path) -> None:
    run("--data_split", "val")
    other = make_corpus(tmp_path / "other", {"train": 4})
    outcome = run("--conf_dir", other.config_file, "--data_split", "train")
    assert outcome.code == 2
    assert (
        f"error: {store}: its paths start at {tmp_path / 'corpus'}, those of this corpus at {other.root}" in outcome.err
    )
    assert "Give --data_root, so that both start at one folder, or another --shards folder" in outcome.err


def test_store_that_is_a_file_exits_2(run: Run, store: Path) -> None:
    store.write_text("not a folder")
    outcome = run()
    assert outcome.code == 2 and "is a file; a store is a folder" in outcome.err


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_device_that_is_not_there_exits_2(run: Run, device: str) -> None:
    outcome = run("--device", device)
    assert outcome.code == 2 and outcome.err.startswith(f"error: --device {device}: ")


def test_missing_manifest_exits_2_with_the_cure(run: Run, corpus: Corpus) -> None:
    corpus.list_file("val", "mix").unlink()
    outcome = run()
    assert outcome.code == 2
    assert str(corpus.list_file("val", "mix")) in outcome.err and "valid_dir" in outcome.err


@pytest.mark.parametrize("flags", [["--set", "videonet.videonet_config.pretrain=none.pth"], ["--data_root", "none"]])
def test_build_that_cannot_start_makes_no_folder(run: Run, corpus: Corpus, store: Path, flags: list[str]) -> None:
    corpus.list_file("test", "s2").unlink()
    assert run(*flags).code == 2
    assert not store.exists()


def test_full_disk_exits_2_and_the_next_run_resumes(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "_append", refuse)
        outcome = run()
    assert outcome.code == 2
    assert f"error: {store}: cannot be written (No space left on device)" in outcome.err
    assert not list(store.glob(".tmp-*")) and not list(store.glob("*.tar"))
    assert run().code == 0
    assert len(stored(store, "train")) == 4


def test_a_folder_that_nobody_can_write_exits_2(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    unwritable = Path("/sys/iianet-store")  # not even by root
    outcome = run_main(main, ["--conf_dir", corpus.config_file, "--shards", unwritable], capsys)
    assert outcome.code == 2
    assert f"{unwritable}: cannot be written" in outcome.err
    assert "choose another --shards folder" in outcome.err


def test_a_limit_of_the_system_in_the_middle_of_a_shard_leaves_only_whole_ones(
    run: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real refusal of the kernel: files may grow to 6 kB, which the indexes stay below and tars do not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    started, whole = ShardWriter.__enter__, iter(range(1))

    def limit(writer: ShardWriter) -> ShardWriter:
        if next(whole, None) is None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, before[1]))
        return started(writer)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "__enter__", limit)
        try:
            outcome = run()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert outcome.code == 2
    assert f"error: {store}: cannot be written (File too large)" in outcome.err
    assert [path.stem for path in store.glob("*.tar")] == shards(store, "train")[:1]
    assert not list(store.glob(".tmp-*"))
    assert run().code == 0
    assert len(stored(store, "train")) == 4


def test_missing_weights_exit_2_with_the_cure(run: Run, tmp_path: Path) -> None:
    missing = tmp_path / "weights.pth.tar"
    outcome = run("--set", f"videonet.videonet_config.pretrain={missing}")
    assert outcome.code == 2
    assert f"error: {missing}: no such weights file" in outcome.err
    assert "--set videonet.videonet_config.pretrain=PATH" in outcome.err


def test_missing_weights_are_named_by_their_whole_path(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("--set", "videonet.videonet_config.pretrain=weights.pth.tar")
    assert outcome.code == 2 and f"error: {tmp_path / 'weights.pth.tar'}: no such weights file" in outcome.err


@pytest.mark.parametrize("place", ["", "mouths", "json/train"])
def test_a_store_among_the_corpus_own_files_is_warned_of(place: str, run: Run, corpus: Corpus) -> None:
    folder = corpus.root / place if place != "json/train" else corpus.list_file("train", "mix").parent
    said = run("--dry_run", "--shards", folder).err
    assert f"WARNING: {folder}: is a folder of the corpus" in said and "give another one with --shards" in said
    assert "is a folder of the corpus" not in run("--dry_run", "--shards", corpus.root / "store").err


def test_missing_config_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_main(main, ["--conf_dir", tmp_path / "none.yml"], capsys)
    assert outcome.code == 2 and "none.yml" in outcome.err


def test_other_seed_exits_2_with_both_fingerprints(run: Run, store: Path) -> None:
    run()
    before = contents(store)
    outcome = run(*OTHER)
    assert outcome.code == 2
    assert "encoder fingerprint: quick-1 here, quick-0 there" in outcome.err and "--overwrite" in outcome.err
    assert contents(store) == before


def test_overwrite_with_another_seed_replaces_the_store(run: Run, store: Path) -> None:
    run()
    assert run(*OTHER, "--overwrite").code == 0
    assert opened(store).record.identity.encoder["seed"] == 1


def test_overwrite_of_one_split_exits_2(run: Run, store: Path) -> None:
    run()
    before = contents(store)
    outcome = run("--overwrite", "--data_split", "train", *OTHER)
    assert outcome.code == 2
    assert "--overwrite replaces the whole store" in outcome.err and "without test, val" in outcome.err
    assert contents(store) == before


def test_second_build_exits_2_and_names_the_first(run: Run, store: Path) -> None:
    with build_lock(store):
        outcome = run()
    assert outcome.code == 2
    assert re.search(r"another build is writing to it \(process \d+ on \S+ since", outcome.err)


def test_data_root_flag_says_where_the_paths_start(run: Run, corpus: Corpus, store: Path, tmp_path: Path) -> None:
    (corpus.root / "mouths").rename(tmp_path / "mouths")
    assert run().code == 3
    assert run("--data-root", tmp_path).code == 0
    assert len(stored(store, "train")) == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_a_summary_and_the_next_run_resumes(
    run: Run, store: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    packs = iter(range(1))
    start_pack = encoded.start_pack

    def start_or_signal(*arguments: Any) -> Any:
        if next(packs, None) is None:
            signal.raise_signal(number)
        return start_pack(*arguments)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(encoded, "start_pack", start_or_signal)
        stopped = run("--utterances_per_shard", 3)
    assert stopped.code == code
    assert re.search(r"^Stopped\. Published: 1 shard, .* Left: 3 shards with 5 utterances;", stopped.out, re.MULTILINE)
    assert signal.getsignal(signal.SIGTERM) == before
    assert [path.stem for path in store.glob("*.tar")] == shards(store, "train")[:1]
    assert not list(store.glob(".tmp*"))
    outcome = run()
    assert outcome.code == 0
    assert re.search(r"^split +resumed +skipped +encoded", outcome.out, re.MULTILINE)
    assert len(stored(store, "train")) == 4


def test_the_log_of_a_build_that_is_started_as_a_module_lists_what_failed(corpus: Corpus, tmp_path: Path) -> None:
    corpus.mouth("tr_000").write_bytes(b"no npz")
    words = ["--conf_dir", str(corpus.config_file), "--shards", "st", "--device", "cpu"]
    command = [sys.executable, "-m", "shardwriter.build_cli", *words]
    done = subprocess.run(command, cwd=tmp_path, env=own_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    (log,) = (tmp_path / "st/logs").iterdir()
    assert "DEBUG not stored: train tr_000: " in log.read_text()
