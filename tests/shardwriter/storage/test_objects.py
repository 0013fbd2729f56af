"""Single objects of a bucket: faults that last are named, and a conditional write is made once, answered or not."""

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import obstore
import pytest
import xxhash
from helpers.bucket import ATTEMPTS, PREFIX, URL, bucket
from helpers.s3 import Fault, Rule, S3Server

from iianet.errors import StoreError
from shardwriter.storage import objects as objects_module
from shardwriter.storage.objects import Conflict, Objects

NAME = "store.json"
LOST: list[Fault] = ["500 afterwards", "close afterwards", "hang afterwards"]


@pytest.fixture
def server(s3: S3Server, tmp_path: Path) -> Iterator[S3Server]:
    with bucket(s3, tmp_path / "cache", read_timeout=0.5) as running:
        yield running


@pytest.fixture
def objects(server: S3Server) -> Objects:
    return Objects(URL)


def content(server: S3Server) -> bytes:
    return server.read(f"{PREFIX}/{NAME}")


@pytest.fixture(params=[True, False], ids=["replaced", "created"])
def version(request: pytest.FixtureRequest, objects: Objects) -> str | None:
    """Version of the object before it is written; None where there is none yet."""
    return objects.replace(NAME, b"before", None) if request.param else None


def test_an_object_is_replaced_only_by_who_knows_its_version(objects: Objects, server: S3Server) -> None:
    first = objects.replace(NAME, b"first", None)
    with pytest.raises(Conflict):
        objects.replace(NAME, b"other", None)
    second = objects.replace(NAME, b"second", first)
    with pytest.raises(Conflict):
        objects.replace(NAME, b"other", first)
    assert content(server) == b"second"
    facts = objects.head(NAME)
    assert facts is not None and facts.version == second == objects.list()[NAME].version != first
    server.delete(f"{PREFIX}/{NAME}")
    with pytest.raises(Conflict):
        objects.replace(NAME, b"other", second)
    assert server.names(PREFIX) == []


@pytest.mark.parametrize("fault", LOST)
def test_a_conditional_write_whose_answer_is_lost_counts(
    fault: Fault, version: str | None, objects: Objects, server: S3Server
) -> None:
    server.fail("PUT", NAME, fault)
    written = objects.replace(NAME, b"ours", version)
    assert content(server) == b"ours"
    facts = objects.head(NAME)
    assert facts is not None and facts.version == written
    assert objects.replace(NAME, b"next", written) != written


@pytest.mark.parametrize("fault", LOST)
def test_what_another_wrote_after_a_lost_answer_stays(
    fault: Fault, version: str | None, objects: Objects, server: S3Server
) -> None:
    """Ours was written, another build read it and wrote its own, and only then do we try again."""
    server.fail("PUT", NAME, fault)
    overtake(server, b"theirs")
    with pytest.raises((Conflict, StoreError)):
        objects.replace(NAME, b"ours", version)
    assert content(server) == b"theirs"


def test_a_conditional_write_that_fails_for_good_is_named_and_changes_nothing(
    version: str | None, objects: Objects, server: S3Server
) -> None:
    server.fail("PUT", NAME, "500", times=100)
    with pytest.raises(StoreError, match=f"{URL}/{NAME}: cannot be written after {ATTEMPTS} attempts .*500"):
        objects.replace(NAME, b"ours", version)
    assert server.names(PREFIX) == ([NAME] if version else [])


@pytest.mark.parametrize("fault", ["500", "close", "hang"])
def test_every_kind_of_request_outlives_a_fault(
    fault: Fault, objects: Objects, server: S3Server, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"from a file")
    steps: list[tuple[str, str, Callable[[], object], object]] = [
        ("PUT", "a", lambda: objects.write("a", b"bytes"), None),
        ("PUT", "b", lambda: objects.write("b", tmp_path / "file"), None),
        ("GET", "a", lambda: (objects.read("a") or [b""])[0], b"bytes"),
        ("GET", "b", lambda: objects.download("b", tmp_path / "copy").size, 11),
        ("HEAD", "a", lambda: objects.head("a") is not None, True),
        ("GET", "/bucket/?", lambda: sorted(objects.list()), ["a", "b"]),
        ("POST", "/bucket/?", lambda: objects.delete(["a", "gone", "b"]), None),
    ]
    for method, ending, step, expected in steps:
        if (method, fault) != ("POST", "hang"):  # obstore gives up a deletion that is not answered in time
            server.fail(method, ending, fault)
        found = step()
        assert not [rule for rule in server.rules if rule.times], f"{method} {ending} was not asked for"
        assert expected is None or found == expected
    assert (tmp_path / "copy").read_bytes() == b"from a file"
    assert server.names(PREFIX) == []


@pytest.mark.parametrize("fault", ["500", "close", "hang", "cut"])
def test_a_fault_that_lasts_names_the_object(fault: Fault, objects: Objects, server: S3Server, tmp_path: Path) -> None:
    objects.write("train.index", bytes(100_000))
    server.fail("GET", "train.index", fault, times=10_000)
    with pytest.raises(StoreError, match=f"{URL}/train.index: cannot be read after {ATTEMPTS} attempts") as raised:
        objects.download("train.index", tmp_path / "copy")
    assert "testing-secret" not in str(raised.value)
    assert len([path for _, path in server.requests if path.endswith("train.index")]) == 1 + ATTEMPTS


def test_what_was_tried_once_is_not_said_to_have_been_tried_again(
    version: str | None, objects: Objects, server: S3Server
) -> None:
    """Obstore does not repeat a conditional write or a deletion that is not answered in time."""
    steps: list[tuple[str, str, Callable[[], object]]] = [
        ("PUT", "written", lambda: objects.replace(NAME, b"ours", version)),
        ("POST", "deleted", lambda: objects.delete([NAME])),
    ]
    for method, done, step in steps:
        server.requests.clear()
        server.fail(method, ".*", "hang", times=100)
        with pytest.raises(StoreError, match=rf"{URL}/{NAME}: cannot be {done} \(.*; check the network") as raised:
            step()
        assert "attempts" not in str(raised.value)
        assert [verb for verb, _ in server.requests].count(method) == 1


def test_a_download_that_is_cut_is_completed(objects: Objects, server: S3Server, tmp_path: Path) -> None:
    whole = bytes(range(256)) * 10_000
    objects.write("a.tar", whole)
    server.fail("GET", "a.tar", "cut", times=ATTEMPTS - 1)
    digest = xxhash.xxh3_64_hexdigest(whole)
    objects.download("a.tar", tmp_path / "copy", size=len(whole), digest=digest)
    assert (tmp_path / "copy").read_bytes() == whole


def test_what_lies_there_and_is_not_what_is_expected_is_named(
    objects: Objects, server: S3Server, tmp_path: Path
) -> None:
    objects.write("a.tar", b"damaged")
    digest = xxhash.xxh3_64_hexdigest(b"damage!")
    with pytest.raises(
        StoreError,
        match=rf"{URL}/a.tar: its digest is \w+, its index says {digest}.* run build-shards, or give write_store",
    ):
        objects.download("a.tar", tmp_path / "copy", size=7, digest=digest)
    with pytest.raises(StoreError, match=f"{URL}/a.tar: 7 bytes arrived, expected 1,000"):
        objects.download("a.tar", tmp_path / "copy", size=1000, digest=digest)
    with pytest.raises(FileNotFoundError):
        objects.download("gone.tar", tmp_path / "copy")


def test_only_the_objects_directly_below_a_url_are_listed(objects: Objects, server: S3Server) -> None:
    assert objects.list() == {}
    for name in ("lrs2/a", "lrs2/sub/b", "lrs2-other/c", "lrs2"):
        server.write(name, b"xyz")
    found = objects.list()
    assert list(found) == ["a"]
    assert found["a"] == objects.head("a")
    assert found["a"].size == 3


def test_an_object_that_is_written_again_has_another_version(objects: Objects) -> None:
    versions = {objects.write("a", content) for content in (b"one", b"two", b"three")}
    facts = objects.head("a")
    assert len(versions) == 3 and facts is not None and facts.version in versions


def test_wrong_credentials_are_not_tried_again(objects: Objects, server: S3Server) -> None:
    server.fail("GET", "a", "403", times=100)
    with pytest.raises(StoreError, match=f"{URL}/a: cannot be read .*check endpoint, credentials and rights"):
        objects.read("a")
    assert [path for _, path in server.requests if path.endswith("/a")] == [f"/bucket/{PREFIX}/a"]


def overtake(server: S3Server, theirs: bytes) -> None:
    """Let another build write the object before the next request for it that no rule has taken until now."""
    done: list[str] = []

    def write(verb: str, path: str) -> bool:
        if path.endswith(NAME) and not done:
            done.append(verb)
            server.write(f"{PREFIX}/{NAME}", theirs)
        return False

    server.rules.append(Rule(write, "500", 1))


def test_a_version_is_the_same_where_listings_leave_out_its_quotation_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Azure's do."""
    meta = {"path": "a", "size": 3, "last_modified": datetime(2026, 1, 1, tzinfo=UTC), "version": None}
    monkeypatch.setattr(objects_module, "_connect", lambda *_: None)

    async def listing(_: object) -> object:
        return {"objects": [{**meta, "e_tag": "0x8D"}]}

    monkeypatch.setattr(obstore, "list_with_delimiter_async", listing)
    monkeypatch.setattr(obstore, "head", lambda *_: {**meta, "e_tag": '"0x8D"'})
    container = Objects("az://container/lrs2")
    assert container.list()["a"] == container.head("a")


@pytest.mark.parametrize("what", ["listed", "read", "downloaded"])
def test_a_server_that_sends_a_byte_now_and_then_is_left_and_named(
    what: str, objects: Objects, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes in time, so that no wait for the next one is too long."""
    objects.write("train.index", bytes(1000))
    monkeypatch.setattr(objects_module, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(objects_module, "SLOWEST", 10**9)
    server.fail("GET", "/bucket/?" if what == "listed" else "train.index", "drip", times=1000)
    start = time.monotonic()
    with pytest.raises(StoreError, match=rf"{URL}.*: cannot be .*check the network") as raised:
        if what == "listed":
            objects.list()
        elif what == "read":
            objects.read("train.index")
        else:
            objects.download("train.index", tmp_path / "copy", size=1000)
    assert "the server sent nothing for 0.5 s, or less than 1e+06 kB a second" in str(raised.value)
    assert time.monotonic() - start < 20, "a byte in 0.05 s would take 50 s"


def test_what_hangs_says_that_nothing_came(objects: Objects, server: S3Server, tmp_path: Path) -> None:
    server.fail("GET", "a.tar", "hang", times=100)
    with pytest.raises(StoreError, match=r"the server sent nothing for 0\.5 s"):
        objects.download("a.tar", tmp_path / "copy")


def test_more_bytes_than_are_expected_are_not_downloaded(
    objects: Objects, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.write("a.tar", bytes(100_000))
    with pytest.raises(StoreError, match=f"{URL}/a.tar: has 100,000 bytes, expected 99,999 at most: it was"):
        objects.download("a.tar", tmp_path / "copy", size=99_999)
    assert (tmp_path / "copy").stat().st_size == 0
    monkeypatch.setattr(objects_module, "LARGEST_SMALL", 99_999)
    monkeypatch.setattr(objects_module, "SMALL", 99_999)
    with pytest.raises(StoreError, match=f"{URL}/a.tar: has 100,000 bytes, expected 99,999 at most: "):
        objects.download("a.tar", tmp_path / "copy")
    with pytest.raises(StoreError, match=f"{URL}/a.tar: has 100,000 bytes, expected a small file"):
        objects.read("a.tar")


def test_a_listing_without_end_is_left_and_named(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless(_: object) -> object:
        return await asyncio.sleep(3600)

    monkeypatch.setattr(obstore, "list_with_delimiter_async", endless)
    monkeypatch.setattr(objects_module, "LISTING_SECONDS", 0.05)
    with pytest.raises(StoreError, match=r"the listing has no end after .* minutes; give a store a prefix of its own"):
        objects.list()


def test_a_bucket_is_listed_where_a_loop_runs_already(objects: Objects) -> None:
    """As in notebooks."""

    async def cell() -> dict[str, object]:
        return dict(objects.list())

    assert asyncio.run(cell()) == {}
