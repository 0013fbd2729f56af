"""Builds into a bucket of Google's, where conditional writes and deletions differ from those of S3."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.builds import contents
from helpers.commands import run_main
from helpers.corpus import Corpus
from helpers.gcs import GoogleServer, google_bucket

from shardwriter import build_cli, inspect_cli
from shardwriter.storage.objects import Conflict, Objects
from shardwriter.storage.storage import Listed

URL = "gs://bucket/lrs2"

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GoogleServer]:
    with google_bucket(tmp_path) as running:
        yield running


def test_an_object_is_replaced_only_by_who_knows_its_version(server: GoogleServer) -> None:
    objects = Objects(URL)
    first = objects.replace("store.json", b"first", None)
    with pytest.raises(Conflict):
        objects.replace("store.json", b"other", None)
    second = objects.replace("store.json", b"second", first)
    for version in (None, first):
        with pytest.raises(Conflict):
            objects.replace("store.json", b"other", version)
    facts = objects.head("store.json")
    assert facts is not None and facts.version == second == objects.list()["store.json"].version
    assert server.content["lrs2/store.json"][0] == b"second"
    objects.delete(["store.json"])
    with pytest.raises(Conflict):
        objects.replace("store.json", b"other", second)


def test_what_another_build_commits_between_a_look_and_a_write_stays(
    server: GoogleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has written an object knows its generation, so that there is no moment between."""
    objects = Objects(URL)
    first = objects.replace("store.json", b"first", None)
    head = Objects.head

    def head_and_overtake(self: Objects, name: str) -> Listed | None:
        found = head(self, name)
        server.content["lrs2/store.json"] = b"theirs", next(server.generations)
        return found

    monkeypatch.setattr(Objects, "head", head_and_overtake)
    with pytest.raises(Conflict):
        objects.replace("store.json", b"second", first)
    assert server.content["lrs2/store.json"][0] == b"theirs"


def test_deleting_objects_that_are_gone_is_no_error(server: GoogleServer) -> None:
    objects = Objects(URL)
    for name in ("a", "c"):
        objects.write(name, b"content")
    objects.delete(["gone", "a", "b", "c"])
    assert server.content == {}


def test_a_bucket_of_google_holds_what_a_folder_would(
    server: GoogleServer, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--conf_dir", corpus.config_file, "--device", "cpu", "--set", "shardwriter.keep_replaced_days=0"]
    for split, flags in (
        ("train", ["--utterances_per_shard", 1, "--limit", 2]),
        ("train", []),
        ("val", []),
        ("val", []),
    ):
        for store in (URL, tmp_path / "folder"):
            asked = ["--shards", store, "--data_split", split, *flags]
            outcome = run_main(build_cli.main, [*words, *asked], capsys)
            assert outcome.code == 0, outcome.err
    before = held(server)
    assert before == contents(tmp_path / "folder")
    assert run_main(inspect_cli.main, [URL, "--verify"], capsys).code == 0
    for store in (URL, tmp_path / "folder"):
        assert run_main(build_cli.main, [*words, "--shards", store, "--compact"], capsys).code == 0
    after = held(server)
    assert after == contents(tmp_path / "folder")
    assert not after.keys() & before.keys()
    assert run_main(inspect_cli.main, [URL, "--verify"], capsys).code == 0


def held(server: GoogleServer) -> dict[str, bytes]:
    """What a build into a folder publishes once."""
    names = {name: name.removeprefix("lrs2/") for name in server.content}
    return {short: server.content[name][0] for name, short in names.items() if "-" in short}
