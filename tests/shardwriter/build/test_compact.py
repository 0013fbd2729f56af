"""build-shards --compact: the newest copies alone, copied byte for byte, whatever happens meanwhile."""

import copy
import errno
import gc
import json
import logging
import os
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import yaml
from helpers.builds import (
    CPU,
    Run,
    build_store,
    change_mouth,
    contents,
    index,
    interrupt_build,
    opened,
    plans,
    samples,
    shards,
    stored,
    tar,
)
from helpers.commands import run_main
from helpers.corpus import Corpus, make_corpus

from iianet.encoder.source import EncoderSource
from iianet.errors import StoreError
from loaders.embeddings.sharded_embeddings import ShardedEmbeddings
from loaders.reader import StoreReader
from shardwriter import inspect_cli
from shardwriter.build.compact import Compaction, CompactReport
from shardwriter.execute.executor import OneProcess
from shardwriter.execute.operation import run_operation
from shardwriter.format.shard_writer import ShardWriter
from shardwriter.storage.folder import Folder
from shardwriter.store.transaction import Transaction

SPLITS = ("train", "val", "test")
PER_SHARD = 4


@pytest.fixture
def grown(quick: None, corpus: Corpus, store: Path) -> Corpus:
    """A corpus that grew and changed, in a store of three generations, with one utterance that fails."""
    corpus = make_corpus(corpus.root, {"train": 6, "val": 2, "test": 2})
    corpus.mouth("tr_002").write_bytes(b"no npz")
    build_store(corpus, store, "shardwriter.utterances_per_shard=2")
    change_mouth(corpus.mouth("tr_001"))
    change_mouth(corpus.mouth("cv_000"))
    build_store(corpus, store)
    change_mouth(corpus.mouth("tr_001"), seed=98)
    corpus = make_corpus(corpus.root, {"train": 8, "val": 2, "test": 2})
    corpus.mouth("tr_002").write_bytes(b"no npz")
    change_mouth(corpus.mouth("tr_001"), seed=98)
    change_mouth(corpus.mouth("cv_000"))
    build_store(corpus, store)
    return corpus


def compaction(store: Path, utterances_per_shard: int = PER_SHARD, **options: Any) -> Compaction:
    return Compaction(storage=Folder(store), utterances_per_shard=utterances_per_shard, **options)


def compact(store: Path, *words: Any, **options: Any) -> CompactReport | None:
    """Run a compaction. Returns what it did; None where there was nothing to do."""
    work = compaction(store, *words, **options)
    run_operation(work, Folder(store), OneProcess(CPU))
    return work.report


def compacted(store: Path, *words: Any, **options: Any) -> CompactReport:
    """The same where there is something to do."""
    report = compact(store, *words, **options)
    assert report is not None
    return report


def die(*_: object, **__: object) -> NoReturn:
    raise KeyboardInterrupt


def begin_and_die(store: Path) -> str:
    """A compaction that wrote everything, and ended before it was active. Returns its plan."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transaction, "switch", die)
        with pytest.raises(KeyboardInterrupt):
            compact(store)
    pending = opened(store).record.pending
    assert pending is not None
    return pending


def everything(store: Path) -> dict[str, dict[str, bytes]]:
    """What training reads of each split, by key."""
    return {split: {key: value.tobytes() for key, value in stored(store, split).items()} for split in SPLITS}


def test_it_keeps_the_newest_of_every_key_and_nothing_else(
    grown: Corpus, store: Path, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(store)
    monkeypatch.setattr(EncoderSource, "load", lambda *_: pytest.fail("the encoder was loaded"))
    outcome = run("--compact", "--utterances_per_shard", PER_SHARD)
    assert outcome.code == 0, outcome.err
    assert "entries: 12 copied, 4 superseded ones left out" in outcome.out
    assert "4 after" in outcome.out
    monkeypatch.undo()
    assert everything(store) == before
    keys = [sample["__key__"] for sample in samples(store, "train")]
    assert len(keys) == len(set(keys)) == 7
    assert [path.name for path in store.glob("plan-*")] == plans(store)
    assert opened(store).split("train").failures.keys() == {"tr_002"}


def test_what_is_compacted_is_fine_and_grows_on(
    grown: Corpus, store: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    compact(store)
    words = [store, "--verify", "--json", "--against", grown.config_file]
    document = json.loads(run_main(inspect_cli.main, words, capsys).out)
    assert document["problems"] == ["train: 1 utterances of the manifest are missing, 1 of them failed"]
    assert document["splits"]["train"]["missing_keys"] == ["tr_002"]
    assert [document["splits"][split]["stale_keys"] for split in SPLITS] == [[], [], []]
    report = build_store(grown, store)
    assert sum(report.stored.values()) == 0
    change_mouth(grown.mouth("tr_003"))
    assert build_store(grown, store).stored["train"] == 1


def test_shards_are_the_same_after_interruptions(
    grown: Corpus, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(store, tmp_path / "other")
    compact(tmp_path / "other")
    add = ShardWriter.add
    for lived in (0, 2, 1, 3):
        left = iter(range(lived))

        def add_or_die(self: ShardWriter, *words: Any, left: Any = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            add(self, *words)

        monkeypatch.setattr(ShardWriter, "add", add_or_die)
        with pytest.raises(KeyboardInterrupt):
            compact(store)
        assert len(plans(store)) == 3
    monkeypatch.setattr(ShardWriter, "add", add)
    compact(store)
    assert contents(store) == contents(tmp_path / "other")


@pytest.mark.slow
def test_processes_make_the_shards_that_one_makes(grown: Corpus, store: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(store, tmp_path / "other")
    compact(tmp_path / "other")
    outcome = run("--compact", "--utterances_per_shard", PER_SHARD, "--num_processes", 2)
    assert outcome.code == 0, outcome.err
    assert "entries: 12 copied, 4 superseded ones left out" in outcome.out
    assert contents(store) == contents(tmp_path / "other")


def test_one_that_ends_while_it_deletes_leaves_the_rest_to_the_next(
    grown: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delete_one_and_die(self: Folder, names: Any) -> None:
        for name in names:
            (self.path / name).unlink()
            raise KeyboardInterrupt

    before = everything(store)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "delete", delete_one_and_die)
        with pytest.raises(KeyboardInterrupt):
            compact(store)
    assert len(opened(store).record.retired) == 3
    assert everything(store) == before
    assert compact(store) is None
    assert not opened(store).record.retired
    assert [path.name for path in store.glob("plan-*")] == plans(store)
    assert {path.stem for path in store.glob("*-*.*")} == {
        *(Path(plan).stem for plan in plans(store)),
        *(shard for split in SPLITS for shard in shards(store, split)),
    }
    assert {path.name for path in store.glob("*.index") if "-" not in path.name} == {
        "train.index",
        "val.index",
        "test.index",
    }


def test_one_that_dies_once_its_copies_are_active_leaves_indexes_and_card_to_the_next(
    grown: Corpus, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was replaced stays, so nothing takes the older merged indexes away."""
    shutil.copytree(store, tmp_path / "other")
    compact(tmp_path / "other", keep_replaced_days=1)
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "conclude", die)
        with pytest.raises(KeyboardInterrupt):
            compact(store, keep_replaced_days=1)
    assert compact(store, keep_replaced_days=1) is None
    for name in ("train.index", "val.index", "test.index", "README.md"):
        assert (store / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_build_between_is_not_lost(
    grown: Corpus,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pending = begin_and_die(store)
    change_mouth(grown.mouth("tr_003"))
    with caplog.at_level("INFO"):
        assert build_store(grown, store).stored["train"] == 1
    assert f"a --compact is in progress ({pending})" in caplog.text
    shown = run_main(inspect_cli.main, [store, "--verify"], capsys)
    assert f"{pending}: a --compact is in progress" in shown.out
    assert shown.code == 0, shown.out
    before = everything(store)
    compact(store)
    assert everything(store) == before
    assert len(plans(store)) == 2
    assert sum(build_store(grown, store).stored.values()) == 0


def test_stores_with_all_that_stores_may_hold(quick: None, corpus: Corpus, tmp_path: Path) -> None:
    store = tmp_path / "full"
    words = ("shardwriter.views=1", "shardwriter.dtype=int8", "shardwriter.audio=embed")
    build_store(corpus, store, *words, "shardwriter.utterances_per_shard=2", splits=("train", "val"))
    change_mouth(corpus.mouth("tr_001"))
    build_store(corpus, store, splits=("train", "val"))
    before = {
        sample["__key__"]: sample for split in ("train", "train_view1", "val") for sample in samples(store, split)
    }
    assert compacted(store).superseded == 2
    after = [sample for split in ("train", "train_view1", "val") for sample in samples(store, split)]
    assert sorted(before) == sorted(sample["__key__"] for sample in after)
    for sample in after:
        assert {"embedding.npy", "scale.npy", "json"} < sample.keys()
        old = before[sample["__key__"]]
        if not sample["__key__"].startswith("tr_001"):
            assert (sample["embedding.npy"] == old["embedding.npy"]).all() and sample["json"] == old["json"]
        if "@" not in sample["__key__"]:
            assert (sample["audio.npy"] == old["audio.npy"]).all()


@pytest.mark.parametrize("how", ["compact", "overwrite"])
def test_who_reads_meanwhile_is_not_disturbed(
    grown: Corpus, store: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def read(dataset: ShardedEmbeddings) -> dict[str, bytes]:
        return {
            key: one.numpy().tobytes()
            for batch in dataset
            for key, one in zip(batch.keys, batch.embedding, strict=True)
        }

    reader = ShardedEmbeddings(store, batch_size=1, shuffle=False)
    expected, batches = read(reader), iter(reader)
    first = next(batches)
    old = {path.name for path in store.glob("*.tar")}
    if how == "compact":
        replaced = ", ".join(plans(store))
        compacted(store)
        assert caplog.text.count(f"replaced shards stay ({replaced}): the store is being read") == 1
    else:
        build_store(grown, store, overwrite=True)
    assert old <= {path.name for path in store.glob("*.tar")}
    rest = {batch.keys[0]: batch.embedding[0].numpy().tobytes() for batch in batches}
    assert {first.keys[0]: first.embedding[0].numpy().tobytes(), **rest} == expected
    assert read(ShardedEmbeddings(store, batch_size=1)) == expected
    build_store(grown, store)
    assert old <= {path.name for path in store.glob("*.tar")}  # still read
    del reader, batches, first
    gc.collect()
    build_store(grown, store)
    assert not old & {path.name for path in store.glob("*.tar")}
    assert read(ShardedEmbeddings(store, batch_size=1)) == expected


def test_who_may_only_read_a_store_is_not_disturbed_either(
    grown: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    real = os.open

    def no_files_made(path: Any, flags: int, *words: Any) -> int:
        if flags & (os.O_CREAT | os.O_RDWR | os.O_WRONLY):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *words)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_files_made)
        hold = opened(store).hold
        assert hold is not None
    compacted(store)
    assert "is being read" in caplog.text
    del hold
    build_store(grown, store)
    assert not opened(store).record.retired


def test_who_came_later_does_not_keep_what_was_replaced(grown: Corpus, store: Path) -> None:
    early = opened(store)
    old = {path.name for path in store.glob("*.tar")}
    compact(store)
    late = opened(store)
    build_store(grown, store)
    assert old <= {path.name for path in store.glob("*.tar")}
    del early
    gc.collect()
    build_store(grown, store)
    assert not old & {path.name for path in store.glob("*.tar")}
    assert late.hold is not None


def test_who_reads_what_was_replaced_keeps_what_was_added_to_it(grown: Corpus, store: Path) -> None:
    """A build adds to a store while its compaction is unfinished; then that is replaced, too."""
    begin_and_die(store)
    change_mouth(grown.mouth("tr_003"))
    build_store(grown, store)
    reader = StoreReader([opened(store)], "train")
    expected = {reader.key(row): reader.read(row).tobytes() for row in range(len(reader))}
    reader.files = copy.copy(reader.files)  # nothing of it is open yet
    compact(store)
    build_store(grown, store, overwrite=True)
    assert {reader.key(row): reader.read(row).tobytes() for row in range(len(reader))} == expected


def test_one_with_shards_of_another_size_is_planned_anew(
    grown: Corpus, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = everything(store)
    pending = begin_and_die(store)
    compact(store, 100)
    assert f"{pending} has shards of another size, so it is abandoned" in caplog.text
    assert len(list(store.glob("*.tar"))) == 3
    assert everything(store) == before


def test_one_that_is_planned_anew_needs_all_that_was_added_meanwhile(grown: Corpus, store: Path) -> None:
    begin_and_die(store)
    for name in ("tr_003", "tr_004"):
        change_mouth(grown.mouth(name))
    interrupt_build(grown, store, "shardwriter.utterances_per_shard=1", "shardwriter.batch_size=1", packs=1)
    with pytest.raises(StoreError, match=r"planned shards? not built yet"):
        compact(store, 100)
    build_store(grown, store)
    before = everything(store)
    compact(store, 100)
    assert everything(store) == before


def test_each_split_is_compacted_where_its_own_shards_are_not_full(quick: None, corpus: Corpus, store: Path) -> None:
    build_store(corpus, store, "shardwriter.utterances_per_shard=2", splits=("train",))
    build_store(corpus, store, "shardwriter.utterances_per_shard=100", splits=("val",))
    assert compaction(store).survey() is not None
    compact(store)
    assert len(list(store.glob("train-*.tar"))) == 2
    assert compaction(store).survey() is None


def test_a_disk_without_room_for_both_is_named_before_anything_is_written(
    grown: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(store)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(StoreError, match=r"take about .* kB beside the old ones, and 1 kB are free"):
        compact(store)
    assert contents(store) == before


def test_the_card_names_the_tars_of_active_plans_while_others_lie_beside_them(grown: Corpus, store: Path) -> None:
    def named() -> set[str]:
        """The tars that the card's patterns match."""
        front_matter = yaml.safe_load((store / "README.md").read_text().split("---\n")[1])
        (patterns,) = [part["path"] for part in front_matter["configs"][0]["data_files"] if part["split"] == "train"]
        return {path.name for pattern in patterns for path in store.glob(pattern)}

    def active() -> set[str]:
        return {f"{record.shard}.tar" for record in opened(store).split("train").shards}

    old, kept = opened(store), active()
    assert named() == kept
    begin_and_die(store)
    assert named() == kept != {path.name for path in store.glob("train-*.tar")}
    compact(store)
    assert named() == active() != kept
    assert kept < {path.name for path in store.glob("train-*.tar")}
    del old
    gc.collect()
    build_store(grown, store)
    assert named() == active() == {path.name for path in store.glob("train-*.tar")}


def test_inspect_shards_tells_of_what_is_in_progress_and_of_what_was_replaced(
    grown: Corpus, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, pending, first = opened(store), begin_and_die(store), plans(store)[0]
    shown = run_main(inspect_cli.main, [store], capsys).out
    assert f"{pending}: a --compact is in progress and has 4 of 4 shards; this store stays in use until" in shown
    assert f"--shards {store} --compact; to abandon it: --abandon instead" in shown
    compact(store)
    shown = run_main(inspect_cli.main, [store], capsys).out
    assert re.search(rf"{first}: was replaced \(20.*\), and its 5 shards stay while they may be read", shown)
    assert reader.hold is not None


@pytest.mark.parametrize("how", ["--compact", "--overwrite"])
def test_what_is_unfinished_can_be_abandoned(grown: Corpus, store: Path, run: Run, how: str) -> None:
    before, card = contents(store), (store / "README.md").read_bytes()
    if how == "--compact":
        begin_and_die(store)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Transaction, "switch", die)
            with pytest.raises(KeyboardInterrupt):
                build_store(grown, store, "videonet.videonet_config.seed=7", overwrite=True)
    assert before.items() < contents(store).items()
    pending = opened(store).record.pending
    outcome = run("--abandon")
    assert (outcome.code, f"Abandoned: {pending}" in outcome.out) == (0, True), outcome.err
    assert contents(store) == before
    assert (store / "README.md").read_bytes() == card
    assert "Nothing to abandon" in run("--abandon").out
    assert run("--abandon", "--overwrite").code == 2


def test_an_overwrite_abandons_an_unfinished_compaction(grown: Corpus, store: Path) -> None:
    begin_and_die(store)
    build_store(grown, store, "videonet.videonet_config.seed=7", overwrite=True)
    (header,) = opened(store).active
    assert {path.stem for path in store.glob("*.tar")} == set(header.all_shard_names)
    assert [path.name for path in store.glob("plan-*")] == plans(store)


def test_what_was_replaced_stays_for_the_days_that_the_config_says(grown: Corpus, store: Path) -> None:
    old = {path.name for path in store.glob("*.tar")}
    first, second, third = plans(store)
    compact(store, keep_replaced_days=1)
    build_store(grown, store, "shardwriter.keep_replaced_days=1")
    assert old <= {path.name for path in store.glob("*.tar")}
    record = opened(store).record
    day_before = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%dT%H:%M:%S%z}"
    retired = {**record.retired, first: day_before, second: day_before}
    (store / "store.json").write_bytes(replace(record, retired=retired).to_bytes())
    build_store(grown, store, "shardwriter.keep_replaced_days=1")
    assert set(opened(store).record.retired) == {third}
    build_store(grown, store)
    assert not opened(store).record.retired
    assert not old & {path.name for path in store.glob("*.tar")}


def test_damage_is_not_copied(grown: Corpus, store: Path) -> None:
    damaged = tar(store, "train")
    content = bytearray(damaged.read_bytes())
    content[700] ^= 1
    damaged.write_bytes(bytes(content))
    with pytest.raises(
        StoreError, match=rf"{damaged.name}.*it is damaged, so nothing is read out of it\. .* delete it and run build"
    ):
        compact(store)
    assert len(plans(store)) == 3


def test_nothing_to_do_is_said_and_writes_nothing(quick: None, corpus: Corpus, store: Path, run: Run) -> None:
    build_store(corpus, store, splits=("train", "val"))
    before = contents(store)
    outcome = run("--compact")
    assert outcome.code == 0
    assert "Nothing to do" in outcome.out
    assert contents(store) == before


def test_a_dry_run_says_what_it_would_do(grown: Corpus, store: Path, run: Run) -> None:
    before = contents(store)
    outcome = run("--compact", "--dry_run", "--utterances_per_shard", PER_SHARD)
    assert outcome.code == 0
    assert "4 superseded ones left out" in outcome.out
    assert contents(store) == before


@pytest.mark.parametrize(
    "words",
    [
        ("--overwrite",),
        ("--limit", 1),
        ("--retry_failed",),
        ("--data_split", "val"),
        ("--dtype", "int8"),
        ("--views", 0),
        ("--audio", "path"),
        ("--encoder_precision", "bf16"),
        ("--check",),
    ],
)
def test_flags_that_make_no_sense_with_it_are_refused(
    quick: None, complete_store: Path, run: Run, words: tuple[object, ...]
) -> None:
    outcome = run("--compact", *words)
    assert outcome.code == 2
    assert "--compact: copies a whole store as it is, without" in outcome.err


def test_what_is_no_store_is_named_and_not_made(quick: None, corpus: Corpus, store: Path, run: Run) -> None:
    outcome = run("--compact")
    assert outcome.code == 2
    assert f"{store}: not a store" in outcome.err
    assert not store.exists()


def test_an_unfinished_store_is_finished_first(quick: None, corpus: Corpus, store: Path, run: Run) -> None:
    build_store(corpus, store, "shardwriter.utterances_per_shard=1", splits=("train",))
    index(store, "train", 1).unlink()
    outcome = run("--compact")
    assert outcome.code == 2
    assert f"1 planned shard not built yet (e.g. {shards(store, 'train')[1]})" in outcome.err
