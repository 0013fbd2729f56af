"""Tars by path, pattern or URL: what is opened, and that no command ever runs."""

import importlib
import os
import random
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from helpers.foreign_tars import embedding, npy, write_tar
from helpers.inspection import run_json
from helpers.rights import rights_that_count
from helpers.web_server import served

from iianet.errors import StoreError
from shardwriter.storage.tar_samples import read_embedding, read_samples
from shardwriter.storage.tar_urls import expand, open_shard

REFUSED = [
    "pipe:touch {}/ran",
    "PIPE:touch {}/ran",
    "{{pipe:touch {}/ran,x.tar}}",
    "{{http://localhost/x.tar,{{pipe:touch {}/ran,y}}}}",
    "p{{ipe:touch {}/ran,q}}",
    "-",
    "hf://datasets/a/b/x.tar",
    "gs://b/x.tar",
    "s3://b/x.tar",
    "ais://b/x.tar",
    "htgs://b/x.tar",
    "sftp://h/x.tar",
    "ftps://h/x.tar",
    "scp://h/x.tar",
    "ftp://h/x.tar",
    "file:///etc/passwd",
    "data:,x",
]


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where anything starts a process, or asks webdataset to open something."""

    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"a program was started: {arguments}")

    gopen = importlib.import_module("webdataset.gopen")  # the package's own name of it is a function
    for owner, name in ((subprocess, "Popen"), (os, "system"), (gopen, "Popen"), (gopen, "gopen")):
        monkeypatch.setattr(owner, name, refuse)


@pytest.mark.usefixtures("no_programs")
@pytest.mark.parametrize("given", REFUSED)
def test_what_is_neither_file_nor_http_is_refused(given: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is refused"):
        expand(given.format(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("no_programs")
@pytest.mark.parametrize("given", REFUSED)
def test_opening_refuses_it_too(given: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is refused" if "{" not in given.format("") else "no such file"):
        open_shard(given.format(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("no_programs")
def test_the_environment_cannot_turn_a_path_into_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.npy": npy(embedding(0))})
    monkeypatch.setenv("GOPEN_REWRITE", f"{tmp_path}=pipe:touch {tmp_path}/ran #")
    monkeypatch.setenv("GOPEN_VERBOSE", "1")
    assert [sample["__key__"] for sample in read_samples(expand(str(path)))] == ["a"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("no_programs")
def test_a_url_is_fetched_without_a_program(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"x-{number}.tar", {f"a{number}.npy": npy(embedding(number))})
    with served(tmp_path) as address:
        found = list(read_samples(expand(f"{address}/x-{{0..1}}.tar")))
    assert [(sample["__key__"], sample["npy"]) for sample in found] == [
        (f"a{number}", npy(embedding(number))) for number in range(2)
    ]


def test_a_missing_url_is_an_error(tmp_path: Path) -> None:
    with served(tmp_path) as address, pytest.raises(StoreError, match=r"gone\.tar: cannot be fetched \(HTTP 404"):
        open_shard(f"{address}/gone.tar")


@pytest.mark.parametrize("kind", ["", ":gz", ":xz"])
def test_a_url_that_breaks_off_anywhere_is_an_error(kind: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", f"w{kind}") as archive:  # type: ignore[call-overload]
        for number in range(3):
            info = tarfile.TarInfo(f"a{number}.npy")
            content = random.Random(number).randbytes(5000)  # which cannot be compressed
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    closing = 2 * tarfile.BLOCKSIZE  # blocks of zeros, which take a few bytes when compressed
    end = (tmp_path / "x.tar").stat().st_size - 200 if kind else archive.offset - closing
    with served(tmp_path) as address:
        assert len(list(read_samples([f"{address}/x.tar"]))) == 3
        for length in {0, 100, 512, 1024, 2000, end // 2, end // 2 // 512 * 512, end - 512, end - 1, end}:
            with pytest.raises(StoreError, match=r"x\.tar\?cut=\d+: cannot be read to its end"):
                list(read_samples([f"{address}/x.tar?cut={length}"]))


@pytest.mark.parametrize("length", [0, 1 << 16, 1 << 20])
def test_a_url_in_chunks_that_breaks_off_is_an_error_without_its_bytes(length: int, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        info = tarfile.TarInfo("a.npy")
        info.size = 2 << 20
        archive.addfile(info, BytesIO(random.Random(0).randbytes(2 << 20)))
    with served(tmp_path) as address, pytest.raises(StoreError, match="cannot be read to its end") as broken:
        list(read_samples([f"{address}/x.tar?chunk={length}"]))
    assert len(str(broken.value)) < 200


@pytest.mark.parametrize("scheme", ["ftp", "file"])
def test_a_redirection_to_another_scheme_is_not_followed(scheme: str, tmp_path: Path) -> None:
    said = "unknown url type: ftp" if scheme == "ftp" else "not allowed"
    with served(tmp_path) as address, pytest.raises(StoreError, match=said):
        open_shard(f"{address}/{scheme}/x.tar")


def test_a_url_can_be_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "x.tar", {"a.npy": npy(embedding(0)), "b.npy": npy(embedding(1))})
    with served(tmp_path) as address:
        code, document = run_json(capsys, f"{address}/x.tar")
    assert (code, document["samples"], document["first_keys"]) == (0, 2, ["a", "b"])


def test_any_file_name_can_be_opened(tmp_path: Path) -> None:
    """webdataset takes ? # and ; for parts of a URL."""
    path = write_tar(tmp_path / "x?y#z;1.tar", {"a.npy": npy(embedding(0))})
    assert len(list(read_samples(expand(str(path))))) == 1


def test_a_tar_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.tar"
    path.touch(0o000)
    said = rf"^{path}: cannot be opened \(Permission denied\); expected a file that you may read$"
    with rights_that_count(), pytest.raises(StoreError, match=said):
        open_shard(str(path))


def test_a_scale_of_another_length_is_named() -> None:
    members = {"embedding.npy": npy(np.zeros((8, 3), np.int8)), "scale.npy": npy(np.ones(7, np.float32))}
    sample = {"__url__": "a.tar", "__key__": "k", **members}
    with pytest.raises(StoreError, match=r"^a\.tar: k: scale\.npy is \(7,\); expected \(8,\)\. See what the tars hold"):
        read_embedding(sample, 8)
