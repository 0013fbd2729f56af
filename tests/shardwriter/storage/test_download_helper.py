"""Downloads in processes that were forked from one that has used obstore, whose threads a fork does not inherit."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import xxhash
from helpers.bucket import ATTEMPTS, PREFIX, URL, bucket
from helpers.s3 import Fault, S3Server

from iianet.errors import StoreError, UnreachableError
from shardwriter.storage import download_helper
from shardwriter.storage.bucket import Bucket
from shardwriter.storage.objects import Objects

CONTENT = bytes(range(256)) * 1000
DIGEST = xxhash.xxh3_64_hexdigest(CONTENT)
TARS = [f"train-0123456789-{number:06d}.tar" for number in range(4)]

Task = Callable[[Bucket], Any]


@pytest.fixture
def server(s3: S3Server, tmp_path: Path) -> Iterator[S3Server]:
    with bucket(s3, tmp_path / "unused") as running:
        for name in (*TARS, "train.index"):
            running.write(f"{PREFIX}/{name}", CONTENT)
        running.requests.clear()
        yield running


@pytest.fixture
def storage(server: S3Server, tmp_path: Path) -> Bucket:
    """The bucket, in a process that has used obstore, and so has its threads."""
    made = Bucket(Objects(URL), tmp_path / "cache", 10**9)
    assert len(made.files()) == 5
    return made


def run_in(start: str, task: Task, storage: Bucket) -> Any:
    """Run a task in a process of its own, started by fork, spawn or forkserver. Returns what it returns or raises."""
    context: Any = multiprocessing.get_context(start)
    ours, theirs = context.Pipe()
    # The server of forkserver, once started by a test before this one, has the environment of that test.
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    process = context.Process(target=_answer, args=(theirs, environment, task, storage))
    process.start()
    theirs.close()
    try:
        assert ours.poll(40), "it hangs"
        found = ours.recv()
    finally:
        process.kill()
        process.join()
    if isinstance(found, BaseException):
        raise found
    return found


def _answer(answers: Any, environment: dict[str, str], task: Task, storage: Bucket) -> None:
    os.environ.update(environment)
    try:
        answers.send(task(storage))
    except (OSError, StoreError) as error:
        answers.send(error)


def read_tar(storage: Bucket, name: str = TARS[0], digest: str = DIGEST) -> bytes:
    descriptor = storage.open_tar(name, len(CONTENT), digest).descriptor
    try:
        return os.pread(descriptor, 2 * len(CONTENT), 0)
    finally:
        os.close(descriptor)


def read_all_tars(storage: Bucket) -> set[bytes]:
    with ThreadPoolExecutor(len(TARS)) as pool:
        return set(pool.map(lambda name: read_tar(storage, name), TARS))


def read_index(storage: Bucket) -> bytes:
    with storage.open("train.index") as stream:
        return stream.read()


def read_here_and_in_a_fork(storage: Bucket) -> list[bytes]:
    return [read_tar(storage, TARS[0]), run_in("fork", read_second_tar, storage), read_tar(storage, TARS[2])]


def read_second_tar(storage: Bucket) -> bytes:
    return read_tar(storage, TARS[1])


def read_something_else(storage: Bucket) -> bytes:
    return read_tar(storage, digest="0123456789abcdef")


def read_missing_tar(storage: Bucket) -> bytes:
    return read_tar(storage, "train-0123456789-000009.tar")


def read_despite_the_end_of_the_helper(storage: Bucket) -> tuple[str, bytes]:
    read_tar(storage, TARS[0])
    assert download_helper._process is not None
    download_helper._process.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_tar, storage, TARS[1])
        time.sleep(0.2)
        download_helper._process.kill()
        said = str(reading.exception())
    download_helper._process.wait()
    return said, read_tar(storage, TARS[1])


def read_from_a_helper_that_hangs(storage: Bucket) -> str:
    read_tar(storage, TARS[0])
    assert download_helper._process is not None
    download_helper._process.send_signal(signal.SIGSTOP)
    download_helper.LONGEST_SECONDS = 0.1
    with pytest.raises(StoreError) as raised:
        read_tar(storage, TARS[1])
    return str(raised.value)


def has_helper(storage: Bucket) -> bool:
    read_tar(storage)
    return download_helper._process is not None


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("task", [read_tar, read_all_tars, read_index])
def test_processes_of_any_kind_download(start: str, task: Task, storage: Bucket) -> None:
    found = run_in(start, task, storage)
    assert found in (CONTENT, {CONTENT})


def test_only_forked_processes_start_a_helper(storage: Bucket) -> None:
    assert not has_helper(storage)
    assert not run_in("spawn", has_helper, storage)
    storage.forget(TARS[0], DIGEST)
    assert run_in("fork", has_helper, storage)


def test_a_fork_of_a_fork_downloads_too(storage: Bucket) -> None:
    assert run_in("fork", read_here_and_in_a_fork, storage) == [CONTENT] * 3


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_what_is_wrong_with_an_object_is_said_as_elsewhere(start: str, storage: Bucket) -> None:
    with pytest.raises(StoreError, match=rf"{URL}/{TARS[0]}: its digest is {DIGEST}, its index says 0123456789abcdef"):
        run_in(start, read_something_else, storage)
    with pytest.raises(StoreError, match=rf"{URL}/train-0123456789-000009\.tar: is gone"):
        run_in(start, read_missing_tar, storage)


@pytest.mark.parametrize("fault", ["500", "cut", "close"])
def test_faults_that_pass_are_not_noticed(fault: Fault, server: S3Server, storage: Bucket) -> None:
    server.fail("GET", TARS[0], fault, times=2)
    assert run_in("fork", read_tar, storage) == CONTENT
    assert not [rule for rule in server.rules if rule.times]


def test_faults_that_last_name_the_object(server: S3Server, storage: Bucket) -> None:
    server.fail("GET", TARS[0], "500", times=100)
    with pytest.raises(StoreError, match=rf"{URL}/{TARS[0]}: cannot be read after 5 attempts .*500") as raised:
        run_in("fork", read_tar, storage)
    assert "testing-secret" not in str(raised.value)
    assert ATTEMPTS != 5  # it waits as the product does, and not as this process


@pytest.mark.parametrize("fault", ["500", "403"])
def test_what_cannot_be_reached_may_be_whole_also_for_forked_processes(
    fault: Fault, server: S3Server, storage: Bucket
) -> None:
    server.fail("GET", TARS[0], fault, times=100)
    with pytest.raises(UnreachableError, match=rf"{URL}/{TARS[0]}: cannot be read"):
        run_in("fork", read_tar, storage)


def test_a_helper_that_dies_is_named_and_the_next_download_starts_another(storage: Bucket) -> None:
    said, found = run_in("fork", read_despite_the_end_of_the_helper, storage)
    assert f"{URL}/{TARS[1]}: the process that downloads has ended" in said
    assert found == CONTENT


def test_a_helper_that_takes_no_requests_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = subprocess.Popen(
        ["sh", "-c", "exec 0<&-; echo; exec sleep 60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert deaf.stdout is not None and deaf.stdout.readline() == b"\n"
        monkeypatch.setattr(download_helper, "_process", deaf)
        said = rf"^{URL}/train\.index: the process that downloads has ended \(.*Broken pipe\); start again$"
        with pytest.raises(UnreachableError, match=said):
            download_helper.download_in_helper(URL, "train.index", tmp_path / "copy", size=None, digest=None)
    finally:
        deaf.kill()
        deaf.communicate()


def test_nobody_waits_for_ever_for_a_helper_that_hangs(storage: Bucket) -> None:
    said = run_in("fork", read_from_a_helper_that_hangs, storage)
    assert f"{URL}/{TARS[1]}: the process that downloads has ended" in said


def test_a_helper_ends_with_the_process_that_it_serves(storage: Bucket) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        read_tar(storage)
        assert download_helper._process is not None
        os.write(writing, str(download_helper._process.pid).encode())
        time.sleep(60)
        os._exit(0)
    os.close(writing)
    helper = int(os.read(reading, 20))
    os.close(reading)
    assert _is_running(helper)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    end = time.monotonic() + 20
    while _is_running(helper):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_helper_is_quick_to_start() -> None:
    """It loads neither torch nor what needs it."""
    code = "import shardwriter.storage.objects, sys; print({'torch', 'webdataset'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
