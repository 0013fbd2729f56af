"""A store as it was when opened: each file is read once, and what is wrong is named with its cure."""

import gc
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.builds import (
    build_store,
    change_mouth,
    contents,
    edit_record,
    index,
    interrupt_build,
    opened,
    plans,
    quick_embedding,
    shards,
    stored,
    tar,
)
from helpers.corpus import Corpus, make_corpus

from iianet.errors import StoreError, UnreadableError
from shardwriter.build.compact import abandon
from shardwriter.format.index import decode_index
from shardwriter.format.plan import PLAN_SCHEMA
from shardwriter.format.record import Identity, StoreRecord
from shardwriter.storage.folder import Folder
from shardwriter.store.snapshot import Snapshot, is_store, read_record

pytestmark = pytest.mark.usefixtures("quick")

SPLITS = ("train", "val")


class Counting:
    """A folder that counts how often each of its files is opened, and calls a test before."""

    def __init__(self, path: Path, before: Callable[[str], object] = lambda _: None) -> None:
        self.folder = Folder(path)
        self.opened: Counter[str] = Counter()
        self.before = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self.folder, name)

    def open(self, name: str) -> IO[bytes]:
        self.opened[name] += 1
        self.before(name)
        return self.folder.open(name)


@pytest.fixture
def two_plans(corpus: Corpus, tmp_path: Path) -> Path:
    """A store to train from, to which a split to validate with was added."""
    path = tmp_path / "store"
    build_store(corpus, path, splits=("train",))
    build_store(corpus, path, splits=SPLITS)
    assert len(plans(path)) == 2
    return path


def test_opening_a_store_reads_its_record_and_each_plan_once(two_plans: Path) -> None:
    storage = Counting(two_plans)
    Snapshot.open(storage)
    assert storage.opened == Counter(["store.json", *plans(two_plans)])


def test_each_merged_index_is_read_once_and_those_of_shards_are_not(two_plans: Path) -> None:
    storage = Counting(two_plans)
    snapshot = Snapshot.open(storage)
    storage.opened.clear()
    for _ in range(2):
        for split in snapshot.splits:
            assert snapshot.split(split).is_merged
            assert snapshot.split(split, ["key", "error"]).entries["key"].to_pylist()
    assert storage.opened == Counter(["train.index", "val.index"])


def test_without_a_merged_index_that_of_each_shard_is_read_once(two_plans: Path) -> None:
    merged = opened(two_plans).split("train").entries
    (two_plans / "train.index").unlink()
    storage = Counting(two_plans)
    snapshot = Snapshot.open(storage)
    storage.opened.clear()
    for _ in range(2):
        found = snapshot.split("train")
        assert not found.is_merged and found.entries.equals(merged)
    assert storage.opened == Counter(f"{shard}.index" for shard in shards(two_plans, "train"))


def test_the_rows_of_a_plan_are_read_once(two_plans: Path) -> None:
    storage = Counting(two_plans)
    snapshot = Snapshot.open(storage)
    storage.opened.clear()
    for _ in range(2):
        for header in snapshot.active:
            assert len(snapshot.plan(header).table) == header.rows
        assert {split: len(snapshot.manifest(split).utterances) for split in SPLITS} == {"train": 5, "val": 2}
    assert storage.opened == Counter(plans(two_plans))


def test_a_snapshot_is_of_the_time_when_it_was_opened(corpus: Corpus, two_plans: Path) -> None:
    snapshot = opened(two_plans)
    before = snapshot.split("train").shards, snapshot.record
    change_mouth(corpus.mouth(corpus.names["train"][0]))
    build_store(corpus, two_plans, splits=SPLITS)
    assert (snapshot.split("train").shards, snapshot.record) == before
    assert len(opened(two_plans).split("train").shards) > len(before[0])


def test_the_newest_entry_of_a_key_wins(corpus: Corpus, complete_store: Path) -> None:
    name = corpus.names["train"][0]
    change_mouth(corpus.mouth(name))
    build_store(corpus, complete_store, splits=SPLITS)
    entries = opened(complete_store).split("train")
    assert len(entries.entries) == 6 and len(entries.newest) == 5
    newest = entries.shards[int(entries.shard_of_entry[entries.newest[name]])].shard
    assert newest == shards(complete_store, "train")[-1]


def test_a_store_that_changes_while_it_is_opened_is_opened_again(corpus: Corpus, complete_store: Path) -> None:
    """An --overwrite deletes the plan that store.json has just named."""
    before = plans(complete_store)
    overwritten: list[str] = []

    def overwrite(name: str) -> None:
        if name in before and not overwritten:
            overwritten.append(name)
            build_store(corpus, complete_store, splits=SPLITS, overwrite=True, dtype="float32")

    snapshot = Snapshot.open(Counting(complete_store, overwrite), hold=False)
    assert overwritten == before
    assert list(snapshot.record.plans) == plans(complete_store) != before
    assert snapshot.identity.dtype == "float32"


def test_a_store_that_never_stops_changing_is_named(complete_store: Path) -> None:
    def touch(name: str) -> None:
        if name.startswith("plan-"):
            content = (complete_store / "store.json").read_bytes()
            Folder(complete_store).write("store.json", content)

    with pytest.raises(StoreError, match=r"changes again and again while it is opened"):
        Snapshot.open(Counting(complete_store, touch))


def test_what_was_replaced_stays_as_long_as_a_snapshot_holds_it(corpus: Corpus, complete_store: Path) -> None:
    def overwrite(dtype: str) -> None:
        build_store(corpus, complete_store, splits=SPLITS, overwrite=True, dtype=dtype)

    snapshot = Snapshot.open(Folder(complete_store))
    tars = [tar(complete_store, split) for split in SPLITS]
    overwrite("float32")
    assert all(path.exists() for path in tars)
    assert [header.name for header in opened(complete_store).retired] == list(snapshot.record.plans)
    del snapshot
    gc.collect()
    build_store(corpus, complete_store, splits=SPLITS, dtype="float32")
    assert not any(path.exists() for path in tars)
    assert opened(complete_store).retired == []


@pytest.mark.parametrize("how", ["tar gone", "tar cut", "index gone", "never written"])
@pytest.mark.parametrize("later", [False, True])
def test_a_superseded_embedding_is_never_read_in_place_of_an_unfinished_one(
    corpus: Corpus, complete_store: Path, later: bool, how: str
) -> None:
    change_mouth(corpus.mouth("tr_001"))
    if how == "never written":
        interrupt_build(corpus, complete_store, packs=0, splits=("train",))
        unfinished = shards(complete_store, "train")[-1]
        assert not (complete_store / f"{unfinished}.index").exists()
    else:
        build_store(corpus, complete_store, splits=("train",))
        unfinished = shards(complete_store, "train")[-1]
    if later:  # it is superseded in its turn
        change_mouth(corpus.mouth("tr_001"), seed=7)
        build_store(corpus, complete_store, splits=("train",))
        if how == "never written":  # then the build has written it again, and nothing is superseded
            assert len(plans(complete_store)) == 2
    path = complete_store / f"{unfinished}.{'index' if how == 'index gone' else 'tar'}"
    if how == "tar cut":
        path.write_bytes(path.read_bytes()[:-512])
    elif how != "never written":
        path.unlink()
    keys = opened(complete_store).split("train").newest
    assert ("tr_001" in keys) is later
    assert set(keys) - {"tr_001"} == set(corpus.names["train"]) - {"tr_001"}
    build_store(corpus, complete_store, splits=("train",))
    assert np.array_equal(stored(complete_store, "train")["tr_001"], quick_embedding(corpus.mouth("tr_001")))


def test_a_shard_whose_tar_is_gone_or_cut_does_not_count(
    complete_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = tar(complete_store, "train", 0), tar(complete_store, "train", 1)
    cut = first.read_bytes()[:-512]
    first.write_bytes(cut)
    second.unlink()
    entries = opened(complete_store).split("train")
    assert entries.damaged == tuple(path.stem for path in (first, second))
    assert list(entries.incomplete) == shards(complete_store, "train")
    assert len(entries.entries) == 0 and entries.complete == set()
    assert f"{first} has {len(cut):,} bytes, its index says {len(cut) + 512:,} bytes: its 3 utterances" in caplog.text
    assert f"{second} is gone" in caplog.text
    assert opened(complete_store).split("val").damaged == ()


def test_a_merged_index_of_other_shards_is_not_used(corpus: Corpus, complete_store: Path) -> None:
    index(complete_store, "train", 1).unlink()
    entries = opened(complete_store).split("train")
    assert not entries.is_merged
    assert entries.complete == {shards(complete_store, "train")[0]}
    assert entries.incomplete == [shards(complete_store, "train")[1]]


def test_a_damaged_merged_index_is_read_around(complete_store: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = opened(complete_store).split("train").entries
    (complete_store / "train.index").write_bytes(b"junk")
    assert opened(complete_store).split("train").entries.equals(before)
    assert "it is derived, so the shards' own are read instead" in caplog.text


def test_a_damaged_index_of_a_shard_is_named_with_the_cure(complete_store: Path) -> None:
    (complete_store / "train.index").unlink()
    path = index(complete_store, "train", 1)
    path.write_bytes(b"junk")
    with pytest.raises(StoreError, match=rf"^{path}: not an index of this format .*delete it and run build-shards"):
        opened(complete_store).split("train")


def test_a_plan_that_is_missing_is_named_with_the_cure(complete_store: Path) -> None:
    [name] = plans(complete_store)
    (complete_store / name).unlink()
    with pytest.raises(StoreError) as refused:
        opened(complete_store)
    assert str(refused.value) == (
        f"{complete_store / name}: is missing, and store.json names it: copy it again with the store, or make it anew "
        f"from the tars with inspect-shards {complete_store} --reindex"
    )


def test_a_plan_that_goes_after_opening_is_named_with_the_cure(complete_store: Path) -> None:
    snapshot = opened(complete_store)
    (complete_store / snapshot.active[0].name).unlink()
    with pytest.raises(StoreError, match=rf"{snapshot.active[0].name}: is missing, and store.json names it"):
        snapshot.plan(snapshot.active[0])


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_pending_plan_that_cannot_be_read_stops_builds_and_no_reader(
    corpus: Corpus, complete_store: Path, damage: str
) -> None:
    before = contents(complete_store)
    edit_record(complete_store, pending="plan-aaaaaaaaaa.parquet")
    if damage == "damaged":
        (complete_store / "plan-aaaaaaaaaa.parquet").write_bytes(b"junk")
    assert set(stored(complete_store, "train")) == set(corpus.names["train"])
    with pytest.raises(StoreError, match=r"plan-aaaaaaaaaa\.parquet: (is missing|not a plan of this).* --abandon"):
        build_store(corpus, complete_store, splits=SPLITS)
    assert abandon(Folder(complete_store), None) == "plan-aaaaaaaaaa.parquet"
    build_store(corpus, complete_store, splits=SPLITS)
    assert contents(complete_store) == before


def test_a_pending_plan_that_cannot_be_read_just_now_is_not_taken_for_lost(complete_store: Path) -> None:
    """Else its shards would be given up because of a network that was away."""
    edit_record(complete_store, pending="plan-aaaaaaaaaa.parquet")

    def away(name: str) -> None:
        if name == "plan-aaaaaaaaaa.parquet":
            raise StoreError(f"{name}: cannot be read; check the network")

    def refused(name: str) -> None:
        if name == "plan-aaaaaaaaaa.parquet":
            raise UnreadableError(name, PermissionError(13, "Permission denied", name))

    with pytest.raises(StoreError, match=r"^plan-aaaaaaaaaa\.parquet: cannot be read; check the network$"):
        Snapshot.open(Counting(complete_store, away))
    with pytest.raises(
        StoreError, match=r"plan-aaaaaaaaaa\.parquet: cannot be read \(Permission denied\), which is no damage"
    ):
        Snapshot.open(Counting(complete_store, refused))


def test_a_record_that_cannot_be_read_to_its_end_is_not_called_damaged(complete_store: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, _size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    class Failing(Folder):
        def open(self, _name: str) -> IO[bytes]:
            return Broken()

    said = (
        rf"^{complete_store}/store\.json: cannot be read \(Input/output error\), which is no damage: check the rights"
    )
    with pytest.raises(UnreadableError, match=said):
        Snapshot.open(Failing(complete_store))


def test_a_retired_plan_may_be_missing_since_it_is_being_deleted(complete_store: Path) -> None:
    edit_record(complete_store, retired={"plan-aaaaaaaaaa.parquet": "2026-01-01T00:00:00+00:00"})
    assert opened(complete_store).retired == []
    assert opened(complete_store).splits == list(SPLITS)


@pytest.mark.parametrize("damage", ["nonsense", "of another program", "renamed"])
def test_a_damaged_plan_is_named(two_plans: Path, damage: str) -> None:
    first, second = (two_plans / name for name in plans(two_plans))
    if damage == "nonsense":
        first.write_bytes(b"junk")
    elif damage == "of another program":
        pq.write_table(pa.table({"a": [1]}), first)
    else:
        second.rename(first)
    with pytest.raises(StoreError, match=rf"^{first}: not a plan of this format"):
        opened(two_plans)


def refusal(store: Path) -> str:
    """What is said of a store that cannot be opened; the same whoever opens it."""
    found = []
    for open_it in (lambda: read_record(Folder(store)), lambda: Snapshot.open(Folder(store), hold=False)):
        with pytest.raises(StoreError) as refused:
            open_it()
        found.append(str(refused.value))
    assert found[0] == found[1]
    return found[0]


def test_there_is_no_such_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == (
        f"{tmp_path / 'none'}: not a store, there is no such folder; make one with build-shards"
    )
    assert not is_store(Folder(tmp_path / "none")) and not (tmp_path / "none").exists()


def test_a_folder_without_a_record_is_no_store(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: not a store, there is no store.json in it; make one with build-shards"


def test_a_folder_with_tars_and_no_record_can_be_reindexed(complete_store: Path) -> None:
    (complete_store / "store.json").unlink()
    assert refusal(complete_store).endswith(f"inspect-shards {complete_store} --reindex makes one of its tars")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"null", b"[]", b'{"format": "iianet-shards", "version": 3}']
)
def test_a_damaged_record_is_named_with_the_cure(complete_store: Path, content: bytes) -> None:
    (complete_store / "store.json").write_bytes(content)
    said = refusal(complete_store)
    assert said.startswith(f"{complete_store / 'store.json'}: is damaged, or not the record of a store")
    assert said.endswith(
        f"put back what was there, or delete it and make it again with inspect-shards {complete_store} --reindex"
    )


def test_the_record_of_another_program_is_named(complete_store: Path) -> None:
    edit_record(complete_store, format="zarr")
    assert "not the record of a store (format 'zarr' (str); expected 'iianet-shards')" in refusal(complete_store)
    (complete_store / "store.json").write_text('{"name": "app", "version": "1.0"}')
    assert "not the record of a store (format null; expected 'iianet-shards')" in refusal(complete_store)


@pytest.mark.parametrize("version", [1, 2, 4])
def test_a_store_of_another_version_is_refused_with_the_cure(complete_store: Path, version: int) -> None:
    edit_record(complete_store, version=version)
    assert refusal(complete_store) == (
        f"{complete_store}/store.json: was written in version {version} of the format; expected 3. Stores are quick to "
        f"build again and nothing else is lost: delete {complete_store}, or choose another --shards, and run "
        "build-shards"
    )


def test_a_store_of_version_1_is_not_touched(corpus: Corpus, complete_store: Path) -> None:
    edit_record(complete_store, version=1)
    (complete_store / "plan-000.parquet").write_bytes(b"1")
    before = {path.name: path.read_bytes() for path in complete_store.iterdir()}
    with pytest.raises(StoreError, match="version 1 of the format"):
        build_store(corpus, complete_store, splits=SPLITS, overwrite=True)
    assert {path.name: path.read_bytes() for path in complete_store.iterdir()} == before


def test_the_manifest_of_a_store_is_that_of_its_corpus(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", {"train": 7})
    build_store(corpus, tmp_path / "store", splits=("train",))
    manifest = opened(tmp_path / "store").manifest("train")
    assert sorted(utterance.key for utterance in manifest.utterances) == sorted(corpus.names["train"])
    assert len(manifest.examples) == 2 * len(corpus.rows("train", "mix"))
    assert manifest.data_root == corpus.root


def test_the_manifest_may_be_of_complete_shards_alone(complete_store: Path) -> None:
    index(complete_store, "train", 1).unlink()
    snapshot = opened(complete_store)
    assert len(snapshot.manifest("train").utterances) == 5
    with index(complete_store, "train", 0).open("rb") as stream:
        rows, _ = decode_index(stream, "index")
    found = snapshot.manifest("train", complete=True)
    assert sorted(utterance.key for utterance in found.utterances) == sorted(rows["key"].to_pylist())


def test_without_a_data_root_the_manifest_asks_for_one(complete_store: Path, tmp_path: Path) -> None:
    edit_record(complete_store, data_root=None)
    with pytest.raises(StoreError, match=r"records no data_root, so its audio cannot be found; give --data_root"):
        opened(complete_store).manifest("train")
    assert opened(complete_store).manifest("train", tmp_path).data_root == tmp_path


def test_an_empty_store_has_no_splits(tmp_path: Path) -> None:
    record = StoreRecord(identity=Identity(dtype="int8", dim=1, fps=25), data_root=None, plans=())
    (tmp_path / "store.json").write_bytes(record.to_bytes())
    snapshot = opened(tmp_path)
    assert (snapshot.splits, snapshot.active, snapshot.pending) == ([], [], None)
    assert len(snapshot.split("train").entries) == 0
    assert snapshot.planned_rows("train").schema == PLAN_SCHEMA


def test_files_that_the_record_does_not_name_do_not_count(complete_store: Path) -> None:
    before = stored(complete_store, "train")
    for path in [*complete_store.glob("train-*"), *complete_store.glob("plan-*")]:
        name = path.name.replace(plans(complete_store)[0][5:15], "a" * 10)
        (complete_store / name).write_bytes(path.read_bytes())
    assert opened(complete_store).split("train").planned == tuple(shards(complete_store, "train"))
    assert stored(complete_store, "train").keys() == before.keys()
