"""Tars by path, pattern or URL: what is opened, and that no command ever runs."""

import importlib
import os
import subprocess
from pathlib import Path

import pytest
from helpers.foreign_tars import embedding, npy, write_tar
from helpers.inspection import run_json
from helpers.web_server import served

from iianet.errors import StoreError
from shardwriter.storage.tar_samples import read_samples
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


def test_a_missing_or_cut_url_is_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {f"a{number}.npy": npy(embedding(number)) for number in range(30)})
    with served(tmp_path) as address:
        with pytest.raises(StoreError, match=r"gone\.tar: cannot be fetched \(HTTP 404"):
            open_shard(f"{address}/gone.tar")
        with pytest.raises(StoreError, match="the connection was closed"):
            list(read_samples([f"{address}/x.tar?cut"]))


def test_a_redirection_to_another_scheme_is_not_followed(tmp_path: Path) -> None:
    with served(tmp_path) as address, pytest.raises(StoreError, match="unknown url type: ftp"):
        open_shard(f"{address}/ftp/x.tar")


def test_a_url_can_be_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "x.tar", {"a.npy": npy(embedding(0)), "b.npy": npy(embedding(1))})
    with served(tmp_path) as address:
        code, document = run_json(capsys, f"{address}/x.tar")
    assert (code, document["samples"], document["first_keys"]) == (0, 2, ["a", "b"])


def test_any_file_name_can_be_opened(tmp_path: Path) -> None:
    """webdataset takes ? # and ; for parts of a URL."""
    path = write_tar(tmp_path / "x?y#z;1.tar", {"a.npy": npy(embedding(0))})
    assert len(list(read_samples(expand(str(path))))) == 1
