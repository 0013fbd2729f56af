"""inspect-shards --reindex: a store again of its own tars, whatever of its other files was lost."""

import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers.builds import (
    CPU,
    build_store,
    change_mouth,
    contents,
    edit_record,
    index,
    opened,
    plans,
    read_index,
    stored,
    tar,
)
from helpers.foreign_tars import embedding, npy, own_members, traps, write_tar
from helpers.inspection import BROKEN, STORED, Place, make_place, run

from iianet.errors import StoreError
from loaders.embeddings.sharded_embeddings import ShardedEmbeddings
from shardwriter import write_store
from shardwriter.build.compact import Compaction
from shardwriter.execute.executor import OneProcess
from shardwriter.execute.operation import run_operation
from shardwriter.format.names import parse_plan_name, parse_shard, unescape_key
from shardwriter.inspect.inspected import InspectedStore
from shardwriter.inspect.reindex import reindex
from shardwriter.inspect.verify import verify
from shardwriter.storage.folder import Folder
from shardwriter.store.transaction import open_transaction

SPLITS = ("train", "val")
EVERYTHING = ("*.index", "plan-*", "store.json", "README.md")
MERGED = ("train.index", "val.index")
"""Derived; they would still say what is lost."""
LOST = [EVERYTHING, ("*.index",), ("plan-*",), ("plan-*", "*.index"), ("store.json",), ("store.json", "*.index")]
LOST += [("store.json", "plan-*")]
Embeddings = dict[str, dict[str, npt.NDArray[Any]]]


def lose(store: Path, *patterns: str) -> None:
    for pattern in (*patterns, *MERGED):
        for path in store.glob(pattern):
            path.unlink()


def embeddings(store: Path) -> Embeddings:
    return {split: stored(store, split) for split in SPLITS}


def assert_equal(found: Embeddings, expected: Embeddings) -> None:
    for split in expected:
        assert found[split].keys() == expected[split].keys()
        for key, values in expected[split].items():
            np.testing.assert_array_equal(found[split][key], values)


def tar_contents(store: Path) -> Counter[bytes]:
    """What the tars hold, whatever they are called. There are some."""
    found = Counter(path.read_bytes() for path in store.glob("*.tar"))
    assert found
    return found


def plan_ids(store: Path) -> set[str]:
    """Ids in the names of tars."""
    return {name.plan_id for path in store.glob("*.tar") if (name := parse_shard(path.stem))}


def begin_a_build(store: Path) -> None:
    """Do what every build does first: refuse the store, or delete what does not belong to it."""
    with suppress(StoreError), open_transaction(Folder(store)):
        pass


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A store of two plans: one utterance of each split was encoded again."""
    place = make_place(tmp_path_factory.mktemp("grown"))
    for name in ("ann", "fay"):
        change_mouth(place.mouth(name))
    place.build()
    assert len(plans(place.store)) == 2
    return place


@pytest.mark.parametrize("lost", [*LOST, ("train-*-000001.index",)])
def test_a_store_that_lost_its_records_is_read_as_before(place: Place, lost: tuple[str, ...]) -> None:
    before, tars = embeddings(place.store), tar_contents(place.store)
    lose(place.store, *lost)
    assert run(place.store, "--reindex", "--verify") == 0
    assert tar_contents(place.store) == tars
    assert_equal(embeddings(place.store), before)


@pytest.mark.parametrize("lost", LOST)
def test_tars_are_renamed_just_where_their_plan_is_lost(place: Place, lost: tuple[str, ...]) -> None:
    before, old = {path.name for path in place.store.glob("*.tar")}, plan_ids(place.store)
    lose(place.store, *lost)
    assert run(place.store, "--reindex") == 0
    assert ({path.name for path in place.store.glob("*.tar")} == before) == ("plan-*" not in lost)
    assert (plan_ids(place.store) == old) == ("plan-*" not in lost)
    assert plan_ids(place.store) == {parse_plan_name(name) for name in plans(place.store)}


@pytest.mark.parametrize("lost", [lost for lost in LOST if "plan-*" not in lost or "store.json" not in lost])
def test_the_newer_of_two_entries_of_a_key_wins(grown: Place, tmp_path: Path, lost: tuple[str, ...]) -> None:
    place = grown.copy(tmp_path)
    before = embeddings(place.store)
    lose(place.store, *lost)
    assert run(place.store, "--reindex", "--verify") == 0
    assert len(plans(place.store)) == 2
    assert_equal(embeddings(place.store), before)


@pytest.mark.parametrize("lost", [("store.json",), ("store.json", "*.index"), ("*.index",)])
def test_what_was_added_to_a_compacted_store_is_newer(grown: Place, tmp_path: Path, lost: tuple[str, ...]) -> None:
    """By what the plans say: the ids of the plans and the number of plans in their base say nothing."""
    place = grown.copy(tmp_path)
    storage = Folder(place.store)
    run_operation(Compaction(storage=storage, utterances_per_shard=3), storage, OneProcess(CPU))
    for seed in range(2):
        for name in ("ann", "fay"):
            change_mouth(place.mouth(name), seed=seed)
        place.build()
    before, names = embeddings(place.store), plans(place.store)
    assert [header.kind for header in opened(place.store).active] == ["compact", "extend", "extend"]
    lose(place.store, *lost)
    assert run(place.store, "--reindex", "--verify") == 0
    assert plans(place.store) == names
    assert_equal(embeddings(place.store), before)


def test_a_damaged_record_is_made_anew(grown: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = grown.copy(tmp_path)
    before, record = embeddings(place.store), opened(place.store).record
    (place.store / "store.json").write_bytes(b"{")
    assert run(place.store, "--reindex", "--verify", "--data_root", record.data_root) == 0
    assert "store.json: is damaged, and is made anew from the tars" in capsys.readouterr().err
    assert opened(place.store).record == record
    assert_equal(embeddings(place.store), before)


@pytest.mark.parametrize("number", [0, 1])
def test_one_of_two_plans_may_be_lost(grown: Place, tmp_path: Path, number: int) -> None:
    place = grown.copy(tmp_path)
    before, names = embeddings(place.store), plans(place.store)
    lose(place.store, names[number])
    assert run(place.store, "--reindex", "--verify") == 0
    after = plans(place.store)
    assert after[1 - number] == names[1 - number] and after[number] != names[number]
    assert_equal(embeddings(place.store), before)


@pytest.mark.parametrize("lost", [EVERYTHING, ("store.json", "plan-*")])
def test_where_nothing_says_which_plan_is_newer_a_warning_does(
    grown: Place, tmp_path: Path, lost: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    place = grown.copy(tmp_path)
    before, tars = embeddings(place.store), tar_contents(place.store)
    lose(place.store, *lost)
    assert run(place.store, "--reindex", "--verify") == 0
    assert "nothing says which of 2 builds is the newer one" in capsys.readouterr().err
    assert tar_contents(place.store) == tars
    found = embeddings(place.store)
    assert {split: found[split].keys() for split in found} == {split: before[split].keys() for split in before}


def test_an_utterance_that_was_encoded_twice_is_read_once(grown: Place, tmp_path: Path) -> None:
    place = grown.copy(tmp_path)
    lose(place.store, *EVERYTHING)
    reindex(str(place.store))
    read = [key for batch in ShardedEmbeddings(place.store, batch_size=1) for key in batch.keys]
    assert len(read) == len(set(read)) == STORED["train"]


def test_int8_audio_and_views_are_found_again(full: Place, tmp_path: Path) -> None:
    place = full.copy(tmp_path)
    before = opened(place.store).identity
    lose(place.store, *EVERYTHING, "train_view*.index")
    assert run(place.store, "--reindex", "--verify") == 0
    snapshot = opened(place.store)
    assert snapshot.splits == ["train", "train_view1", "train_view2", "val"]
    identity = snapshot.identity
    assert (identity.dtype, identity.dim, identity.audio) == (before.dtype, before.dim, before.audio)


def test_the_audio_lists_are_in_the_new_plan(place: Place) -> None:
    before = opened(place.store).manifest("val")
    lose(place.store, *EVERYTHING)
    assert run(place.store, "--reindex", "--data_root", place.root) == 0
    after = opened(place.store).manifest("val")
    assert after.digest() == before.digest()
    assert after.utterances.table.equals(before.utterances.table)


def test_the_identity_is_kept_where_anything_still_tells_it(place: Place) -> None:
    before = opened(place.store).record
    lose(place.store, "*.index", "plan-*")
    assert run(place.store, "--reindex") == 0
    assert opened(place.store).identity == before.identity
    assert opened(place.store).record.data_root == before.data_root
    lose(place.store, "*.index", "store.json")
    assert run(place.store, "--reindex") == 0
    assert opened(place.store).identity == before.identity


def test_where_nothing_tells_the_encoder_the_store_says_so(place: Place) -> None:
    lose(place.store, *EVERYTHING)
    assert run(place.store, "--reindex") == 0
    identity = opened(place.store).identity
    assert identity.is_imported
    assert identity.encoder["reindexed"] is True
    assert identity.encoder["fingerprint"] is None


@pytest.mark.parametrize("lost", [lost for lost in LOST if lost != EVERYTHING and lost != ("store.json", "plan-*")])
def test_a_build_resumes_and_encodes_nothing_again(place: Place, lost: tuple[str, ...]) -> None:
    tars = tar_contents(place.store)
    lose(place.store, *lost)
    assert run(place.store, "--reindex", "--data_root", place.root) == 0
    names = {path.name for path in place.store.glob("*.tar")}
    report = build_store(place.corpus, place.store, splits=SPLITS)  # may try the broken one again, and nothing else
    assert not report.stored.total() and sum(map(len, report.failed.values())) == 1
    assert {path.name for path in place.store.glob("*.tar")} == names
    assert tar_contents(place.store) == tars
    assert run(place.store, "--verify") == 0


def test_indexes_that_are_there_keep_what_tars_do_not_say(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = {split: opened(place.store).split(split).entries.to_pylist() for split in SPLITS}
    lose(place.store, "store.json")
    assert run(place.store, "--reindex", "--data_root", place.root) == 0
    assert {split: opened(place.store).split(split).entries.to_pylist() for split in SPLITS} == before
    assert "recorded as failed" not in capsys.readouterr().err


def test_the_data_root_of_a_record_that_was_edited_is_kept(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = place.store / "store.json"
    for edited, given, expected in (("/one", (), "/one"), ("/two", ("--data_root", "/three"), "/three")):
        facts = json.loads(path.read_bytes())
        path.write_text(json.dumps({**facts, "data_root": edited}))
        with pytest.raises(StoreError, match=rf"^{path}: is damaged, or not the record of a store \(its digest is .*"):
            opened(place.store)
        assert run(place.store, "--reindex", *given) == 0
        assert opened(place.store).record.data_root == expected
        said = capsys.readouterr().err
        assert f"{place.store}: data_root is {edited}, as it says; give --data_root for another" in said
        assert "is lost, so nothing says where the paths" not in said


def test_a_lost_data_root_is_named(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    for given, is_named in (((), True), (("--data_root", place.root), False)):
        lose(place.store, "store.json")
        assert run(place.store, "--reindex", *given) == 0
        assert ("give --data_root to record it" in capsys.readouterr().err) == is_named


def test_what_is_damaged_and_made_anew_is_named_without_other_advice(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    first = plans(place.store)[0]
    (place.store / first).write_bytes(b"junk")
    assert run(place.store, "--reindex") == 0
    shown = capsys.readouterr().err
    assert f"{first}: is damaged, and is made anew from the tars (" in shown and "Copy it again" not in shown


@pytest.mark.parametrize("lost", [("*.index",), ("store.json", "*.index")])
def test_a_failure_whose_index_is_lost_is_tried_again(place: Place, lost: tuple[str, ...]) -> None:
    lose(place.store, *lost)
    assert run(place.store, "--reindex", "--data_root", place.root) == 0
    report = build_store(place.corpus, place.store, splits=SPLITS)
    assert report.planned["train"]["new"] + report.planned["train"]["retried"] + report.planned["train"]["resumed"] == 1
    [failed] = report.failed["train"]
    assert failed.key == BROKEN


def test_forgotten_failures_draw_a_warning(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    lose(place.store, "plan-*", index(place.store, "val").name)
    assert run(place.store, "--reindex") == 0
    assert "1 utterances are recorded as failed; build-shards takes them for new" in capsys.readouterr().err


def test_a_whole_store_is_left_alone(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(place.store)
    assert run(place.store, "--reindex") == 2
    assert "nothing to do" in capsys.readouterr().err
    assert contents(place.store) == before


def overwrite(place: Place, *overrides: str) -> None:
    build_store(place.corpus, place.store, *overrides, splits=SPLITS, overwrite=True)


KEEP = "shardwriter.keep_replaced_days=7"


def test_what_was_replaced_and_stays_for_its_readers_is_nothing_to_do(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    overwrite(place, KEEP)
    before = contents(place.store)
    assert len(plan_ids(place.store)) == 2
    assert run(place.store, "--reindex") == 2
    assert "there is nothing to do" in capsys.readouterr().err
    assert contents(place.store) == before


@pytest.mark.parametrize("lost", [("store.json",), ("store.json", "*.index"), ("*.index",)])
def test_what_was_replaced_and_stays_for_its_readers_stays_retired(place: Place, lost: tuple[str, ...]) -> None:
    """It stays, since a training may still read it."""
    [replaced] = plans(place.store)
    overwrite(place, KEEP, "videonet.videonet_config.seed=3")
    before, names, identity = embeddings(place.store), plans(place.store), opened(place.store).identity
    tars = tar_contents(place.store)
    if (
        "*.index" in lost
    ):  # a shard of failures alone has no tar, and without its index it cannot be told from a lost one
        lost = (*lost[:-1], "val-*.index")
    lose(place.store, *lost)
    assert run(place.store, "--reindex", "--verify") == 0
    assert plans(place.store) == names
    assert opened(place.store).identity == identity
    assert_equal(embeddings(place.store), before)
    assert list(opened(place.store).record.retired) == [replaced]
    assert tar_contents(place.store) == tars
    overwrite(place, "shardwriter.keep_replaced_days=0", "videonet.videonet_config.seed=3")
    assert len(plan_ids(place.store)) == 1


@pytest.mark.parametrize("lost", [("store.json",), ("store.json", "*.index"), ("*.index",), ("plan-*",)])
def test_an_overwritten_store_whose_old_shards_are_gone_is_found_again(place: Place, lost: tuple[str, ...]) -> None:
    entries, _ = read_index(index(place.store, "train", 0))
    for key in entries["key"].to_pylist():  # a shard of failures alone has no tar
        place.mouth(unescape_key(key)).write_bytes(b"not a zip")
    overwrite(place)
    before, tars = embeddings(place.store), tar_contents(place.store)
    assert opened(place.store).active[0].kind == "replace" and not opened(place.store).record.retired
    assert len(place.inspected().splits["train"].planned) > len(list(place.store.glob("train-*.tar")))
    lose(place.store, *lost)
    assert run(place.store, "--reindex", "--verify") == 0
    assert_equal(embeddings(place.store), before)
    assert tar_contents(place.store) == tars


@pytest.mark.parametrize("lost", [("store.json",), ("store.json", "*.index"), ("*.index",)])
def test_a_compaction_in_progress_is_resumed_afterwards(grown: Place, tmp_path: Path, lost: tuple[str, ...]) -> None:
    place = grown.copy(tmp_path)
    storage, before = Folder(place.store), embeddings(place.store)
    active = plans(place.store)
    compaction = Compaction(storage=storage, utterances_per_shard=3)
    with open_transaction(storage) as transaction:
        tasks = compaction.begin(transaction)
        with_one_shard(compaction, storage, tasks)
    pending = opened(place.store).record.pending
    assert pending is not None and len(list(place.store.glob(f"*-{parse_plan_name(pending)}-*.tar"))) == 1
    lose(place.store, *lost)
    assert run(place.store, "--reindex", "--verify") == 0
    record = opened(place.store).record
    assert (list(record.plans), record.pending) == (active, pending)
    assert_equal(embeddings(place.store), before)


def with_one_shard(compaction: Compaction, storage: Folder, tasks: Sequence[Any]) -> None:
    """Write the first of a compaction's shards."""
    with compaction.watch(None, shown=False) as progress:
        OneProcess(CPU).run(compaction.job(), tasks[:1], progress)


def test_a_lost_plan_of_an_unfinished_overwrite_is_given_up(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = embeddings(place.store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shardwriter.store.transaction.Transaction.run", stop)
        with pytest.raises(KeyboardInterrupt):
            overwrite(place)
    pending = opened(place.store).record.pending
    assert pending is not None
    lose(place.store, pending)
    with pytest.raises(StoreError, match=rf"{pending}: is missing.* --abandon"):
        overwrite(place)
    assert run(place.store) == 1
    assert f"{pending}: is missing" in capsys.readouterr().out
    assert run(place.store, "--reindex", "--verify") == 0
    assert opened(place.store).record.pending is None
    assert_equal(embeddings(place.store), before)


def test_plans_that_were_made_with_two_encoders_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_store(tmp_path / name, [(name, embedding(1), {})], identity={"name": name, "fingerprint": name})
    (tmp_path / "one/store.json").unlink()
    names = {name: next((tmp_path / name).glob("plan-*")).name for name in ("one", "two")}
    for path in (tmp_path / "two").glob("*-*"):
        shutil.copy(path, tmp_path / "one")
    before = contents(tmp_path / "one")
    with pytest.raises(StoreError, match="were made with different encoders") as refused:
        reindex(str(tmp_path / "one"))
    assert all(name in str(refused.value) for name in names.values())
    assert contents(tmp_path / "one") == before and not (tmp_path / "one/store.json").exists()


def test_a_store_json_of_another_store_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_store(tmp_path / name, [(name, embedding(1), {})], identity={"name": name, "fingerprint": name})
    shutil.copy(tmp_path / "two/store.json", tmp_path / "one/store.json")
    before = contents(tmp_path / "one")
    with pytest.raises(StoreError, match=r"one"):
        reindex(str(tmp_path / "one"))
    assert contents(tmp_path / "one") == before


def test_tars_of_another_store_under_a_store_json_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_store(tmp_path / name, [(name, embedding(1), {})])
    for path in (tmp_path / "one").glob("*.tar"):
        path.unlink()
    for path in (tmp_path / "two").glob("*.tar"):
        shutil.copy(path, tmp_path / "one")
    before = contents(tmp_path / "one")
    with pytest.raises(
        StoreError, match=r"one: none of its tars belongs to a plan that store.json names; put back the"
    ):
        reindex(str(tmp_path / "one"))
    assert contents(tmp_path / "one") == before


Change = Callable[[Path], object]
VALUES = embedding(1)
SHARD = "train-0123456789-000000.tar"
UNFIT: Mapping[str, Change] = {
    "PAX": lambda at: write_tar(at / SHARD, own_members("a" * 70 + "é" * 20, VALUES), format=tarfile.PAX_FORMAT),
    "member names": lambda at: write_tar(at / SHARD, {"a.npy": npy(VALUES), "a.json": b"{}"}),
    "no json": lambda at: write_tar(at / SHARD, {"a.embedding.npy": npy(VALUES)}),
    "no embedding": lambda at: write_tar(at / SHARD, {**own_members("a", VALUES), "b.json": b"{}"}),
    "json first": lambda at: write_tar(at / SHARD, dict(reversed(own_members("a", VALUES).items()))),
    "header length": lambda at: write_tar(
        at / SHARD, {"a.embedding.npy": npy(VALUES)[:8] + _longer(VALUES), "a.json": b"{}"}
    ),
    "header version": lambda at: write_tar(
        at / SHARD, {"a.embedding.npy": npy(VALUES, version=(2, 0)), "a.json": b"{}"}
    ),
    "column by column": lambda at: write_tar(
        at / SHARD, {"a.embedding.npy": npy(np.asfortranarray(VALUES)), "a.json": b"{}"}
    ),
    "big-endian": lambda at: write_tar(at / SHARD, own_members("a", VALUES.astype(">f2"))),
    "one axis": lambda at: write_tar(at / SHARD, own_members("a", VALUES[0])),
    "float64": lambda at: write_tar(at / SHARD, own_members("a", VALUES.astype("float64"))),
    "objects": lambda at: write_tar(at / SHARD, {"a.embedding.npy": traps(at / "unpickled")[1], "a.json": b"{}"}),
    "dotted keys": lambda at: write_tar(
        at / SHARD, {"a.1.npy": npy(VALUES), "a.1.json": b"{}", "a.2.npy": npy(embedding(2)), "a.2.json": b"{}"}
    ),
    "mixed dtypes": lambda at: write_tar(
        at / SHARD, {**own_members("a", VALUES), **own_members("b", embedding(2, dtype="float32"))}
    ),
    "mixed dims": lambda at: write_tar(
        at / SHARD, {**own_members("a", VALUES), **own_members("b", embedding(2, dim=7))}
    ),
    "other files": lambda at: write_tar(at / SHARD, {**own_members("a", VALUES), "b.jpg": b"x", "LICENSE": b""}),
    "a pickle": lambda at: write_tar(at / SHARD, {**own_members("a", VALUES), "a.pyd": traps(at / "unpickled")[0]}),
    "not finite": lambda at: write_tar(
        at / SHARD, {**own_members("a", VALUES), **own_members("b", np.full((6, 2), np.nan, np.float16))}
    ),
    "key": lambda at: write_tar(at / SHARD, own_members("sub/a", VALUES)),
    "key of a view": lambda at: write_tar(at / SHARD, own_members("a@1", VALUES)),
    "key that is a view's": lambda at: write_tar(
        at / SHARD.replace("train", "train_view2"), own_members("a@1", VALUES)
    ),
    "folder in it": lambda at: _with_folder(write_tar(at / SHARD, own_members("a", VALUES))),
    "json that is none": lambda at: write_tar(at / SHARD, {"a.embedding.npy": npy(VALUES), "a.json": b"{"}),
    "audio list": lambda at: write_tar(at / SHARD, own_members("a", VALUES, audio=[{"mixture": "m.wav"}])),
    "frames": lambda at: write_tar(at / SHARD, own_members("a", VALUES, frames=99)),
    "a sample twice": lambda at: _with_member(
        write_tar(at / SHARD, {**own_members("a", VALUES), **own_members("b", VALUES)}), "a.embedding.npy"
    ),
    "a member twice": lambda at: _with_member(write_tar(at / SHARD, own_members("a", VALUES)), "a.json"),
    "nothing": lambda at: write_tar(at / SHARD, {}),
}


def _longer(values: npt.NDArray[Any]) -> bytes:
    """An npy from its header's length on, whose values begin at byte 256."""
    text = f"{{'descr': '{values.dtype.str}', 'fortran_order': False, 'shape': {values.shape}, }}"
    return (246).to_bytes(2, "little") + text.ljust(245).encode() + b"\n" + values.tobytes()


def _with_folder(path: Path) -> None:
    _with_member(path, "folder", tarfile.DIRTYPE)


def _with_member(path: Path, name: str, kind: bytes = tarfile.REGTYPE) -> None:
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo(name)
        info.type = kind
        archive.addfile(info)


@pytest.mark.parametrize("unfit", UNFIT)
def test_a_tar_that_is_not_as_a_stores_own_is_named_and_left_alone(unfit: str, tmp_path: Path) -> None:
    UNFIT[unfit](tmp_path)
    [path] = tmp_path.glob("*.tar")
    before = {path.name: path.read_bytes()}
    with pytest.raises(StoreError, match=rf"^{tmp_path}(/|: ){path.name}: "):
        reindex(str(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name[0] != "."} == before
    begin_a_build(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name[0] != "."} == before


def test_a_tar_that_is_as_a_stores_own_is_indexed(tmp_path: Path) -> None:
    """What the tars above differ from."""
    write_tar(tmp_path / SHARD, own_members("a", VALUES))
    reindex(str(tmp_path))
    np.testing.assert_array_equal(stored(tmp_path, "train")["a"], VALUES)


@pytest.mark.parametrize("kept", [2048, 1536, 100])
def test_a_cut_tar_is_refused(kept: int, tmp_path: Path) -> None:
    path = write_tar(tmp_path / SHARD, own_members("a", np.zeros((8, 64), np.float16)))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(StoreError, match=rf"^{path}: cannot be read to its end"):
        reindex(str(tmp_path))
    assert not (tmp_path / "store.json").exists()


def test_nothing_behind_a_damaged_header_is_lost_without_a_word(tmp_path: Path) -> None:
    members = {name: content for key in "abc" for name, content in own_members(key, embedding(1)).items()}
    path = write_tar(tmp_path / SHARD, members)
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[2].offset
    content = bytearray(path.read_bytes())
    content[offset + 148 : offset + 156] = b"damaged!"  # its checksum
    path.write_bytes(content)
    with pytest.raises(StoreError, match=rf"^{path}: cannot be read to its end .*at byte {offset:,}"):
        reindex(str(tmp_path))
    assert not (tmp_path / "store.json").exists()


@pytest.mark.parametrize("lost", [("store.json",), ("plan-*",), ("val-*.index",)])
def test_a_tar_that_has_changed_since_its_index_was_written_is_refused(place: Place, lost: tuple[str, ...]) -> None:
    path = tar(place.store, "train")
    entry = place.inspected().entry("train", "ann")
    path = place.store / f"{entry.shard}.tar"
    content = bytearray(path.read_bytes())
    content[entry.members["embedding.npy"].offset + 129] ^= 1  # it stays finite
    path.write_bytes(content)
    lose(place.store, *lost)
    before = tar_contents(place.store)
    with pytest.raises(StoreError, match=rf"^{path}: has changed since it was written"):
        reindex(str(place.store))
    assert tar_contents(place.store) == before


def test_a_sample_that_its_plan_does_not_list_is_refused(place: Place) -> None:
    first, second = tar(place.store, "train", 0), tar(place.store, "val")
    first.write_bytes(second.read_bytes())
    lose(place.store, "*.index")
    with pytest.raises(StoreError, match=rf"^{first}: has (fay|gus), which .* does not list"):
        reindex(str(place.store))


@pytest.mark.parametrize("name", ["shard-0.tar", "train-000000.tar", "a.tar"])
def test_tars_made_by_others_are_refused_and_the_way_for_them_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / name, own_members("a", VALUES))
    assert run(tmp_path, "--reindex") == 2
    said = capsys.readouterr().err
    assert "its 1 tars are not named as a store's" in said
    assert "shardwriter.write_store" in said and "examples/foreign_tars.py" in said
    assert (Path(__file__).parents[3] / "examples/foreign_tars.py").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_without_tars_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--reindex") == 2
    assert f"{tmp_path}: holds no tars" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("pipe:touch {}/ran", "is a command, and none is ever run"),
        ("{{pipe:touch {}/ran,x}}", "names tars, or a pattern of them"),
        ("http://localhost:1/x.tar", "not a store URL"),
        ("s3://bucket/prefix", "s3://bucket/prefix: --reindex works on a folder; copy the store to one, run it there"),
    ],
)
def test_only_folders_are_reindexed(
    given: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(given.format(tmp_path), "--reindex") == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_flag_that_is_refused_is_refused_before_anything_is_written(place: Place) -> None:
    lose(place.store, "*.index")
    before = contents(place.store)
    assert run(place.store, "--reindex", "--recheck", 0) == 2
    assert contents(place.store) == before


def test_a_store_of_version_1_is_refused(place: Place) -> None:
    edit_record(place.store, version=1)
    before = contents(place.store)
    with pytest.raises(StoreError, match=r"version 1 of the format"):
        reindex(str(place.store))
    assert contents(place.store) == before


def test_a_build_does_not_run_beside_it(place: Place) -> None:
    lose(place.store, "*.index")
    with Folder(place.store).write_lock(), pytest.raises(StoreError, match="another build is writing to it"):
        reindex(str(place.store))


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def stopped_at(number: int) -> Iterator[list[bool]]:
    """Stop what writes, renames or deletes just before the `number`-th time. Gives whether it was."""
    left, stopped = count(), [False]
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((Folder, "write"), (Folder, "commit"), (Folder, "delete"), (Path, "rename")):
            patch.setattr(owner, name, _counted(getattr(owner, name), left, number, stopped))
        yield stopped


def _counted(function: Callable[..., Any], left: "count[int]", number: int, stopped: list[bool]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        if stopped[0] or next(left) == number:
            stopped[0] = True
            raise KeyboardInterrupt
        return function(*arguments)

    return call


def reindex_or_leave(store: Path) -> None:
    """Reindex a store, which may be whole already."""
    try:
        reindex(str(store))
    except StoreError as error:
        assert "nothing to do" in str(error)


@pytest.mark.parametrize(
    "lost",
    [*(pytest.param(lost, marks=pytest.mark.slow) for lost in (EVERYTHING, ("plan-*",))), ("store.json", "*.index")],
)
def test_an_interruption_at_any_moment_loses_nothing(grown: Place, tmp_path: Path, lost: tuple[str, ...]) -> None:
    """Nor does a build that comes then; and the same command resumes, though it is interrupted again."""
    before, tars = embeddings(grown.store), tar_contents(grown.store)
    is_stopped, moment = True, 0
    while is_stopped:
        store = shutil.copytree(grown.store, tmp_path / str(moment))
        lose(store, *lost)
        for again in range(2):
            with stopped_at(moment + again) as stopped, suppress(KeyboardInterrupt):
                reindex_or_leave(store)
            is_stopped = stopped[0] if again == 0 else is_stopped
            begin_a_build(store)
            assert tar_contents(store) == tars, (moment, again)
        reindex_or_leave(store)
        assert verify(InspectedStore.open(Folder(store))).problems == []
        found = embeddings(store)
        if lost == EVERYTHING:  # nothing says which entry of a key is newer
            assert {split: found[split].keys() for split in found} == {split: before[split].keys() for split in before}
        else:
            assert_equal(found, before)
        assert not list(store.glob(".tmp-*"))
        moment += 1
    assert moment > 10
