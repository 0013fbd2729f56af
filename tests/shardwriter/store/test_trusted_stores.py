"""What the files of a store say is believed only where it can be: of itself, of its tars, and of no other folder."""

import io
import json
import os
import random
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash
from helpers.builds import (
    CPU,
    build_store,
    edit_record,
    edited,
    index,
    opened,
    plans,
    read_index,
    shards,
    stored,
    tar,
)
from helpers.campaign.forge import forge_plan
from helpers.corpus import Corpus, make_corpus
from helpers.rights import rights_that_count

from iianet.encoder.kernels import Kernels
from iianet.errors import StoreError
from loaders.reader import open_reader
from shardwriter import write_store
from shardwriter.build.compact import Compaction, abandon
from shardwriter.execute.executor import OneProcess
from shardwriter.execute.operation import run_operation
from shardwriter.format.document import digest_facts
from shardwriter.format.index import encode_index, index_table
from shardwriter.format.names import plan_name
from shardwriter.format.record import parse_identity
from shardwriter.format.table import encode_table
from shardwriter.inspect.inspected import InspectedStore
from shardwriter.inspect.reindex import reindex
from shardwriter.inspect.verify import verify
from shardwriter.storage.folder import Folder
from shardwriter.store.snapshot import Snapshot
from shardwriter.store.transaction import open_transaction

pytestmark = pytest.mark.usefixtures("quick")

SPLITS = ("train", "val")
TWO = "shardwriter.utterances_per_shard=2"


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus", {"train": 4, "val": 2})


@pytest.fixture
def store(corpus: Corpus, tmp_path: Path) -> Path:
    """Two shards to train on, and one to validate with."""
    path = tmp_path / "store"
    build_store(corpus, path, TWO, splits=SPLITS)
    return path


def everything(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir() if path.is_file() and path.name != ".lock"}


def edit_index(path: Path, change: Callable[[list[dict[str, Any]]], None], **facts: Any) -> None:
    """Write an index with other rows or facts, and right digests."""
    rows, (record,) = read_index(path)
    changed = rows.to_pylist()
    change(changed)
    path.write_bytes(encode_index(index_table(changed), [replace(record, **facts)]))
    for merged in ("train.index", "val.index"):
        path.with_name(merged).unlink(missing_ok=True)


def test_two_indexes_that_were_exchanged_are_refused_by_name(store: Path, corpus: Corpus) -> None:
    first, second = index(store, "train", 0), index(store, "train", 1)
    other, ours = second.read_bytes(), first.read_bytes()
    first.write_bytes(other)
    second.write_bytes(ours)
    assert set(stored(store, "train")) == set(corpus.names["train"])  # the merged index is right
    (store / "train.index").unlink()
    said = rf"^{first}: is the index of {second.stem}; expected {first.stem}\. It was copied or renamed: put back"
    for use in (lambda: open_reader(store, "train"), lambda: build_store(corpus, store, TWO, splits=SPLITS)):
        with pytest.raises(StoreError, match=said):
            use()


def test_an_index_that_was_copied_over_another_is_refused(store: Path) -> None:
    shutil.copy(index(store, "train", 0), index(store, "train", 1))
    (store / "train.index").unlink()
    with pytest.raises(StoreError, match=rf"expected {shards(store, 'train')[1]}"):
        open_reader(store, "train")


def test_a_merged_index_of_another_split_is_not_used(store: Path, corpus: Corpus) -> None:
    before = stored(store, "train")
    shutil.copy(store / "val.index", store / "train.index")
    np.testing.assert_equal(stored(store, "train"), before)


def exchange_embeddings(rows: list[dict[str, Any]]) -> None:
    """Each key has the embedding of the other, at a place that is one of the tar's."""
    rows[0]["key"], rows[1]["key"] = rows[1]["key"], rows[0]["key"]


def test_bytes_of_another_key_are_not_copied(store: Path) -> None:
    """Its places are such as could be; the tar's own headers say whose they are."""
    edit_index(index(store, "train", 0), exchange_embeddings)
    before = {path.name: path.read_bytes() for path in store.glob("*.tar")}
    work = Compaction(storage=Folder(store), utterances_per_shard=4)
    with pytest.raises(StoreError, match=r"embedding\.npy: its index says that .* where the tar has b'tr_00"):
        run_operation(work, Folder(store), OneProcess(CPU))
    assert {name: (store / name).read_bytes() for name in before} == before
    assert any("its index says" in problem for problem in verify(InspectedStore.open(Folder(store))).problems)


def test_an_array_of_another_type_than_the_stores_is_not_copied(store: Path) -> None:
    """Its tar has the digest that its index says: whoever wrote both wrote them wrong."""
    path = tar(store, "train", 0)
    content = path.read_bytes().replace(b"'descr': '<f2'", b"'descr': '>f2'", 1)
    path.write_bytes(content)
    edit_index(index(store, "train", 0), lambda _: None, tar_digest=xxhash.xxh3_64_hexdigest(content))
    before = {path.name: path.read_bytes() for path in store.glob("*.tar")}
    work = Compaction(storage=Folder(store), utterances_per_shard=4)
    said = (
        rf"^{path.name}: tr_00\d: embedding\.npy: is no array of .*; expected \(512, \d\) float16, .*--verify lists all"
    )
    with pytest.raises(StoreError, match=said):
        run_operation(work, Folder(store), OneProcess(CPU))
    assert {name: (store / name).read_bytes() for name in before} == before


def shorten(rows: list[dict[str, Any]]) -> None:
    rows[0]["frames"] -= 1
    rows[0]["embedding_length"] -= 2 * 512


def test_an_array_of_another_shape_than_the_index_says_is_not_served(store: Path) -> None:
    edit_index(index(store, "train", 0), shorten)
    reader = open_reader(store, "train")
    said = rf"^{tar(store, 'train', 0)}: {reader.key(0)}: embedding\.npy: .* are not the header of the array"
    for _ in range(2):
        with pytest.raises(StoreError, match=said):
            reader.read(0)
    with pytest.raises(StoreError, match=said):
        reader.read_rows(np.array([1, 0]), np.empty((2, 512, int(reader.frames[1])), dtype=np.float16))
    reader.read(1)


def lengthen(rows: list[dict[str, Any]]) -> None:
    rows[0]["embedding_length"] -= 2


def without_metadata(rows: list[dict[str, Any]]) -> None:
    rows[0].update(metadata_offset=None, metadata_length=None)


def with_audio(rows: list[dict[str, Any]]) -> None:
    offset = rows[1]["metadata_offset"]
    rows[1].update(audio_offset=offset + 1024, audio_length=1)


@pytest.mark.parametrize("change", [lengthen, without_metadata, with_audio])
def test_a_sample_of_another_layout_than_the_stores_is_refused(store: Path, change: Any) -> None:
    path = index(store, "train", 0)
    edit_index(path, change)
    with pytest.raises(
        StoreError, match=rf"^{path}: .*expected embedding\.npy, json, .* as store\.json says\)\. .*run"
    ):
        opened(store).split("train")


def test_a_plan_of_another_identity_than_the_stores_is_refused(store: Path, corpus: Corpus) -> None:
    """Else values would be read as another type, and end in a training."""
    (plan,) = plans(store)
    edit_record(store, identity={**vars(opened(store).identity), "dtype": "int8"})
    said = r"was made with another identity than store\.json says \(dtype: int8 here, float16 there\)"
    for use in (lambda: open_reader(store, "train"), lambda: build_store(corpus, store, TWO, splits=SPLITS)):
        with pytest.raises(StoreError, match=rf"^{store}/{plan}: {said}"):
            use()


RECORDS: dict[str, dict[str, Any]] = {
    "a dtype that no store has": {"identity": {"dtype": "int16"}},
    "a dim below 1": {"identity": {"dim": 0}},
    "fps of no number": {"identity": {"fps": "25"}},
    "plans as text": {"plans": "plan-0123456789.parquet"},
    "plans as an object": {"plans": {}},
    "a plan that is a path": {"plans": ["../victim/plan-0123456789.parquet"]},
    "a plan of no name": {"plans": [3]},
    "a plan that is the record": {"plans": ["store.json"]},
    "a plan twice": {"pending": "FIRST"},
    "a pending path": {"pending": "../victim/data"},
    "a retired path": {"retired": {"../victim/data": "2026-01-01T00:00:00+00:00"}},
    "a retired file of no plan": {"retired": {"notes.txt": "2026-01-01T00:00:00+00:00"}},
    "a time that is none": {"retired": {"plan-0123456789.parquet": "soon"}},
    "a time without a zone": {"retired": {"plan-0123456789.parquet": "2026-01-01T00:00:00"}},
    "a data_root that is no text": {"data_root": 3},
}


@pytest.mark.parametrize("wrong", RECORDS)
def test_a_record_of_values_that_no_record_has_is_refused_and_nothing_is_touched(
    store: Path, corpus: Corpus, wrong: str
) -> None:
    (store / "notes.txt").write_text("another's")
    first = plans(store)[0]
    changes = {name: first if value == "FIRST" else value for name, value in RECORDS[wrong].items()}
    if "identity" in changes:
        changes["identity"] = {**vars(opened(store).identity), **changes["identity"]}
    (store / "store.json").write_bytes(edited((store / "store.json").read_bytes(), **changes))
    before = everything(store)
    said = rf"^{store}/store\.json: is damaged, or not the record of a store \(.*--reindex"
    for use in (
        lambda: Snapshot.open(Folder(store)),
        lambda: build_store(corpus, store, TWO, splits=SPLITS),
        lambda: abandon(Folder(store), 0),
    ):
        with pytest.raises(StoreError, match=said):
            use()
    assert everything(store) == before


def hostile_plan(store: Path, split: str) -> tuple[str, bytes]:
    """Name and content of a plan whose digests are right, and whose split names other folders."""
    plan = opened(store).plan(opened(store).active[0])
    facts = {**asdict(plan.header), "base": [], "shards": {split: 1}}
    del facts["id"]
    plan_id = digest_facts(facts)[:10]
    return plan_name(plan_id), encode_table(plan.table, {**facts, "id": plan_id})


@pytest.mark.parametrize("role", ["not named", "retired", "pending"])
def test_a_plan_whose_shards_lie_in_other_folders_deletes_nothing_there(
    store: Path, corpus: Corpus, tmp_path: Path, role: str
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    names = ("data", "data.tar", "data.index", "data-0123456789-000000.tar", "data-0123456789-000000.index")
    for file in names:
        (victim / file).write_text("mine")
    name, content = hostile_plan(store, "../victim/data")
    (store / name).write_bytes(content)
    if role == "retired":
        edit_record(store, retired={name: "2026-01-01T00:00:00+00:00"})
    elif role == "pending":
        edit_record(store, pending=name)
    samples = [("clip", stored(store, "val")["cv_000"], {})]
    compaction = Compaction(storage=Folder(store), utterances_per_shard=4, keep_replaced_days=0)
    uses: list[Callable[[], object]] = [
        lambda: build_store(corpus, store, TWO, splits=SPLITS),
        lambda: run_operation(compaction, Folder(store), OneProcess(CPU)),
        lambda: write_store(store, samples, split="test"),
        lambda: abandon(Folder(store), 0),
        lambda: build_store(corpus, store, TWO, splits=SPLITS, overwrite=True),
    ]
    for use in uses:
        try:
            use()
        except StoreError as error:
            assert str(store) in str(error)
    assert {path.name: path.read_text() for path in victim.iterdir()} == dict.fromkeys(names, "mine")


def test_files_of_another_store_stay_where_they_were_put(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody may have copied them here to join two stores; a build must not delete what may be the only copy."""
    other = make_corpus(tmp_path / "others", {"train": 2, "val": 2})
    build_store(other, tmp_path / "other", splits=SPLITS)
    moved = [path for pattern in ("plan-*", "*-*.tar", "*-*.index") for path in (tmp_path / "other").glob(pattern)]
    for path in moved:
        shutil.copy(path, store)
    (store / "test.index").write_bytes(b"of another program")
    before = everything(store)
    with open_transaction(Folder(store)) as transaction:
        transaction.conclude()
    assert everything(store) == before
    assert f"{len(moved)} files of no plan of this store, as " in caplog.text
    assert "not used, and not deleted" in caplog.text


def test_reindex_keeps_tars_of_another_store(store: Path, tmp_path: Path) -> None:
    other = make_corpus(tmp_path / "others", {"train": 2})
    build_store(other, tmp_path / "other", splits=("train",))
    (foreign,) = (tmp_path / "other").glob("*.tar")
    shutil.copy(foreign, store)
    index(store, "train", 0).unlink()
    reindex(str(store))
    assert (store / foreign.name).read_bytes() == foreign.read_bytes()
    assert set(stored(store, "train")) == {"tr_000", "tr_001", "tr_002", "tr_003"}


def test_what_write_store_left_when_it_died_is_deleted_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its samples are others now, so that its names are."""
    samples = [("a", np.ones((4, 2), dtype=np.float16), {})]
    write_store(tmp_path / "store", samples)
    monkeypatch.setattr("shardwriter.store.transaction.Transaction.publish", _die)
    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "store", samples, split="val")
    monkeypatch.undo()
    left = set(tmp_path.glob("store/val-*"))
    assert left
    write_store(tmp_path / "store", [("b", np.ones((4, 3), dtype=np.float16), {})], split="val")
    assert not left & set(tmp_path.glob("store/val-*"))


def _die(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_index_that_may_not_be_read_is_not_called_damaged(store: Path, corpus: Corpus) -> None:
    path = index(store, "train", 0)
    (store / "train.index").unlink()
    path.chmod(0)
    try:
        with rights_that_count():
            for use in (lambda: open_reader(store, "train"), lambda: reindex(str(store))):
                with pytest.raises(StoreError, match=rf"{path}: cannot be read .*, which is no damage") as said:
                    use()
                assert "elete" not in str(said.value)
    finally:
        path.chmod(0o644)


@pytest.mark.parametrize("name", ["store.json", "README.md", "PLAN", "INDEX", "train.index"])
def test_files_of_absurd_size_cost_no_memory(store: Path, corpus: Corpus, name: str) -> None:
    path = store / name
    if name == "PLAN":
        path = store / plans(store)[0]
    elif name == "INDEX":
        path = index(store, "train", 0)
        (store / "train.index").unlink()
    with path.open("r+b") as stream:
        stream.truncate(1 << 33)  # holes, which take no room on the disk
    tracemalloc.start()
    try:
        if name in ("README.md", "train.index"):
            build_store(corpus, store, TWO, splits=SPLITS)
        else:
            with pytest.raises(StoreError, match=rf"^{path}: "):
                open_reader(store, "train")
        assert tracemalloc.get_traced_memory()[1] < 1 << 28
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("thing", ["nothing", "folder", "fifo", "link"])
def test_an_index_that_was_lost_is_told_where_nothing_was_interrupted(
    store: Path, thing: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = index(store, "train", 0)
    open_reader(store, "train")
    assert not caplog.records
    path.unlink()
    if thing == "folder":
        path.mkdir()
    elif thing == "fifo":
        os.mkfifo(path)
    elif thing == "link":
        path.symlink_to(store / "nowhere")
    assert len(open_reader(store, "train")) == 2
    assert f"train.index: lists 1 shard without an index, e.g. {path}: the utterances count as missing." in caplog.text


def test_a_first_plan_of_another_store_stays_in_a_store_without_plans(
    corpus: Corpus, store: Path, tmp_path: Path
) -> None:
    """Nothing but its identity ties a plan without a base to a store."""
    identity = opened(store).identity
    with open_transaction(Folder(tmp_path / "empty")) as transaction:
        transaction.create(replace(identity, dim=identity.dim + 1), None)
    moved = [path for pattern in ("plan-*", "*-*.tar", "*-*.index") for path in store.glob(pattern)]
    for path in moved:
        shutil.copy(path, tmp_path / "empty")
    before = everything(tmp_path / "empty")
    with open_transaction(Folder(tmp_path / "empty")):
        pass
    assert everything(tmp_path / "empty") == before


@pytest.mark.parametrize("value", [json.loads("[" * 700 + "]" * 700), "\udc80"])
def test_an_identity_of_odd_values_is_refused(store: Path, value: Any) -> None:
    facts = asdict(opened(store).identity)
    for part in ("encoder", "precision", "preprocessing"):
        with pytest.raises(ValueError):
            parse_identity({**facts, part: {"odd": value}})


def test_kernels_of_odd_values_are_refused() -> None:
    with pytest.raises(ValueError, match="dtype"):
        Kernels.from_record({"dtype": []})


def test_a_time_that_leaves_no_room_is_refused(store: Path) -> None:
    edit_record(store, retired={"plan-0123456789.parquet": "9999-12-31T23:59:59+00:00"})
    with pytest.raises(StoreError, match=r"store\.json: .*was replaced at"):
        opened(store)


def test_a_record_that_may_not_be_read_is_not_made_anew(store: Path) -> None:
    before = (store / "store.json").read_bytes()
    (store / "store.json").chmod(0)
    try:
        with rights_that_count(), pytest.raises(StoreError, match="which is no damage"):
            reindex(str(store))
    finally:
        (store / "store.json").chmod(0o644)
    assert (store / "store.json").read_bytes() == before


def exchange_keys_of_splits(_: random.Random, content: bytes) -> bytes:
    table = pq.read_table(io.BytesIO(content))
    keys, splits = table["key"].to_pylist(), table["split"].to_pylist()
    one, other = splits.index("train"), splits.index("val")
    keys[one], keys[other] = keys[other], keys[one]
    changed = table.set_column(table.schema.get_field_index("key"), table.schema.field("key"), [keys])
    buffer = io.BytesIO()
    pq.write_table(changed, buffer)
    return buffer.getvalue()


def test_an_utterance_that_a_plan_lists_in_a_split_without_it_is_named_by_compact(store: Path) -> None:
    forge_plan(random.Random(0), next(store.glob("plan-*")), exchange_keys_of_splits)()
    operation = Compaction(storage=Folder(store), utterances_per_shard=100)
    expected = (
        r"-000000\.tar: is to hold the utterance \w+, which a plan lists in \w+ and no shard of it .*--abandon, then"
    )
    with pytest.raises(StoreError, match=expected):
        run_operation(operation, Folder(store), OneProcess(CPU))
