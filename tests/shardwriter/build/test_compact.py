"""build-shards --compact: the newest copies alone, copied byte for byte, whatever happens meanwhile."""

import copy
import errno
import gc
import os
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from helpers.builds import Run, build_store, change_mouth, contents, interrupt_build, samples, stored
from helpers.commands import run_main
from helpers.corpus import Corpus, make_corpus

from iianet.encoder.source import EncoderSource
from iianet.errors import StoreError
from loaders.reader import StoreReader
from loaders.sharded_embeddings import ShardedEmbeddings
from shardwriter import inspect_cli
from shardwriter.build import compact as compact_module
from shardwriter.build.compact import Compaction
from shardwriter.encode.copied_split import CopiedSplit
from shardwriter.store.catalog import Catalog, read_store_record, write_store_record
from shardwriter.store.generation import Generations

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


def compact(store: Path) -> Any:
    return Compaction(store=store, utterances_per_shard=PER_SHARD).run()


def begin_and_die(store: Path) -> None:
    """A compaction that wrote everything, and ended before it counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Generations, "switch_to_copies", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            compact(store)


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
    (plan,) = read_store_record(store).plans
    assert [path.name for path in store.glob("plan-*")] == [plan]
    assert Catalog.open(store).split("train").failures.keys() == {"tr_002"}


def test_what_is_compacted_is_fine_and_grows_on(
    grown: Corpus, store: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    compact(store)
    shown = run_main(inspect_cli.main, [store, "--verify", "--against", grown.config_file], capsys)
    assert "all as the indexes say" in shown.out
    assert "tr_002" in shown.out and "0 stale" not in shown.err
    report = build_store(grown, store)
    assert sum(report.encoded.values()) == 0
    change_mouth(grown.mouth("tr_003"))
    assert build_store(grown, store).encoded["train"] == 1


def test_shards_are_the_same_after_interruptions(
    grown: Corpus, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(store, tmp_path / "other")
    compact(tmp_path / "other")
    copy_one = CopiedSplit.copy
    for lived in (0, 2, 1, 3):
        left = iter(range(lived))

        def copy_or_die(self: CopiedSplit, *words: Any, left: Any = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            copy_one(self, *words)

        monkeypatch.setattr(CopiedSplit, "copy", copy_or_die)
        with pytest.raises(KeyboardInterrupt):
            compact(store)
        assert len(read_store_record(store).plans) == 3
    monkeypatch.setattr(CopiedSplit, "copy", copy_one)
    compact(store)
    assert contents(store) == contents(tmp_path / "other")


def test_one_that_ends_while_it_deletes_leaves_the_rest_to_the_next(
    grown: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = Generations.drop

    def drop_and_die(self: Generations, plan: Any) -> None:
        drop(self, plan)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Generations, "drop", drop_and_die)
        with pytest.raises(KeyboardInterrupt):
            compact(store)
    assert not (store / "train.index").exists()
    assert compact(store) is None
    assert not read_store_record(store).retired
    assert [path.name for path in store.glob("plan-*")] == ["plan-003.parquet"]
    assert {path.name for path in store.glob("*.index") if "-" not in path.name} == {
        "train.index",
        "val.index",
        "test.index",
    }


def test_one_that_dies_once_its_copies_count_leaves_indexes_and_card_to_the_next(
    grown: Corpus, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was replaced stays, so nothing takes the older merged indexes away."""

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    shutil.copytree(store, tmp_path / "other")
    dying, living = (
        Compaction(store=folder, utterances_per_shard=PER_SHARD, keep_replaced_days=1)
        for folder in (store, tmp_path / "other")
    )
    living.run()
    with monkeypatch.context() as patch:
        patch.setattr(compact_module, "finish", die)
        with pytest.raises(KeyboardInterrupt):
            dying.run()
    assert dying.run() is None
    for name in ("train.index", "val.index", "test.index", "README.md"):
        assert (store / name).read_bytes() == (living.store / name).read_bytes()


def test_a_build_between_is_not_lost(
    grown: Corpus,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begin_and_die(store)
    change_mouth(grown.mouth("tr_003"))
    with caplog.at_level("INFO"):
        assert build_store(grown, store).encoded["train"] == 1
    assert "a --compact was begun (plan-003.parquet) and waits" in caplog.text
    shown = run_main(inspect_cli.main, [store, "--verify"], capsys)
    assert "plan-003.parquet: a --compact was begun" in shown.out and "does not count" not in shown.out
    before = everything(store)
    compact(store)
    assert everything(store) == before
    assert len(read_store_record(store).plans) == 2
    assert sum(build_store(grown, store).encoded.values()) == 0


def test_stores_with_all_that_stores_may_hold(quick: None, corpus: Corpus, tmp_path: Path) -> None:
    store = tmp_path / "full"
    words = ("shardwriter.views=1", "shardwriter.dtype=int8", "shardwriter.audio=embed")
    build_store(corpus, store, *words, "shardwriter.utterances_per_shard=2", splits=("train", "val"))
    change_mouth(corpus.mouth("tr_001"))
    build_store(corpus, store, splits=("train", "val"))
    before = {
        sample["__key__"]: sample for split in ("train", "train_view1", "val") for sample in samples(store, split)
    }
    assert compact(store).superseded == 2
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
def test_who_reads_meanwhile_is_not_disturbed(grown: Corpus, store: Path, how: str) -> None:
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
        kept = compact(store).kept
        assert (
            "what was replaced stays (plan-000.parquet, plan-001.parquet, plan-002.parquet): the store is being" in kept
        )
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
    grown: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def no_files_made(path: Any, flags: int, *words: Any) -> int:
        if flags & (os.O_CREAT | os.O_RDWR | os.O_WRONLY):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *words)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_files_made)
        hold = Catalog.open_to_read(store).hold
        assert hold is not None
    assert "is being read" in compact(store).kept
    del hold
    build_store(grown, store)
    assert not read_store_record(store).retired


def test_who_came_later_does_not_keep_what_was_replaced(grown: Corpus, store: Path) -> None:
    early = Catalog.open_to_read(store)
    old = {path.name for path in store.glob("*.tar")}
    compact(store)
    late = Catalog.open_to_read(store)
    build_store(grown, store)
    assert old <= {path.name for path in store.glob("*.tar")}
    del early
    gc.collect()
    build_store(grown, store)
    assert not old & {path.name for path in store.glob("*.tar")}
    assert late.hold is not None


def test_who_reads_what_was_replaced_keeps_what_was_added_to_it(grown: Corpus, store: Path) -> None:
    """A build adds to a store while its compaction waits; then that is replaced, too."""
    begin_and_die(store)
    change_mouth(grown.mouth("tr_003"))
    build_store(grown, store)
    reader = StoreReader([Catalog.open_to_read(store)], "train")
    expected = {reader.key(row): reader.read(row).tobytes() for row in range(len(reader))}
    reader.files = copy.copy(reader.files)  # nothing of it is open yet
    compact(store)
    build_store(grown, store, overwrite=True)
    assert {reader.key(row): reader.read(row).tobytes() for row in range(len(reader))} == expected


def test_shards_of_another_size_begin_it_anew(grown: Corpus, store: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = everything(store)
    begin_and_die(store)
    Compaction(store=store, utterances_per_shard=100).run()
    assert "plan-003.parquet was begun with shards of another size, so it is dropped" in caplog.text
    assert len(list(store.glob("*.tar"))) == 3
    assert everything(store) == before


def test_one_that_is_begun_anew_waits_for_what_was_added_meanwhile(grown: Corpus, store: Path) -> None:
    begin_and_die(store)
    for name in ("tr_003", "tr_004"):
        change_mouth(grown.mouth(name))
    interrupt_build(grown, store, "shardwriter.utterances_per_shard=1", "shardwriter.batch_size=1", packs=1)
    with pytest.raises(StoreError, match=r"planned shards? not built yet"):
        Compaction(store=store, utterances_per_shard=100).run()
    build_store(grown, store)
    before = everything(store)
    Compaction(store=store, utterances_per_shard=100).run()
    assert everything(store) == before


def test_each_split_is_compacted_where_its_own_shards_are_not_full(quick: None, corpus: Corpus, store: Path) -> None:
    build_store(corpus, store, "shardwriter.utterances_per_shard=2", splits=("train",))
    build_store(corpus, store, "shardwriter.utterances_per_shard=100", splits=("val",))
    assert Compaction(store=store, utterances_per_shard=4).survey() is not None
    Compaction(store=store, utterances_per_shard=4).run()
    assert len(list(store.glob("train-*.tar"))) == 2
    assert Compaction(store=store, utterances_per_shard=4).survey() is None


def test_a_disk_without_room_for_both_is_told_of_before_anything_is_written(
    grown: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(store)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(StoreError, match=r"take about .* kB beside the old ones, and 1 kB are free"):
        compact(store)
    assert contents(store) == before


def test_the_card_names_the_tars_that_count_while_others_lie_beside_them(grown: Corpus, store: Path) -> None:
    def named() -> Any:
        front_matter = yaml.safe_load((store / "README.md").read_text().split("---\n")[1])
        return {part["split"]: part["path"] for part in front_matter["configs"][0]["data_files"]}

    def counting(catalog: Catalog) -> list[str]:
        return [f"{record.shard}.tar" for record in catalog.split("train").shards]

    assert named()["train"] == "train-*.tar"
    old = Catalog.open_to_read(store)
    begin_and_die(store)
    assert named()["train"] == counting(old)
    compact(store)
    assert named()["train"] == counting(Catalog.open(store)) != counting(old)
    del old
    gc.collect()
    build_store(grown, store)
    assert named()["train"] == "train-*.tar"


def test_inspect_shards_tells_of_what_was_begun_and_of_what_was_replaced(
    grown: Corpus, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = Catalog.open_to_read(store)
    begin_and_die(store)
    shown = run_main(inspect_cli.main, [store], capsys).out
    assert "plan-003.parquet: a --compact was begun and has 4 of 4 shards; this store serves until it is" in shown
    assert f"--shards {store} --compact; to give it up: --abandon instead" in shown
    compact(store)
    shown = run_main(inspect_cli.main, [store], capsys).out
    assert re.search(r"plan-000.parquet: was replaced \(20.*\), and its 5 shards stay while they may be read", shown)
    assert reader.hold is not None


@pytest.mark.parametrize("begun", ["--compact", "--overwrite"])
def test_what_was_begun_can_be_given_up(grown: Corpus, store: Path, run: Run, begun: str) -> None:
    before = contents(store)
    if begun == "--compact":
        begin_and_die(store)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Generations, "switch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                build_store(grown, store, "videonet.videonet_config.seed=7", overwrite=True)
    assert before.items() < contents(store).items()
    outcome = run("--abandon")
    assert (outcome.code, "given up: plan-003.parquet" in outcome.out) == (0, True), outcome.err
    assert contents(store) == before
    assert "train-*.tar" in (store / "README.md").read_text()
    assert "nothing was begun" in run("--abandon").out
    assert run("--abandon", "--overwrite").code == 2


def test_an_overwrite_drops_a_compaction_that_waits(grown: Corpus, store: Path) -> None:
    begin_and_die(store)
    build_store(grown, store, "videonet.videonet_config.seed=7", overwrite=True)
    (plan,) = Catalog.open(store).plans
    assert {path.stem for path in store.glob("*.tar")} == set(plan.shards)
    assert [path.name for path in store.glob("plan-*")] == list(read_store_record(store).plans)


def test_what_was_replaced_stays_for_the_days_that_the_config_says(grown: Corpus, store: Path) -> None:
    old = {path.name for path in store.glob("*.tar")}
    Compaction(store=store, utterances_per_shard=PER_SHARD, keep_replaced_days=1).run()
    build_store(grown, store, "shardwriter.keep_replaced_days=1")
    assert old <= {path.name for path in store.glob("*.tar")}
    record = read_store_record(store)
    day_before = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%dT%H:%M:%S%z}"
    retired = {**record.retired, "plan-000.parquet": day_before, "plan-001.parquet": day_before}
    write_store_record(store, replace(record, retired=retired))
    build_store(grown, store, "shardwriter.keep_replaced_days=1")
    assert set(read_store_record(store).retired) == {"plan-002.parquet"}
    build_store(grown, store)
    assert not read_store_record(store).retired
    assert not old & {path.name for path in store.glob("*.tar")}


def test_damage_is_not_copied(grown: Corpus, store: Path) -> None:
    tar = sorted(store.glob("train-*.tar"))[0]
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(bytes(content))
    with pytest.raises(StoreError, match=rf"{tar.name}.*it is damaged, and nothing was copied from it"):
        compact(store)
    assert len(read_store_record(store).plans) == 3


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
        ("--num_processes", 2),
        ("--executor", "ray"),
    ],
)
def test_flags_that_make_no_sense_with_it_are_refused(
    quick: None, complete_store: Path, run: Run, words: tuple[object, ...]
) -> None:
    outcome = run("--compact", *words)
    assert outcome.code == 2
    assert "--compact: copies a whole store as it is, in one process, without" in outcome.err


def test_what_is_no_store_is_named_and_not_made(quick: None, corpus: Corpus, store: Path, run: Run) -> None:
    outcome = run("--compact")
    assert outcome.code == 2
    assert f"{store}: not a store" in outcome.err
    assert not store.exists()


def test_an_unfinished_store_is_finished_first(quick: None, corpus: Corpus, store: Path, run: Run) -> None:
    build_store(corpus, store, "shardwriter.utterances_per_shard=1", splits=("train",))
    (store / "train-000001.index").unlink()
    outcome = run("--compact")
    assert outcome.code == 2
    assert "1 planned shard not built yet (e.g. train-000001)" in outcome.err
