"""What every storage promises, and that a store is the same in all of them."""

import os
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import xxhash
from helpers.bucket import URL, bucket
from helpers.builds import CPU, change_mouth
from helpers.corpus import Corpus
from helpers.memory_storage import MemoryStorage
from helpers.s3 import S3Server

from iianet.errors import StoreError
from loaders.reader import StoreReader
from shardwriter.build.build import build
from shardwriter.build.compact import Compaction
from shardwriter.build.options import BuildOptions
from shardwriter.execute.executor import OneProcess
from shardwriter.execute.operation import run_operation
from shardwriter.storage.folder import Folder
from shardwriter.storage.locate import Cache, open_storage
from shardwriter.storage.storage import Storage
from shardwriter.store.snapshot import Snapshot

KINDS = ("folder", "bucket", "memory")
SPLITS = ("train", "val")
INDEX, TAR = "train-0123456789-000000.index", "train-0123456789-000000.tar"
PLAN = "plan-0123456789.parquet"
CONTENT = bytes(range(256)) * 40
DIGEST = xxhash.xxh3_64_hexdigest(CONTENT)


class Place(NamedTuple):
    """A place for a store.

    Attributes:
        kind: One of `KINDS`.
        storage: The storage.
        another: Makes another storage of the same place, as another machine or process has it.
    """

    kind: str
    storage: Storage
    another: Callable[[], Storage]


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with make_place(request, request.param, tmp_path) as made:
        yield made


@pytest.fixture
def storage(place: Place) -> Storage:
    return place.storage


@contextmanager
def make_place(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Iterator[Place]:
    if kind == "folder":
        yield Place(kind, Folder(tmp_path / "store"), lambda: Folder(tmp_path / "store"))
    elif kind == "memory":
        yield Place(kind, MemoryStorage(tmp_path / "memory"), lambda: MemoryStorage(tmp_path / "memory"))
    else:
        server: S3Server = request.getfixturevalue("s3")
        with bucket(server, tmp_path / "cache"):
            caches = (Cache.at(tmp_path / f"machine{number}") for number in range(10))
            yield Place(kind, open_storage(URL, next(caches)), lambda: open_storage(URL, next(caches)))


def read(storage: Storage, name: str) -> bytes:
    with storage.open(name) as stream:
        return stream.read()


def stage(storage: Storage, content: bytes) -> Path:
    """A file that is written and not published yet."""
    path = storage.staging / ".tmp-shard"
    path.write_bytes(content)
    return path


def publish(storage: Storage, **files: bytes) -> None:
    with storage.write_lock():
        for name, content in files.items():
            storage.publish([(stage(storage, content), name)])


def read_tar(storage: Storage, name: str = TAR, content: bytes = CONTENT) -> bytes:
    descriptor = storage.open_tar(name, len(content), xxhash.xxh3_64_hexdigest(content)).descriptor
    try:
        return os.pread(descriptor, 2 * len(content) + 1, 0)
    finally:
        os.close(descriptor)


def test_an_empty_place_holds_nothing(storage: Storage) -> None:
    assert storage.files() == {}
    assert storage.version("store.json") is None
    with pytest.raises(FileNotFoundError):
        storage.open("store.json")
    storage.prefetch(["store.json"])
    storage.delete(["store.json"])
    assert storage.num_uploads >= 0 and storage.num_downloads >= 1 and storage.keep_replaced_days >= 0
    free = storage.free_bytes()
    assert free is None or free > 0


def test_files_are_listed_and_read_as_they_were_written(place: Place) -> None:
    with place.storage.write_lock():
        place.storage.write("store.json", b"{}")
        place.storage.write("README.md", b"")
    for storage in (place.storage, place.another()):
        found = storage.files()
        assert {name: listed.size for name, listed in found.items()} == {"store.json": 2, "README.md": 0}
        assert {name: listed.version for name, listed in found.items()} == {
            name: storage.version(name) for name in found
        }
        storage.prefetch([*found, "gone.index"])
        assert (read(storage, "store.json"), read(storage, "README.md")) == (b"{}", b"")
        assert storage.exists()
        assert storage.where("README.md") == f"{storage.name}/README.md"


def test_a_file_that_is_written_again_is_read_anew_and_has_another_version(place: Place) -> None:
    other = place.another()
    versions = []
    for content in (b"first", b"other", b"third"):
        with place.storage.write_lock():
            place.storage.write("train.index", content)
        for storage in (place.storage, other):
            storage.files()
            assert read(storage, "train.index") == content
            assert storage.files()["train.index"].version == storage.version("train.index")
        versions.append(other.version("train.index"))
    assert len(set(versions)) == 3


def test_what_is_published_has_its_name_whole_and_is_no_longer_staged(place: Place) -> None:
    with place.storage.write_lock():
        tar, index = stage(place.storage, CONTENT), place.storage.staging / ".tmp-index"
        index.write_bytes(b"index")
        place.storage.publish([(tar, TAR), (index, INDEX)])
        assert not tar.exists() and not index.exists()
    for storage in (place.storage, place.another()):
        assert {name: listed.size for name, listed in storage.files().items()} == {TAR: len(CONTENT), INDEX: 5}
        assert read(storage, INDEX) == b"index"
        assert read_tar(storage) == CONTENT


def test_what_is_staged_and_not_published_is_not_listed(place: Place) -> None:
    with place.storage.write_lock():
        stage(place.storage, CONTENT)
        assert place.storage.files() == {}
        assert place.another().files() == {}


def test_a_published_file_takes_the_place_of_an_earlier_one(place: Place) -> None:
    publish(place.storage, **{TAR: b"earlier"})
    publish(place.storage, **{TAR: CONTENT})
    assert read_tar(place.another()) == CONTENT


def test_nothing_is_left_to_be_published_after_a_build_that_ended_well(storage: Storage) -> None:
    publish(storage, **{TAR: CONTENT, INDEX: b"index"})
    with storage.write_lock():
        storage.files()
        assert storage.publish_staged(lambda _: True) == []
    assert set(storage.files()) == {TAR, INDEX}


def test_a_tar_is_forgotten_if_it_is_a_copy_and_can_be_opened_again(place: Place) -> None:
    publish(place.storage, **{TAR: CONTENT})
    storage = place.another()
    descriptor = storage.open_tar(TAR, len(CONTENT), DIGEST).descriptor
    assert storage.is_kept(TAR, DIGEST)
    is_copy = storage.forget(TAR, DIGEST)
    assert storage.is_kept(TAR, DIGEST) is not is_copy
    assert os.pread(descriptor, len(CONTENT), 0) == CONTENT  # whoever has it open reads on
    os.close(descriptor)
    assert read_tar(storage) == CONTENT
    assert storage.is_kept(TAR, DIGEST)
    assert TAR in storage.files()


def test_a_tar_that_is_not_there_is_named(storage: Storage) -> None:
    storage.files()
    with pytest.raises((OSError, StoreError), match=TAR):
        storage.open_tar(TAR, len(CONTENT), DIGEST)


def test_deleted_files_are_gone_and_others_stay(place: Place) -> None:
    publish(place.storage, **{TAR: CONTENT, INDEX: b"index"})
    with place.storage.write_lock():
        place.storage.files()
        place.storage.delete([TAR, "gone.tar"])
        place.storage.delete([TAR])
        place.storage.delete([])
    for storage in (place.storage, place.another()):
        assert set(storage.files()) == {INDEX}
        assert storage.version(TAR) is None
        assert read(storage, INDEX) == b"index"


def test_only_the_present_version_is_replaced_by_a_commit(place: Place) -> None:
    storage, other = place.storage, place.another()
    with storage.write_lock():
        first = storage.commit("store.json", b"first", None)
        with pytest.raises(StoreError, match=r"store\.json"):
            other.commit("store.json", b"other", None)
        second = storage.commit("store.json", b"second", first)
        for version in (None, first):
            with pytest.raises(StoreError, match=r"store\.json"):
                other.commit("store.json", b"other", version)
        assert len({first, second}) == 2
        assert storage.version("store.json") == storage.files()["store.json"].version == second
        assert read(storage, "store.json") == b"second"
        storage.delete(["store.json"])
        with pytest.raises(StoreError, match=r"store\.json"):
            storage.commit("store.json", b"third", second)
    assert place.another().files() == {}


def test_a_second_writer_is_refused_and_the_first_is_named(place: Place) -> None:
    with (
        place.storage.write_lock(),
        pytest.raises(StoreError, match=rf"another build is writing to it \(process {os.getpid()}"),
        place.another().write_lock(),
    ):
        raise AssertionError("two write")
    with place.another().write_lock(), pytest.raises(StoreError), place.storage.write_lock():
        raise AssertionError("two write")
    with pytest.raises(KeyError), place.storage.write_lock():
        raise KeyError
    with place.storage.write_lock():
        assert place.storage.staging.is_dir()
    assert place.storage.files() == {}


@pytest.mark.parametrize("place", ["folder", "memory"], indirect=True)  # those that ranks of one job can share
def test_a_patient_writer_waits_for_the_first(place: Place) -> None:
    events: list[str] = []

    def write() -> None:
        with place.another().write_lock(patient=True):
            events.append("second")

    thread = threading.Thread(target=write)
    with place.storage.write_lock():
        thread.start()
        thread.join(0.2)
        events.append("first")
    thread.join()
    assert events == ["first", "second"]


def test_a_plan_has_readers_as_long_as_one_of_them_lives(place: Place) -> None:
    publish(place.storage, **{PLAN: b"plan", "plan-aaaaaaaaaa.parquet": b"other"})
    hold, more = place.another().hold(PLAN), place.another().hold(PLAN)
    is_seen = hold is not None

    def is_read(name: str) -> bool:
        with place.storage.readers(name) as reason:
            return reason is not None

    sent = pickle.loads(pickle.dumps(hold))
    del sent  # a copy in another process, which ends
    assert is_read(PLAN) is is_seen
    del more
    assert is_read(PLAN) is is_seen
    assert not is_read("plan-aaaaaaaaaa.parquet")
    del hold
    assert not is_read(PLAN)
    assert not is_read("plan-gone")


def test_a_copy_that_was_sent_to_another_process_is_the_same_place(place: Place) -> None:
    publish(place.storage, **{TAR: CONTENT})
    with place.storage.write_lock():
        place.storage.files()
        copy: Storage = pickle.loads(pickle.dumps(place.storage))
        assert (copy.name, copy.where(TAR)) == (place.storage.name, place.storage.where(TAR))
        assert read_tar(copy) == CONTENT
        copy.publish([(stage(copy, b"index"), INDEX)])  # as processes that encode do
        assert set(place.storage.files()) == {TAR, INDEX}
        assert read(place.storage, INDEX) == b"index"


def test_a_storage_is_the_same_for_processes_with_another_working_directory(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(place.storage, **{INDEX: b"index"})
    monkeypatch.chdir(tmp_path)
    near: Storage = Folder(Path("store")) if place.kind == "folder" else place.storage
    everywhere = near.absolute()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert read(everywhere, INDEX) == b"index"


def build_and_compact(corpus: Corpus, storage: Storage) -> dict[str, bytes]:
    """Build a store in two parts with a change between them, and compact it. Returns all its files."""
    options = BuildOptions(device=CPU, splits=SPLITS)
    build(corpus.config("shardwriter.utterances_per_shard=2"), storage, replace(options, limit=3))
    change_mouth(corpus.mouth(Snapshot.open(storage).split("train").entries["key"][0].as_py()))
    build(corpus.config("shardwriter.keep_replaced_days=0"), storage, options)
    before = Snapshot.open(storage)
    assert len(before.active) == 2
    assert len(before.split("train").entries) > len(before.split("train").newest_rows) == 5
    embeddings = read_all(before)
    del before  # which holds what it has opened
    compaction = Compaction(storage=storage, utterances_per_shard=3, keep_replaced_days=0)
    run_operation(compaction, storage, OneProcess(CPU))
    assert compaction.report is not None and compaction.report.superseded == 1
    after = Snapshot.open(storage)
    assert [header.kind for header in after.active] == ["compact"]
    assert read_all(after) == embeddings
    return {name: read(storage, name) for name in storage.files()}


def read_all(snapshot: Snapshot) -> dict[str, bytes]:
    reader = StoreReader([snapshot], "train")
    return {reader.key(row): reader.read(row).tobytes() for row in range(len(reader))}


@pytest.mark.usefixtures("quick")
def test_a_store_has_the_same_files_in_every_place(
    request: pytest.FixtureRequest, corpus: Corpus, tmp_path: Path
) -> None:
    found: dict[str, dict[str, bytes]] = {}
    shutil.copytree(corpus.root, tmp_path / "original")  # with the times of the files
    for kind in KINDS:
        shutil.copytree(tmp_path / "original", corpus.root, dirs_exist_ok=True)
        with make_place(request, kind, tmp_path) as place:
            found[kind] = build_and_compact(corpus, place.storage)
    folder = found["folder"]
    assert len([name for name in folder if name.endswith(".tar")]) == 3
    for kind in KINDS:
        assert found[kind].keys() == folder.keys(), kind
        assert [name for name in folder if found[kind][name] != folder[name]] == [], kind


@pytest.mark.parametrize("forgotten", ["open", "open_tar", "publish", "delete", "commit", "files", "version", "write"])
def test_a_backend_that_forgets_a_method_cannot_be_made(forgotten: str) -> None:
    """What it inherited would lose data without a word."""
    own = {
        name: value for name, value in vars(MemoryStorage).items() if name not in (forgotten, "__dict__", "__weakref__")
    }
    forgetful = type("Forgetful", (Storage,), own)
    with pytest.raises(TypeError, match=f"Forgetful.*abstract method '?{forgotten}"):
        forgetful()
