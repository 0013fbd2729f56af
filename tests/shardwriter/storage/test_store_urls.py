"""What --shards may name: folders and buckets; what is refused, and that no secret is shown."""

import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.bucket import PREFIX, URL, bucket
from helpers.commands import run_main
from helpers.corpus import Corpus
from helpers.s3 import S3Server

from iianet.errors import StoreError
from shardwriter import build_cli
from shardwriter.storage.bucket import Bucket
from shardwriter.storage.folder import Folder
from shardwriter.storage.locate import Cache, is_bucket, open_folder, open_storage
from shardwriter.storage.objects import Objects


@pytest.fixture
def server(s3: S3Server, tmp_path: Path) -> Iterator[S3Server]:
    with bucket(s3, tmp_path / "cache") as running:
        yield running


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("s3://key:secret@bucket/lrs2", "has credentials"),
        ("s3://bucket/lrs2?token=secret", "has credentials or options"),
        ("gs://key:secret@bucket/lrs2", "has credentials"),
        ("s3://", "s3://...: not a store URL; expected s3"),
        ("s3:///", "s3://...: not a store URL"),
        ("S3://bucket/lrs2", "S3:/...: not a store URL"),
        ("s3:/bucket/lrs2", "s3:/...: not a store URL"),
        ("s4://bucket/lrs2", "s4:/...: not a store URL"),
        ("file:///lrs2", "file:/...: not a store URL; give the path itself, without file://"),
        ("http://host/lrs2", "http:/...: not a store URL, for a web server holds no stores"),
        ("https://user:secret@host/lrs2", "https:/...: not a store URL, for a web server holds no stores"),
        ("memory://lrs2", "memory:/...: not a store URL, for what lies in memory ends with its process"),
        ("pipe:cat secret", "pipe: is a command, and none is ever run; expected the path of a store's folder, or a"),
        ("-", "- is standard input; expected the path of a store's folder, or a URL such as s3://bucket/prefix"),
        ("shards/{000000..000003}.tar", "{000000..000003}.tar: names tars, or a pattern of them; expected the path"),
        ("shards/*", "If a folder is to have just that name, make it first"),
        ("shards/a.tar", "shards/a.tar: names tars, or a pattern of them; expected the path of a store's folder"),
        ("$NO_SUCH_VARIABLE/store", "the environment variable NO_SUCH_VARIABLE is not set"),
        ("~nobody-of-this-name/store", "the folder that ~ stands for is not known; write the path out"),
        ("s3://bucket/a{1}", "s3:/...: not a store URL"),
        ("simplecache::s3://key:secret@bucket/lrs2", "simplecache::s3:/...: not a store URL"),
        ("s3://bucket/lrs2::s3://key:secret@other/lrs2", "s3://...: not a store URL"),
    ],
)
def test_urls_that_cannot_be_are_refused_without_showing_secrets(
    word: str,
    said: str,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    outcome = run_main(build_cli.main, ["--conf_dir", corpus.config_file, "--shards", word], capsys)
    assert outcome.code == 2
    assert said in outcome.err
    assert "secret" not in outcome.err
    assert set(tmp_path.iterdir()) == before


def test_folders_and_buckets_are_distinguished(tmp_path: Path) -> None:
    cache = Cache.at(tmp_path / "cache", 2)
    assert open_storage(tmp_path / "store", cache) == Folder(tmp_path / "store")
    for word in ("s3://bucket/lrs2/", "gs://bucket/a/b", "az://container/lrs2", "abfss://container@account/lrs2"):
        found = open_storage(word, cache)
        assert isinstance(found, Bucket) and is_bucket(word)
        assert (found.name, found.limit) == (word.rstrip("/"), 2_000_000_000)
        assert found.folder.parent == tmp_path / "cache"
        assert found.where("a") == f"{word.rstrip('/')}/a"
    assert not (tmp_path / "cache").exists()  # looking at a URL writes nothing
    (tmp_path / "s3:").mkdir()
    assert open_storage(tmp_path / "s3:") == Folder(tmp_path / "s3:")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="is a file; a store is a folder"):
        open_storage(tmp_path / "file")
    with pytest.raises(StoreError, match="this works on a folder; copy the store to one"):
        open_folder("s3://bucket/lrs2")


def test_home_and_variables_are_what_a_shell_would_make_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STORES", str(tmp_path / "stores"))
    assert open_storage("~/store") == Folder(tmp_path / "home" / "store")
    assert open_folder("$STORES/${STORES}") == Folder(Path(f"{tmp_path}/stores/{tmp_path}/stores"))
    bucket = open_storage("s3://bucket/lrs2", Cache.at("$STORES/cache"))
    assert isinstance(bucket, Bucket) and bucket.folder.parent == tmp_path / "stores" / "cache"
    for name in ("a*", "b.tar", "-", "pipe:"):  # what is there is what is meant
        (tmp_path / name).mkdir()
        assert open_storage(name) == Folder(Path(name))


def test_without_a_home_only_buckets_need_a_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert open_storage(tmp_path / "store", Cache.at()) == Folder(tmp_path / "store")
    with pytest.raises(StoreError, match=r"~/.cache.*: the folder that ~ stands for is not known.*cache_dir"):
        open_storage("s3://bucket/lrs2", Cache.at())
    assert isinstance(open_storage("s3://bucket/lrs2", Cache.at(tmp_path / "cache")), Bucket)


def test_stores_of_two_servers_or_prefixes_share_no_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = set()
    for server in ("http://one", "http://two"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", server)
        for word in ("s3://bucket/lrs2", "s3://bucket/lrs-2", "s3://bucket-lrs2/lrs2"):
            folders.add(Bucket(Objects(word), tmp_path, 1).folder)
    assert len(folders) == 6


def test_an_endpoint_that_is_no_url_is_named(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(StoreError, match="AWS_ENDPOINT_URL=localhost:9000: not a URL; expected one such as"):
        Objects(URL).list()


@pytest.mark.parametrize("url", ["az://container/lrs2", "abfss://container@account/lrs2"])
def test_an_azure_url_without_its_account_names_the_cure(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(
        StoreError, match=f"{url}: cannot be opened .*set AZURE_STORAGE_ACCOUNT_NAME.*or write abfss://"
    ):
        open_storage(url, Cache.at(tmp_path)).files()


def test_a_server_that_is_not_there_is_named(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=f"{URL}: cannot be listed .*127.0.0.1:9.*check the network"):
        Objects(URL).list()


def test_credentials_come_from_a_profile_too(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.write(f"{PREFIX}/a", b"content")
    keys = "aws_access_key_id = testing-id\naws_secret_access_key = testing-secret\n"
    (tmp_path / "credentials").write_text(f"[cluster]\n{keys}")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "cluster")
    found = Objects(URL).read("a")
    assert found is not None and found[0] == b"content"


def test_what_is_sent_to_other_processes_holds_no_secret(server: S3Server, tmp_path: Path) -> None:
    place = Bucket(Objects(URL), tmp_path / "cache", 1)
    place.files()
    assert b"testing-" not in pickle.dumps(place)
    assert "testing-" not in repr(place.objects)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_profile_without_credentials_is_named(
    name: str, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text("[empty]\nregion = us-east-1\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", name)
    with pytest.raises(StoreError, match=f"AWS_PROFILE={name}"):
        Objects(URL).list()


def test_a_profile_without_boto3_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "cluster")
    monkeypatch.setitem(sys.modules, "boto3", None)
    said = (
        r"^AWS_PROFILE: profiles are read by boto3, which is not installed; pip install boto3, or set AWS_ACCESS_KEY_ID"
    )
    with pytest.raises(StoreError, match=said):
        Objects("s3://another-bucket/lrs2").list()
