"""One build at a time writes to a bucket: who holds it, who may take it over, and who must stop."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.bucket import PREFIX, URL, bucket
from helpers.commands import Outcome, run_main
from helpers.corpus import Corpus
from helpers.s3 import BUCKET, Fault, Rule, S3Server

from iianet.errors import StoreError
from shardwriter import build_cli
from shardwriter.storage import lease as lease_module
from shardwriter.storage import objects as objects_module
from shardwriter.storage.lease import DEAD_AFTER_SECONDS, LEASE_FILE, LOST_AFTER_SECONDS, held_lease, is_dead
from shardwriter.storage.objects import Objects

LEASE = f"{PREFIX}/{LEASE_FILE}"
ELSEWHERE = {"holder": "process 77 on elsewhere since noon", "system": "elsewhere-1", "pid": 77, "id": "abc"}
DEAD = 2**22 + 1
"""Above the highest process number."""

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def server(s3: S3Server, tmp_path: Path) -> Iterator[S3Server]:
    with bucket(s3, tmp_path / "cache") as running:
        yield running


@pytest.fixture
def objects(server: S3Server) -> Objects:
    return Objects(URL)


@pytest.fixture
def build(corpus: Corpus, server: S3Server, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    words = ["--conf_dir", corpus.config_file, "--shards", URL, "--data_split", "train"]
    return lambda *flags: run_main(build_cli.main, [*words, *flags], capsys)


def write_lease(server: S3Server, **facts: object) -> bytes:
    """Put the lease of another build into the bucket."""
    content = json.dumps({**ELSEWHERE, **facts}).encode()
    server.write(LEASE, content)
    return content


def test_a_second_build_refuses_and_names_the_first(build: Callable[..., Outcome], server: S3Server) -> None:
    content = write_lease(server)
    outcome = build()
    assert outcome.code == 2
    assert "another build is writing to it (process 77 on elsewhere since noon)" in outcome.err
    assert server.names(PREFIX) == [LEASE_FILE]  # and nothing is left of looking how old it is
    assert server.read(LEASE) == content


def test_a_build_of_this_process_is_named_to_the_next(objects: Objects, server: S3Server) -> None:
    with (
        held_lease(objects),
        pytest.raises(StoreError, match=rf"another build is writing to it \(process {os.getpid()} on "),
        held_lease(objects),
    ):
        raise AssertionError("two hold it")
    assert server.names(PREFIX) == []


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_over_at_once(objects: Objects, server: S3Server) -> None:
    write_lease(server, system=lease_module.this_system(), pid=DEAD)
    with held_lease(objects) as lease:
        lease.check()
        assert json.loads(server.read(LEASE))["pid"] == os.getpid()
    assert server.names(PREFIX) == []


def test_a_lease_that_is_longer_than_any_document_is_not_parsed(
    objects: Objects, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardwriter.format.document.MOST_BYTES", 1000)
    write_lease(server, system=lease_module.this_system(), pid=DEAD, more="x" * 1000)
    with (
        pytest.raises(StoreError, match=r"another build is writing to it \(it has just started\)"),
        held_lease(objects),
    ):
        raise AssertionError("two hold it")


def test_a_lease_that_ends_while_it_is_looked_at_is_in_nobodys_way(
    objects: Objects, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lease(server)

    def end_first(self: Objects, name: str) -> float:
        self.delete([name])
        raise FileNotFoundError(name)

    monkeypatch.setattr(Objects, "age", end_first)
    with held_lease(objects):
        assert json.loads(server.read(LEASE))["pid"] == os.getpid()


def test_the_lease_of_another_machine_is_taken_over_when_it_is_old(
    objects: Objects, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lease(server)
    time.sleep(2.1)  # the server's clock has whole seconds
    monkeypatch.setattr(lease_module, "DEAD_AFTER_SECONDS", 1.0)
    with held_lease(objects) as lease:
        lease.check()
        assert json.loads(server.read(LEASE))["pid"] == os.getpid()


def test_leases_of_the_dead_do_not_count() -> None:
    here = {"system": lease_module.this_system()}
    assert is_dead({**here, "pid": DEAD}, 0)
    assert not is_dead({**here, "pid": 1}, DEAD_AFTER_SECONDS)
    assert is_dead({**here, "pid": 1}, DEAD_AFTER_SECONDS + 1)  # the number of another process by now
    assert not is_dead({"system": os.uname().nodename, "pid": DEAD}, 0)  # of another container, of the same name
    assert not is_dead({"system": "far", "pid": 1}, DEAD_AFTER_SECONDS)
    assert is_dead({"system": "far", "pid": 1}, DEAD_AFTER_SECONDS + 1)


def test_a_write_that_is_tried_again_and_again_ends_before_another_build_may_begin() -> None:
    longest = objects_module.LONGEST_RETRY + objects_module.READ_TIMEOUT  # of the last attempt
    assert LOST_AFTER_SECONDS + longest.total_seconds() <= DEAD_AFTER_SECONDS


@pytest.mark.parametrize("content", [b"", b"no json", b"[" * 100_000, b'["a list"]'])
def test_a_lease_that_cannot_be_read_counts(content: bytes, objects: Objects, server: S3Server) -> None:
    server.write(LEASE, content)
    with pytest.raises(StoreError, match="another build is writing to it"), held_lease(objects):
        raise AssertionError("it was taken over")
    assert server.read(LEASE) == content


def test_a_lease_is_renewed_while_a_build_runs(
    objects: Objects, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "RENEWAL_SECONDS", 0.01)
    with held_lease(objects) as lease:
        wait_until(lambda: server.requests.count(("PUT", f"/{BUCKET}/{LEASE}")) > 2)
        lease.check()
    assert server.names(PREFIX) == []


@pytest.mark.parametrize("fault", ["500 afterwards", "close afterwards"])
def test_a_renewal_whose_answer_is_lost_is_one(fault: Fault, objects: Objects, server: S3Server) -> None:
    with held_lease(objects) as lease:
        server.fail("PUT", LEASE_FILE, fault)
        lease.renew()
        lease.check()
    assert server.names(PREFIX) == []


def test_a_build_whose_lease_was_deleted_writes_no_more(
    objects: Objects, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "RENEWAL_SECONDS", 0)
    with held_lease(objects) as lease:
        server.delete(LEASE)
        lease.keep(threading.Event())  # ends, since it finds none
        assert server.names(PREFIX) == []
        with pytest.raises(StoreError, match="the lease of this build was deleted or taken over, so another build may"):
            lease.check()


def test_a_build_does_not_delete_the_lease_that_took_the_place_of_its_own(objects: Objects, server: S3Server) -> None:
    with held_lease(objects) as lease:
        content = write_lease(server)
        lease.renew()
        with pytest.raises(StoreError, match="taken over"):
            lease.check()
    assert server.read(LEASE) == content


def test_a_lease_that_was_too_old_once_does_not_count_again(objects: Objects) -> None:
    with held_lease(objects) as lease:
        lease._renewed -= LOST_AFTER_SECONDS + 1  # the machine slept
        lease.renew()
        with pytest.raises(StoreError, match="could not be renewed for 6 minutes"):
            lease.check()


def test_a_build_that_could_not_keep_its_lease_uploads_nothing(
    build: Callable[..., Outcome], server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "LOST_AFTER_SECONDS", 0)
    outcome = build()
    assert outcome.code == 2
    assert "the lease of this build could not be renewed for 0 minutes" in outcome.err
    assert server.names(PREFIX) == []


def test_a_build_that_loses_its_lease_on_the_way_publishes_no_further_shard(
    build: Callable[..., Outcome], server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(verb: str, path: str) -> bool:
        if verb == "PUT" and path.endswith(".index"):
            monkeypatch.setattr(lease_module, "LOST_AFTER_SECONDS", 0)
        return False

    server.rules.append(Rule(lose, "500", 1))
    outcome = build("--utterances_per_shard", 1)
    assert outcome.code == 2
    assert "the lease of this build could not be renewed" in outcome.err
    published = [name for name in server.names(PREFIX) if name.endswith(".index")]
    assert 1 <= len(published) <= 2  # two are published at a time


def test_a_lease_that_cannot_be_given_back_does_not_hide_how_the_build_ended(
    build: Callable[..., Outcome], server: S3Server
) -> None:
    server.fail("POST", "", "500", times=100)  # which deletes; a first build deletes nothing else
    outcome = build()
    assert outcome.code == 0
    assert LEASE_FILE in outcome.err and "the next build is refused for 10 minutes" in outcome.err


def test_of_builds_that_start_at_once_at_most_one_goes_on_and_none_is_in_the_way_later(
    objects: Objects, server: S3Server
) -> None:
    start, ended = threading.Barrier(4), threading.Barrier(4)
    held: list[int] = []

    def try_to_build(number: int) -> None:
        start.wait()
        try:
            with held_lease(objects):
                held.append(number)
                ended.wait()
        except StoreError:
            ended.wait()

    threads = [threading.Thread(target=try_to_build, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    with held_lease(objects):
        pass
    assert server.names(PREFIX) == []


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait at most ten seconds."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
