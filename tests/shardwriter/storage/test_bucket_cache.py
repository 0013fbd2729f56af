"""Copies of what lies in a bucket: always what is there, downloaded once a machine, and no more than they may take."""

import errno
import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import xxhash
from helpers.bucket import PREFIX, URL, bucket
from helpers.s3 import BUCKET, Rule, S3Server

from iianet.errors import StoreError
from shardwriter.format.files import temporary_path
from shardwriter.storage import bucket as bucket_module
from shardwriter.storage.bucket import Bucket
from shardwriter.storage.objects import Objects

SIZE = 1000
DEAD = 2**22 + 1
"""Above the highest process number."""


@pytest.fixture
def server(s3: S3Server, tmp_path: Path) -> Iterator[S3Server]:
    with bucket(s3, tmp_path / "unused") as running:
        yield running


def content(number: int) -> bytes:
    return bytes([number]) * SIZE


def tar(number: int) -> str:
    return f"train-0123456789-{number:06d}.tar"


def put_tars(server: S3Server, count: int) -> None:
    for number in range(count):
        server.write(f"{PREFIX}/{tar(number)}", content(number))
    server.requests.clear()


def cached(tmp_path: Path, limit: int = 100 * SIZE) -> Bucket:
    """The bucket, as a process of this machine has it."""
    return Bucket(Objects(URL), tmp_path / "cache", limit)


def read(storage: Bucket, number: int, expected: bytes | None = None) -> bytes:
    expected = content(number) if expected is None else expected
    opened = storage.open_tar(tar(number), len(expected), xxhash.xxh3_64_hexdigest(expected))
    try:
        return os.pread(opened.descriptor, 2 * SIZE, 0)
    finally:
        os.close(opened.descriptor)


def kept(tmp_path: Path) -> list[int]:
    """Numbers of the tars in the cache."""
    return sorted(int(path.name[17:23]) for path in cached(tmp_path).folder.glob("*.tar"))


def downloads(server: S3Server) -> list[str]:
    return [path.removeprefix(f"/{BUCKET}/{PREFIX}/") for method, path in server.requests if method == "GET"]


def read_small(storage: Bucket, name: str) -> bytes:
    with storage.open(name) as stream:
        return stream.read()


def test_small_files_are_downloaded_once_for_each_version(server: S3Server, tmp_path: Path) -> None:
    for version in (b"first", b"other"):
        server.write(f"{PREFIX}/train.index", version)
        server.requests.clear()
        for _ in range(2):
            storage = cached(tmp_path)
            assert read_small(storage, "train.index") == version  # without a listing
            storage.files()
            storage.prefetch(["train.index"])
            assert read_small(storage, "train.index") == version
        assert downloads(server).count("train.index") == 1
    assert len(list((tmp_path / "cache").rglob("train.index.*"))) == 1


def test_what_was_written_after_the_listing_is_never_taken_for_what_was_listed(
    server: S3Server, tmp_path: Path
) -> None:
    server.write(f"{PREFIX}/store.json", b"before")
    storage = cached(tmp_path)
    listed = storage.files()["store.json"].version
    server.write(f"{PREFIX}/store.json", b"later!")
    assert read_small(storage, "store.json") == b"later!"
    server.write(f"{PREFIX}/store.json", b"before")  # as an --overwrite that is abandoned leaves it
    for again in (storage, cached(tmp_path)):
        assert again.files()["store.json"].version == listed
        assert read_small(again, "store.json") == b"before"


def test_many_small_files_are_downloaded_at_a_time(server: S3Server, tmp_path: Path) -> None:
    names = [f"train-0123456789-{number:06d}.index" for number in range(8)]
    for name in names:
        server.write(f"{PREFIX}/{name}", name.encode())
    together = threading.Barrier(8, timeout=10)
    waited = Rule(lambda verb, path: verb == "GET" and path.endswith(".index") and together.wait() < 0, "500", 1)
    server.rules.append(waited)
    storage = cached(tmp_path)
    storage.files()
    storage.prefetch(names)
    assert [read_small(storage, name) for name in names] == [name.encode() for name in names]


def test_a_tar_is_downloaded_once_by_all_who_open_it_at_once(server: S3Server, tmp_path: Path) -> None:
    put_tars(server, 1)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: read(cached(tmp_path), 0), range(6)))
    assert found == [content(0)] * 6
    assert downloads(server) == [tar(0)]
    digest = xxhash.xxh3_64_hexdigest(content(0))
    opened = cached(tmp_path).open_tar(tar(0), SIZE, digest)
    os.close(opened.descriptor)
    assert not opened.is_checked  # its digest was compared when it came, by another process perhaps


def test_the_tars_unused_for_longest_make_room(server: S3Server, tmp_path: Path) -> None:
    put_tars(server, 5)
    storage = cached(tmp_path, limit=3 * SIZE)
    for number in (0, 1, 2, 0, 3):
        assert read(storage, number) == content(number)
    assert kept(tmp_path) == [0, 2, 3]
    assert [storage.is_kept(tar(number), xxhash.xxh3_64_hexdigest(content(number))) for number in (0, 1)] == [
        True,
        False,
    ]
    assert read(storage, 1) == content(1)
    assert kept(tmp_path) == [0, 1, 3]
    assert downloads(server) == [tar(number) for number in (0, 1, 2, 3, 1)]


def test_a_tar_larger_than_the_cache_may_be_is_read_all_the_same(server: S3Server, tmp_path: Path) -> None:
    put_tars(server, 2)
    storage = cached(tmp_path, limit=SIZE // 2)
    assert [read(storage, number) for number in (0, 1, 0)] == [content(number) for number in (0, 1, 0)]
    assert kept(tmp_path) == [0]


def test_a_full_cache_on_a_read_only_file_system_is_read(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_tars(server, 1)
    server.write(f"{PREFIX}/train.index", b"index")
    storage = cached(tmp_path)
    assert (read(storage, 0), read_small(storage, "train.index")) == (content(0), b"index")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert (read(storage, 0), read_small(storage, "train.index")) == (content(0), b"index")


def test_copies_that_others_delete_at_once_are_read_all_the_same(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the cache is small, or where another process has listed the store since."""
    put_tars(server, 1)
    server.write(f"{PREFIX}/train.index", b"content")
    replace = Path.replace

    def replace_and_lose(self: Path, target: Path) -> Path:
        found = replace(self, target)
        found.unlink()
        return found

    monkeypatch.setattr(Path, "replace", replace_and_lose)
    storage = cached(tmp_path)
    for _ in range(2):
        assert read(storage, 0) == content(0)
        assert read_small(storage, "train.index") == b"content"
    assert downloads(server) == [tar(0), "train.index"] * 2


def test_copies_of_small_files_that_were_deleted_are_deleted_by_the_next_listing(
    server: S3Server, tmp_path: Path
) -> None:
    names = [f"train-0123456789-{number:06d}.index" for number in range(3)]
    for name in names:
        server.write(f"{PREFIX}/{name}", name.encode())
    first = cached(tmp_path)
    first.files()
    first.prefetch(names)
    small = first.folder / "small"
    assert len(list(small.iterdir())) == 3
    living = temporary_path(small / names[0])
    dead = small / living.name.replace(f"-{os.getpid()}-", f"-{DEAD}-")
    for path in (living, dead):
        path.write_bytes(b"part")
    for name in names[:2]:
        server.delete(f"{PREFIX}/{name}")
    assert list(cached(tmp_path).files()) == names[2:]
    assert [path.name.rpartition(".")[0] for path in small.iterdir() if path != living] == names[2:]
    assert living.exists()
    with pytest.raises(FileNotFoundError):
        first.open(names[0])
    assert read_small(first, names[2]) == names[2].encode()


def test_lock_files_do_not_grow_in_number_with_the_tars(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "LOCKS", 2, raising=False)
    put_tars(server, 6)
    storage = cached(tmp_path)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda number: read(storage, number), range(6))) == [content(n) for n in range(6)]
    assert len(list((storage.folder / "locks").iterdir())) <= 2


@pytest.mark.parametrize("copy", [b"", b"cut", bytes(2 * SIZE)])
def test_a_copy_of_another_size_is_fetched_anew(copy: bytes, server: S3Server, tmp_path: Path) -> None:
    put_tars(server, 1)
    storage = cached(tmp_path)
    read(storage, 0)
    (path,) = storage.folder.glob("*.tar")
    path.write_bytes(copy)
    assert read(storage, 0) == content(0)
    assert downloads(server) == [tar(0)] * 2


def test_a_tar_that_is_not_what_its_index_says_is_named_and_not_kept(server: S3Server, tmp_path: Path) -> None:
    put_tars(server, 1)
    with pytest.raises(StoreError, match=rf"{URL}/{tar(0)}: its digest is \w+, its index says \w+"):
        read(cached(tmp_path), 0, content(7))
    with pytest.raises(StoreError, match=rf"{URL}/{tar(0)}: 1,000 bytes arrived, expected 1,001"):
        read(cached(tmp_path), 0, content(0) + b"x")
    with pytest.raises(StoreError, match=rf"{URL}/{tar(1)}: is gone; it was there when the store was opened"):
        read(cached(tmp_path), 1)
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.parent.name != "locks"]
    assert left == []


def test_tars_of_one_name_and_other_content_share_no_copy(server: S3Server, tmp_path: Path) -> None:
    put_tars(server, 1)
    before = cached(tmp_path)
    assert read(before, 0) == content(0)
    server.write(f"{PREFIX}/{tar(0)}", content(9))
    assert read(cached(tmp_path), 0, content(9)) == content(9)
    assert read(before, 0) == content(0)


def test_what_processes_that_died_were_downloading_is_deleted(server: S3Server, tmp_path: Path) -> None:
    put_tars(server, 1)
    storage = cached(tmp_path)
    read(storage, 0)
    own = temporary_path(storage.folder / tar(1))
    dead = storage.folder / own.name.replace(f"-{os.getpid()}-", f"-{DEAD}-")
    far = storage.folder / own.name.replace(f"-{socket.gethostname()}-", "-elsewhere-")
    for path in (own, dead, far):
        path.write_bytes(b"part")
    storage.forget(tar(0), xxhash.xxh3_64_hexdigest(content(0)))
    assert read(storage, 0) == content(0)
    assert (own.exists(), dead.exists(), far.exists()) == (True, False, True)


def test_a_cache_that_cannot_be_written_is_named(server: S3Server, tmp_path: Path) -> None:
    put_tars(server, 1)
    (tmp_path / "cache").write_bytes(b"a file")
    with pytest.raises(StoreError, match=r"/cache/.* cannot be written .*; make room, or name another cache folder"):
        read(cached(tmp_path), 0)


def test_a_cache_on_a_file_system_without_locks_downloads_and_leaves_no_file_open(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    put_tars(server, 2)
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert read(cached(tmp_path), 0) == content(0)
    assert read(cached(tmp_path), 1) == content(1)
    opened = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert not [path for path in opened if path.startswith(str(tmp_path / "cache"))]
