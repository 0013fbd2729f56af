"""Locks of a folder: whoever waits for one says for whom, and not for ever; and where there are none a file says it."""

import errno
import fcntl
import logging
import os
import resource
import threading
from pathlib import Path

import pytest
from helpers.builds import build_store, contents, opened, stored
from helpers.corpus import Corpus

from iianet.errors import StoreError
from iianet.launch import Launch
from shardwriter.execute import rank_lock as rank_lock_module
from shardwriter.execute.rank_lock import rank_lock
from shardwriter.storage import lock
from shardwriter.storage.folder import Folder
from shardwriter.storage.lock import LOCK_FILE_ALONE, build_lock, open_lock, wait_for_lock

pytestmark = pytest.mark.usefixtures("quick")

RANK = Launch(number=1, world_size=2, local=1, local_size=2, job="a job, 2 ranks")


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A file system without locks."""

    def refuse(*_: object) -> None:
        number = getattr(request, "param", errno.EOPNOTSUPP)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_who_waits_for_a_lock_says_for_whom_and_ends_in_time(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "SAY_AFTER_SECONDS", 0.02)
    with open_lock(store, ".x") as held, open_lock(store, ".x") as wanted, caplog.at_level(logging.WARNING):
        wait_for_lock(held, store, 1, lambda: "nobody")
        with pytest.raises(StoreError) as raised:
            wait_for_lock(wanted, store, 0.06, lambda: "process 7 on elsewhere")
        assert str(raised.value).startswith(f"{store}: is held by process 7 on elsewhere, for more than 0 minutes.")
        assert "end it, then run the command again" in str(raised.value)
    assert caplog.messages == [f"{store}: waiting for process 7 on elsewhere, for 0 minutes at most"]


def test_who_waits_for_a_lock_gets_it_when_it_is_given_up(store: Path) -> None:
    with open_lock(store, ".x") as held, open_lock(store, ".x") as wanted:
        wait_for_lock(held, store, 1, lambda: "")
        threading.Timer(0.05, lock.release_lock, [held]).start()
        wait_for_lock(wanted, store, 20, lambda: "")


def test_a_rank_that_waits_for_another_says_for_whom(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_lock_module, "TURN_SECONDS", 0.05)
    with rank_lock(store, RANK, "") as one, rank_lock(store, RANK, "") as other, one.turn():
        (store / ".lock").write_text("rank 0 of a job: process 7 on elsewhere")
        with (
            pytest.raises(StoreError, match=rf"{store}: is held by a rank that plans or ends .*process 7 on elsewhere"),
            other.turn(),
        ):
            raise AssertionError("two have a turn")


def test_a_reader_does_not_wait_for_ever_for_a_build_that_hangs(
    complete_store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shardwriter.storage.hold.HOLD_SECONDS", 0.05)
    folder, (plan,) = Folder(complete_store), opened(complete_store).record.plans
    with folder.readers(plan) as reason, caplog.at_level(logging.INFO):
        assert reason is None
        assert folder.hold(plan) is None
    assert f"{complete_store / plan}: cannot be locked for reading" in caplog.text
    assert folder.hold(plan) is not None


@pytest.mark.parametrize("no_flock", [errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS], indirect=True)
@pytest.mark.usefixtures("no_flock")
def test_a_file_says_who_builds_where_there_are_no_locks(
    corpus: Corpus, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused = pytest.raises(StoreError, match=rf"{store}: another build is writing to it \(process {os.getpid()} on")
    with build_lock(store), refused:
        build_store(corpus, store, splits=("train",))
    build_store(corpus, store, splits=("train",))
    assert len(stored(store, "train")) == 5
    assert not (store / LOCK_FILE_ALONE).exists()
    assert f"{store}: its file system has no locks, so {LOCK_FILE_ALONE} says who builds" in caplog.text


@pytest.mark.usefixtures("no_flock")
def test_what_is_replaced_stays_where_nobody_sees_who_reads_it(corpus: Corpus, complete_store: Path) -> None:
    before = contents(complete_store)
    other = "videonet.videonet_config.seed=1"
    build_store(corpus, complete_store, other, splits=("train", "val"), overwrite=True)
    assert before.items() < contents(complete_store).items()
    assert opened(complete_store).identity.encoder["seed"] == 1


@pytest.mark.usefixtures("no_flock")
def test_the_file_that_a_killed_build_left_is_named_with_the_cure(store: Path) -> None:
    store.mkdir()
    (store / LOCK_FILE_ALONE).write_bytes(b"process 7 on elsewhere \xff since noon\n" + b"x" * 100_000)
    with pytest.raises(StoreError) as raised, build_lock(store):
        raise AssertionError("two write")
    said = str(raised.value)
    assert said.startswith(f"{store}: another build is writing to it (process 7 on elsewhere")
    assert f"if that build was killed, delete {store / LOCK_FILE_ALONE}); wait for it or" in said and len(said) < 2000
    (store / LOCK_FILE_ALONE).unlink()
    with build_lock(store):
        assert f"process {os.getpid()} on" in (store / LOCK_FILE_ALONE).read_text()
    assert not (store / LOCK_FILE_ALONE).exists()


@pytest.mark.usefixtures("no_flock")
def test_who_is_patient_waits_for_a_lock_file_too(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the ranks of a training do, of which one makes the store."""
    store.mkdir()
    alone = store / LOCK_FILE_ALONE
    alone.write_text("process 7 on elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(lock.time, "sleep", lambda _: alone.unlink())  # as the other one does when it is done
        with build_lock(store, patient=True):
            assert f"process {os.getpid()} on" in alone.read_text()
    monkeypatch.setattr(lock, "MOMENT_SECONDS", -1.0)
    alone.write_text("process 7 on elsewhere")
    with pytest.raises(StoreError) as raised, build_lock(store, patient=True):
        raise AssertionError("two write")
    said = str(raised.value)
    assert said.startswith(f"{store}: is held by process 7 on elsewhere; its file system has no locks: if that build")
    assert f"was killed, delete {alone}, for more than" in said


@pytest.mark.usefixtures("no_flock")
def test_a_lock_file_does_not_stay_where_the_disk_is_full(store: Path) -> None:
    store.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(StoreError, match="make room"), build_lock(store):
            raise AssertionError("it holds")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (store / LOCK_FILE_ALONE).exists()


@pytest.mark.usefixtures("no_flock")
def test_a_lock_file_that_is_a_link_or_a_fifo_is_not_followed(store: Path, tmp_path: Path) -> None:
    store.mkdir()
    (tmp_path / "victim").write_bytes(b"victim")
    for make in (lambda path: path.symlink_to(tmp_path / "victim"), os.mkfifo):
        make(store / LOCK_FILE_ALONE)
        with pytest.raises(StoreError, match=rf"{store}"), build_lock(store):
            raise AssertionError("it holds")
        (store / LOCK_FILE_ALONE).unlink()
    assert (tmp_path / "victim").read_bytes() == b"victim"


@pytest.mark.usefixtures("no_flock")
def test_ranks_need_locks(store: Path) -> None:
    with (
        rank_lock(store, RANK, "") as held,
        pytest.raises(StoreError, match=r"cannot be locked \(flock: Operation not supported\). Ranks need.*start one"),
        held.turn(),
    ):
        raise AssertionError("it has a turn")
