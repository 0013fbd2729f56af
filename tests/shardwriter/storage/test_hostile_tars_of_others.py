"""Tars that would fill the memory or never end: refused by name, in a moment, with little memory."""

import bz2
import gzip
import json
import lzma
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from helpers.runs import ROOT
from helpers.web_server import dripping

from iianet.errors import ConfigError, StoreError
from shardwriter.storage import tar_urls
from shardwriter.storage.tar_samples import read_samples
from shardwriter.storage.tar_urls import Arriving, expand, is_tars, open_shard, split_tars

END = bytes(2 * tarfile.BLOCKSIZE)
GIGABYTE = 1 << 30
SECONDS = 60
READ = """
import json, resource, sys
from iianet.errors import ConfigError, StoreError
from shardwriter.storage.tar_samples import read_samples

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
said = {}
for path in sys.argv[1:]:
    try:
        said[path] = f"{len(list(read_samples([path])))} samples"
    except StoreError as error:
        said[path] = str(error)
print(json.dumps(said))
"""


def header(
    name: str = "a.npy", size: int = 0, kind: bytes = b"0", change: Callable[[bytearray], None] | None = None
) -> bytes:
    """Make the header of a member; `change` edits its block before the checksum is made."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = _number(size)
    if change is not None:
        change(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _number(value: int) -> bytes:
    if 0 <= value < 8**11:
        return b"%011o\0" % value
    return bytes([128 if value > 0 else 255]) + (value % (1 << 88)).to_bytes(11, "big")


def pax(key: str, value: object) -> bytes:
    """Make a member that follows a pax header of one record."""
    record = f" {key}={value}\n".encode()
    length = len(record) + 2
    content = str(length + (length > 99)).encode() + record
    return header("pax", len(content), b"x") + content.ljust(512, b"\0") + header(size=4) + bytes(512)


def sparse(block: bytearray) -> None:
    block[386:410] = _number(0) + _number(512)
    block[482:495] = b"\0" + _number(12 * GIGABYTE)


def zeros(pack: Callable[[bytes], bytes], before: bytes, count: int) -> bytes:
    return pack(before + bytes(count) + END)


def members(count: int) -> bytes:
    return b"".join(header(f"a.{number}.npy", 1 << 20) + bytes(1 << 20) for number in range(count))


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "sparse": (
        lambda: header(size=512, kind=b"S", change=sparse) + bytes(512) + END,
        "is a sparse file; expected a plain one",
    ),
    "sparse-pax": (lambda: pax("GNU.sparse.map", "0,1") + END, "is a sparse file; expected a plain one"),
    "negative": (lambda: header(size=-512) + END, "announces -512 bytes"),
    "negative-pax": (lambda: pax("size", -1024) + END, "'a.npy' has -1,024 bytes; expected a plain one"),
    "negative-name": (lambda: header(size=-512, kind=b"L") + END, "announces -512 bytes"),
    "absurd": (lambda: header(size=1 << 60) + END, "has 1,152,921,504,606,846,976 bytes; expected at most"),
    "absurd-name": (
        lambda: header(size=3 * GIGABYTE, kind=b"L") + bytes(5000),
        "announces 3,221,225,472 bytes",
    ),
    "chain": (
        lambda: (header(size=2, kind=b"L") + b"a".ljust(512, b"\0")) * 5000 + END,
        "a chain of headers without end",
    ),
    "gzip": (
        lambda: gzip.compress(header(size=GIGABYTE) + bytes(1 << 20)),
        "has 1,073,741,824 bytes; expected at most",
    ),
    "bzip2": (lambda: zeros(bz2.compress, header("a.mp4", 1 << 27), 1 << 27), "unpacks to .* bytes and more out of"),
    "xz": (
        lambda: zeros(partial(lzma.compress, preset=0), header("a.mp4", 1 << 27), 1 << 27),
        "expected at most 200 times as many",
    ),
    "many": (lambda: bz2.compress(members(80) + END), "unpacks to .* bytes and more out of"),
    "cut-gzip": (
        lambda: gzip.compress(header(size=600) + os.urandom(1024) + END)[:-200],
        "cannot be read to its end",
    ),
    "no-gzip": (lambda: b"\x1f\x8b" + os.urandom(1000), "cannot be read to its end"),
    "no-xz": (lambda: b"\xfd7zXZ\0" + os.urandom(1000), "cannot be read to its end"),
    "large": (lambda: members(520) + END, "has 537,919,488 bytes; expected at most 536,870,912 a sample"),
}
"""Each tar, made where it is needed (some take seconds and half a gigabyte), and what reading it says."""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What reading each says, in a process that may have a gigabyte more than it starts with."""
    folder = tmp_path_factory.mktemp("tars")
    for name, (make, _) in HOSTILE.items():
        (folder / f"{name}.tar").write_bytes(make())
    paths = [str(folder / f"{name}.tar") for name in HOSTILE]
    ended = subprocess.run(
        [sys.executable, "-c", READ, *paths],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return {Path(path).stem: text for path, text in json.loads(ended.stdout).items()}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tar_is_refused_by_name(said: dict[str, str], name: str) -> None:
    assert re.search(rf"{name}\.tar: cannot be read to its end \(.*", said[name])
    assert re.search(HOSTILE[name][1], said[name])
    assert said[name].endswith("copy it again, or leave it out")


class Dripping:
    """Gives so many bytes whenever it is asked, and lets as many seconds of a clock pass."""

    def __init__(self, count: int, clock: list[float], seconds: float) -> None:
        self.count, self.clock, self.seconds = count, clock, seconds

    def read1(self, size: int) -> bytes:
        self.clock[0] += self.seconds
        return bytes(min(self.count, size))

    def close(self) -> None:
        pass


def test_a_server_that_drips_is_an_error_and_a_slow_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(tar_urls.time, "monotonic", lambda: clock[0])
    slow = Arriving(Dripping(2000, clock, seconds=1))
    assert all(slow.readinto(bytearray(4096)) == 2000 for _ in range(200))
    dripping = Arriving(Dripping(1, clock, seconds=1))
    with pytest.raises(OSError, match="fewer than 1,000 bytes a second"):
        for _ in range(100):
            dripping.readinto(bytearray(4096))
            clock[0] += 1000  # between two reads the consumer may take its time


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("begin", "drop"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (CHUNKED, b"0"),
        (CHUNKED + b"200\r\n" + bytes(512) + b"\r\n", b"0"),
        (CHUNKED, b"1\r\n0\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b"0"),
    ],
)
def test_a_server_that_drips_anything_is_given_up(begin: bytes, drop: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_urls, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(tar_urls, "SLOWEST", 10_000)
    with (
        dripping(begin, drop, seconds=3) as address,
        pytest.raises(StoreError, match=r"x\.tar: cannot be .* \(it sends fewer than 10,000 bytes a second\)"),
    ):
        list(read_samples([address]))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "word",
    [
        "x-{0..99999999}.tar",
        "x-{99999999..0}.tar",
        "{a,b}" * 40,
        "{0..9}" * 12,
        "{a..z}" * 4,
        "{Z..A..-1}" * 4,
        "{a\\},b,c}" * 11,
    ],
)
def test_patterns_of_very_many_tars_are_refused(word: str) -> None:
    with pytest.raises(StoreError, match=r"means more than 100,000 tars; expected the numbers"):
        expand(word)


@pytest.mark.parametrize("word", ["x" * 5000 + ".tar", "a\0b.tar"])
@pytest.mark.parametrize("read", [is_tars, expand])
def test_names_that_no_system_takes_are_refused(read: Callable[[str], object], word: str) -> None:
    with pytest.raises(ConfigError, match="no file can have a name with"):
        read(word)


SECRETS = [
    "https://me:secret@h/x-{0..1}.tar",
    "http://secret@h/x.tar",
    "HTTP:me:secret@h",
    "https://me:sec/secret@h/x.tar",
    "https://me:secret@h/{a,b.tar",
    "https://me:secret@h/{0..999999}.tar",
    "{https://me:secret@h/x.tar,y.tar}",
    "ftp://me:secret@h/x.tar",
    "s3://key:secret@b/x.tar",
    "s3://b/x.tar?key=secret",
]


@pytest.mark.parametrize("word", SECRETS)
def test_passwords_in_addresses_are_refused_and_never_shown(word: str) -> None:
    for function in (is_tars, expand, open_shard):
        with pytest.raises(StoreError, match=r"has credentials or options in it.* that needs none") as no:
            function(word)
        assert "secret" not in str(no.value)


@pytest.mark.parametrize("word", ["https://me:secret@h/val-0.tar", "pipe:curl -u me:secret h/val-0.tar"])
def test_passwords_are_not_shown_where_words_are_refused_for_another_reason(word: str) -> None:
    with pytest.raises(ConfigError, match=r"for validation alone") as no:
        split_tars([word])
    assert "secret" not in str(no.value)


@pytest.mark.parametrize("word", ["https://h:8080/v@1/x.tar", "https://h/a:b@1/x.tar", "http://[::1]:80/x.tar"])
def test_an_at_sign_in_the_path_of_an_address_is_no_password(word: str) -> None:
    assert expand(word) == [word]


def test_home_and_variables_are_expanded_and_addresses_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x-0.tar").write_bytes(END)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", str(tmp_path))
    for word in ("~/x-0.tar", "$DATA/x-0.tar", "${DATA}/x-{0..0}.tar", "~/x-{0..0}.tar"):
        assert is_tars(word)
        assert expand(word) == [str(tmp_path / "x-0.tar")]
    assert not is_tars("${DATA}")
    assert expand("http://host/$DATA/~x.tar") == ["http://host/$DATA/~x.tar"]
