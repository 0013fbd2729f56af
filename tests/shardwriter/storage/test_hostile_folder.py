"""A folder that somebody else has prepared: nothing outside of it is opened, written or deleted, and nothing hangs."""

import os
import resource
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from helpers.builds import CPU, Run, build_store, opened
from helpers.corpus import Corpus
from helpers.rights import rights_that_count

from iianet.errors import StoreError
from iianet.launch import Launch
from shardwriter.build.build import prepare
from shardwriter.build.options import BuildOptions
from shardwriter.execute.executor import OneProcess
from shardwriter.execute.rank_lock import SharedTasks
from shardwriter.execute.ranks import run_as_rank
from shardwriter.format.files import atomic_file, delete_dead_temporary_files, delete_temporary_files, temporary_path
from shardwriter.format.plan import PLAN_SCHEMA, ShardTask
from shardwriter.storage.bucket import Bucket
from shardwriter.storage.folder import Folder
from shardwriter.storage.lock import build_lock
from shardwriter.storage.objects import Objects

pytestmark = pytest.mark.usefixtures("quick")

VICTIM = b"not of the store"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file outside of the store."""
    path = tmp_path / "victim"
    path.write_bytes(VICTIM)
    return path


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail where the block takes longer; what hangs in the system is interrupted."""

    def fail(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"hangs for {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def build_as_rank(corpus: Corpus, store: Path) -> None:
    made = prepare(corpus.config(), Folder(store), BuildOptions(device=CPU, splits=("train",)))
    run_as_rank(
        made, Folder(store), OneProcess(CPU), Launch(number=0, world_size=2, local=0, local_size=2, job="job, 2 ranks")
    )


def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_stays(corpus: Corpus, store: Path, victim: Path) -> None:
    store.mkdir()
    (store / ".lock").symlink_to(victim)
    with pytest.raises(StoreError) as raised:
        build_store(corpus, store, splits=("train",))
    assert str(raised.value).startswith(f"{store}/.lock: cannot be written (it is a link, expected a regular file); ")
    assert "delete it" in str(raised.value)
    assert victim.read_bytes() == VICTIM


@pytest.mark.parametrize("name", [".lock", ".job"])
def test_ranks_refuse_locks_that_are_links(name: str, corpus: Corpus, store: Path, victim: Path) -> None:
    store.mkdir()
    (store / name).symlink_to(victim)
    with pytest.raises(StoreError, match=rf"{store}/{name}: cannot be written \(it is a link, .*delete it"):
        build_as_rank(corpus, store)
    assert victim.read_bytes() == VICTIM


def test_ranks_make_no_files_where_a_link_leads(corpus: Corpus, store: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    store.mkdir()
    task = ShardTask(shard="train-0123456789-000000", split="train", rows=PLAN_SCHEMA.empty_table())
    (store / ".tasks").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="it is a link, expected a folder"):
        list(SharedTasks(Folder(store), [task], (0, 1)))
    with pytest.raises(StoreError, match=rf"{store}/.tasks: cannot be written \(it is a link, expected a folder"):
        build_as_rank(corpus, store)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_logs_are_not_written_where_a_link_leads(run: Run, store: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    store.mkdir()
    (store / "logs").symlink_to(tmp_path / "elsewhere")
    outcome = run("--data_split", "train")
    assert outcome.code == 2
    assert f"{store}/logs: cannot be written (it is a link, expected a folder: delete it); " in outcome.err
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", [".lock", ".job", "logs", "store.json"])
def test_nothing_waits_for_a_fifo_with_a_name_of_ours(name: str, run: Run, store: Path) -> None:
    store.mkdir()
    os.mkfifo(store / name)
    os.environ.update(RANK="0", WORLD_SIZE="2")
    try:
        with within(20):
            outcome = run("--data_split", "train")
    finally:
        del os.environ["RANK"], os.environ["WORLD_SIZE"]
    assert outcome.code == 2
    assert f"{store}/{name}: " in outcome.err


@pytest.mark.parametrize(
    "pattern", ["store.json", "plan-*", "train.index", "train-*.index", "train-*.tar", "README.md"]
)
def test_nothing_waits_for_a_fifo_in_the_place_of_a_file(
    pattern: str, corpus: Corpus, complete_store: Path, run: Run
) -> None:
    path = next(complete_store.glob(pattern))
    path.unlink()
    os.mkfifo(path)
    with within(20):
        assert run("--data_split", "train").code in (0, 2)
    with within(20):
        try:
            opened(complete_store).split("train")
        except StoreError as error:
            assert path.name in str(error)


def test_a_folder_with_the_name_of_a_file_of_ours_is_named(run: Run, complete_store: Path) -> None:
    (complete_store / ".lock").unlink()
    (complete_store / ".lock").mkdir()
    outcome = run("--data_split", "train")
    assert outcome.code == 2
    assert f"{complete_store}/.lock: cannot be written (Is a directory); " in outcome.err


def test_a_disk_that_is_full_from_the_beginning_is_named(corpus: Corpus, store: Path) -> None:
    """Whatever refuses the few bytes that say who builds, and not again when the file is closed."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(
            StoreError, match=rf"{store}: cannot be written \(File too large\)\. Every published.*make room"
        ) as raised:
            build_store(corpus, store, splits=("train",))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(raised.value.__cause__, OSError)
    assert [path.name for path in store.iterdir()] == [".lock"]


def test_a_huge_or_odd_lock_file_is_shown_in_part(store: Path, corpus: Corpus) -> None:
    with build_lock(store):
        (store / ".lock").write_bytes(b"\xff" + b"x" * 1_000_000)
        with pytest.raises(StoreError, match="another build is writing to it") as raised:
            build_store(corpus, store, splits=("train",))
    assert len(str(raised.value)) < 2000


@pytest.mark.parametrize("name", ["../victim", "sub/victim", "..", ".", "", "a\0b"])
def test_no_name_leads_out_of_a_store(name: str, tmp_path: Path, victim: Path) -> None:
    """Whatever a plan or an index says."""
    store = tmp_path / "store"
    (store / "sub").mkdir(parents=True)
    (store / "sub" / "victim").write_bytes(VICTIM)
    folder, bucket = Folder(store), Bucket(Objects("s3://bucket/lrs2"), tmp_path / "cache", 1)
    staged = store / "staged"
    staged.write_bytes(b"other")
    for step in (
        lambda: folder.delete([name]),
        lambda: folder.write(name, b"other"),
        lambda: folder.publish([(staged, name)]),
        lambda: folder.commit(name, b"other", None),
        lambda: folder.open(name),
        lambda: folder.open_tar(name, 5, "0" * 16),
        lambda: folder.version(name),
        lambda: folder.hold(name),
        lambda: folder.readers(name),
        lambda: bucket.forget(f"{name}/x", "0" * 16),
        lambda: bucket.forget("x", f"../{name}/"),
    ):
        with pytest.raises(StoreError, match=r"names a file .*, which is not in the store; expected a name without"):
            step()
    assert victim.read_bytes() == (store / "sub" / "victim").read_bytes() == VICTIM


def test_a_temporary_file_is_never_written_through_a_link(
    store: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.mkdir()
    assert len({temporary_path(store / "store.json") for _ in range(100)}) == 100
    monkeypatch.setattr(secrets, "token_hex", lambda _: "0" * 16)
    temporary_path(store / "store.json").symlink_to(victim)
    with pytest.raises(FileExistsError), atomic_file(store / "store.json") as stream:
        stream.write(b"other")
    assert victim.read_bytes() == VICTIM


def test_only_temporary_files_of_ours_are_deleted(tmp_path: Path) -> None:
    """Those of this process while a build holds the folder, and of dead ones in a cache."""
    own = temporary_path(tmp_path / "train.index")
    host, pid = os.uname().nodename, os.getpid()
    dead = tmp_path / own.name.replace(f"-{pid}-", f"-{2**22 + 1}-")
    far = tmp_path / own.name.replace(f"-{host}-", "-elsewhere-")
    others = [".tmp-", ".tmp-x", ".tmp-download-1234-5", f".tmp-a-{host}-{2**22 + 1}-0", f"{own.name}.part", "tmp"]
    folder = tmp_path / own.name.replace("train", "folder")
    folder.mkdir()
    for path in (own, dead, far, *(tmp_path / name for name in others)):
        path.touch()
    huge = tmp_path / own.name.replace(f"-{pid}-", f"-{'9' * 30}-")
    huge.touch()
    delete_dead_temporary_files(tmp_path / "gone")
    delete_dead_temporary_files(tmp_path)
    assert [path.exists() for path in (own, dead, far, huge)] == [True, False, True, False]
    delete_temporary_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*others, folder.name}


@pytest.mark.parametrize("mode", [0o000, 0o600, 0o300])
def test_a_folder_that_may_not_be_read_is_named_with_the_cure(mode: int, complete_store: Path, run: Run) -> None:
    complete_store.chmod(mode)
    try:
        with rights_that_count():
            with pytest.raises(
                StoreError, match=rf"{complete_store}.*: cannot be read \(Permission denied\)"
            ) as raised:
                opened(complete_store)
            outcome = run("--data_split", "train")
    finally:
        complete_store.chmod(0o700)
    assert "check the rights of the file and of its folders" in str(raised.value)
    assert "Delete" not in str(raised.value) and "delete" not in str(raised.value)
    assert outcome.code == 2 and "(Permission denied)" in outcome.err


def test_links_of_others_that_lead_nowhere_are_in_nobodys_way(complete_store: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o000)
    (complete_store / "loop").symlink_to("loop")
    (complete_store / "gone").symlink_to("nowhere")
    (complete_store / "closed").symlink_to(tmp_path / "closed" / "file")
    with rights_that_count():
        assert not {"loop", "gone", "closed"} & set(opened(complete_store).files)


def test_a_folder_below_one_that_may_not_be_entered_is_named(tmp_path: Path, run: Run) -> None:
    (tmp_path / "closed").mkdir(mode=0o600)
    with rights_that_count():
        outcome = run("--data_split", "train", "--shards", tmp_path / "closed" / "store")
    assert outcome.code == 2
    assert f"{tmp_path}/closed/store" in outcome.err and "Permission denied" in outcome.err


@pytest.mark.parametrize("pattern", ["store.json", "plan-*", "train-*.index"])
def test_a_file_that_may_not_be_read_is_not_taken_for_damaged(pattern: str, complete_store: Path, run: Run) -> None:
    (complete_store / "train.index").unlink()
    path = next(complete_store.glob(pattern))
    path.chmod(0o000)
    with rights_that_count():
        with pytest.raises(StoreError, match=rf"{path}: cannot be read \(Permission denied\)") as raised:
            opened(complete_store).split("train")
        outcome = run("--data_split", "train")
    assert "elete" not in str(raised.value) and "check the rights" in str(raised.value)
    assert outcome.code == 2 and f"{path}: cannot be read" in outcome.err
    assert path.exists()


def test_a_file_where_a_folder_should_be_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = Folder(tmp_path / "file" / "store")
    assert below.files() == {} and below.version("store.json") is None and not below.exists()
    with pytest.raises(StoreError, match=rf"^{below.name}: not a store, there is no such folder; make one"):
        opened(below.path)
