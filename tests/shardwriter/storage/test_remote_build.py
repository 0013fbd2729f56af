"""Builds into an object store: what is there afterwards, after interruptions, and while others build."""

import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import xxhash
from helpers.builds import build_store, change_mouth, contents
from helpers.commands import Outcome, run_main
from helpers.corpus import Corpus, make_corpus
from helpers.remote import PREFIX, URL, bucket
from helpers.s3 import BUCKET, Rule, S3Server

from iianet.errors import StoreError
from loaders import reader as reader_module
from loaders.reader import open_reader
from shardwriter import build_cli, inspect_cli
from shardwriter.storage import lease as claim_module
from shardwriter.storage.lease import CLAIM_PREFIX, DEAD_AFTER_SECONDS, _is_dead, _this_system, claimed
from shardwriter.storage.mirror import drop_copy
from shardwriter.storage.objects import RemoteFile, RemoteStore, _described

NOTHING_KEPT = ("--set", "shardwriter.keep_replaced_days=0")

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus", {"train": 5, "val": 2, "test": 2})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    with bucket(tmp_path / "cache") as running:
        yield running


@pytest.fixture
def build(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*flags: object) -> Outcome:
        return run_main(build_cli.main, ["--conf_dir", corpus.config_file, "--shards", URL, *flags], capsys)

    return run


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *flags: run_main(inspect_cli.main, [URL, *flags], capsys)


def objects(server: S3Server) -> dict[str, bytes]:
    """What a local build publishes once: tars, their indexes, and plans."""
    names = [name for name in server.names(PREFIX) if name.startswith("plan-") or "-" in name]
    return {name: server.read(f"{PREFIX}/{name}") for name in names}


def test_a_bucket_holds_what_a_folder_would(
    build: Any, inspect: Any, server: S3Server, corpus: Corpus, tmp_path: Path
) -> None:
    outcome = build()
    assert outcome.code == 0
    assert f"store: {URL}\n" in outcome.out
    build_store(corpus, tmp_path / "local")
    assert objects(server) == contents(tmp_path / "local")
    assert {"store.json", "README.md", "train.index", "val.index", "test.index"} < set(server.names(PREFIX))
    shown = inspect("--verify", "--against", corpus.config_file)
    assert shown.code == 0, shown.out
    assert "all as the indexes say" in shown.out
    assert not list((tmp_path / "cache").rglob("*-build/*.tar"))  # what is uploaded is not kept


def test_building_again_encodes_what_is_new_and_changed_alone(
    build: Any, inspect: Any, server: S3Server, corpus: Corpus, tmp_path: Path
) -> None:
    build("--limit", 3, "--data_split", "train")
    before = objects(server)
    change_mouth(corpus.mouth(corpus.names["train"][0]))
    outcome = build()
    assert outcome.code == 0
    after = objects(server)
    assert {name: after[name] for name in before} == before
    assert inspect("--against", corpus.config_file, "--verify").code == 0
    shutil.rmtree(tmp_path / "cache")  # another machine
    assert "0 utterances in 0 shards" in build().out
    assert objects(server) == after


def test_nothing_in_a_store_but_data_root_holds_a_path_of_the_machine(
    build: Any, server: S3Server, tmp_path: Path
) -> None:
    build()
    held = {name: server.read(f"{PREFIX}/{name}") for name in server.names(PREFIX)}
    record = json.loads(held["store.json"])
    assert record.pop("data_root") == str(tmp_path / "corpus")
    held["store.json"] = json.dumps(record).encode()
    paths = [str(tmp_path).encode(), str(Path.home()).encode(), str(Path.cwd()).encode(), b"testing-"]
    assert {name: path for name, content in held.items() for path in paths if path in content} == {}


def test_an_upload_that_fails_is_made_up_for_by_the_next_build(build: Any, server: S3Server, corpus: Corpus) -> None:
    server.fail("PUT", "train-000001.index", "500", times=100)
    outcome = build()
    assert outcome.code == 2
    assert f"{URL}/train-000001.index: cannot be written after 5 attempts" in outcome.err
    assert "train-000001.index" not in server.names(PREFIX)
    server.rules.clear()
    assert build().code == 0
    assert len([name for name in server.names(PREFIX) if name.endswith(".tar")]) == 4
    assert not [name for name in server.names(PREFIX) if name.startswith(CLAIM_PREFIX)]


def test_shards_that_an_interrupted_build_left_here_are_uploaded_and_not_encoded_again(
    build: Any, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.fail("PUT", ".tar", "close", times=10_000)
    assert build().code == 2
    server.rules.clear()
    assert not [name for name in server.names(PREFIX) if name.endswith(".tar")]
    outcome = build()
    assert outcome.code == 0
    assert "which an earlier run wrote" in outcome.err
    encoded = int(outcome.out.partition(" utterances in")[0].rpartition("\n")[2])
    assert encoded < 9
    assert len([name for name in server.names(PREFIX) if name.endswith(".index") and "-" in name]) == 4


@pytest.mark.parametrize("ending", ["store.json", "plan-001.parquet", "train-000001.tar", "train.index", "README.md"])
def test_a_build_that_ends_at_any_upload_is_completed_by_the_next(
    ending: str, build: Any, inspect: Any, server: S3Server, corpus: Corpus
) -> None:
    assert build("--limit", 3).code == 0
    server.fail("PUT", ending, "500", times=100)
    assert build().code == 2
    server.rules.clear()
    assert build().code == 0
    shown = inspect("--verify", "--against", corpus.config_file)
    assert shown.code == 0, shown.out
    assert "all as the indexes say" in shown.out


def test_the_card_is_that_of_the_store_although_a_build_ended_before_it(build: Any, server: S3Server) -> None:
    assert build().code == 0
    before, record = len(server.requests), ("PUT", f"/{BUCKET}/{PREFIX}/store.json")
    card_after_record = Rule(
        lambda verb, path: verb == "PUT" and path.endswith("README.md") and record in server.requests[before:],
        "500",
        99,
    )
    server.rules.append(card_after_record)
    assert build("--overwrite", "--dtype", "int8").code == 2
    assert b"float16 array" in server.read(f"{PREFIX}/README.md")
    server.rules.clear()
    assert build().code == 0  # nothing is left to be done but that
    assert b"int8 array" in server.read(f"{PREFIX}/README.md")


def test_shards_left_here_of_a_plan_that_another_machine_replaced_are_not_uploaded(
    build: Any, inspect: Any, server: S3Server, corpus: Corpus, tmp_path: Path
) -> None:
    server.fail("PUT", ".tar", "close", times=10_000)
    assert build().code == 2
    server.rules.clear()
    shutil.move(tmp_path / "cache", tmp_path / "first")
    for name in server.names(PREFIX):
        server.delete(f"{PREFIX}/{name}")
    other = build("--set", "videonet.videonet_config.seed=1", "--limit", 1)
    assert other.code == 0
    shutil.rmtree(tmp_path / "cache")
    shutil.move(tmp_path / "first", tmp_path / "cache")
    assert build("--set", "videonet.videonet_config.seed=1").code == 0
    shown = inspect("--verify", "--against", corpus.config_file, "--set", "videonet.videonet_config.seed=1")
    assert shown.code == 0, shown.out
    fresh = tmp_path / "fresh"
    build_store(corpus, fresh, "videonet.videonet_config.seed=1")
    local, remote = open_reader(fresh, "train"), open_reader(URL, "train")
    for row, key in enumerate(local.keys.to_pylist()):
        (found,) = remote.rows_of(local.keys.slice(row, 1))
        assert (remote.read(int(found)) == local.read(row)).all(), key


@pytest.mark.parametrize("fault", ["500", "close", "cut"])
def test_faults_that_pass_are_not_noticed(
    fault: Any, build: Any, inspect: Any, server: S3Server, corpus: Corpus, tmp_path: Path
) -> None:
    for ending in ("train-000000.tar", "train-000001.index", "plan-000.parquet", "store.json"):
        server.fail("PUT", ending, "500" if fault == "cut" else fault, times=2)
        server.fail("GET", ending, fault, times=2)
    server.fail("GET", f"/{BUCKET}", "500" if fault == "cut" else fault)
    assert build().code == 0
    shown = inspect("--verify")
    assert shown.code == 0, shown.out + shown.err
    build_store(corpus, tmp_path / "local")
    assert objects(server) == contents(tmp_path / "local")


def other_machine(tmp_path: Path) -> None:
    """Let what follows run on the other one of two machines."""
    shutil.move(tmp_path / "cache", tmp_path / "moving")
    if (tmp_path / "other").exists():
        shutil.move(tmp_path / "other", tmp_path / "cache")
    shutil.move(tmp_path / "moving", tmp_path / "other")


def seen_elsewhere(inspect: Any, corpus: Corpus, tmp_path: Path, *flags: object) -> str:
    """What inspect-shards says with an empty cache; nothing may be wrong."""
    shutil.rmtree(tmp_path / "cache")
    shown = inspect("--verify", "--against", corpus.config_file, *flags)
    assert shown.code == 0 and "all as the indexes say" in shown.out, shown.out
    return str(shown.out)


@pytest.mark.parametrize("ending", ["train-000002.tar", "store.json"])
def test_the_number_of_a_plan_that_was_dropped_is_not_taken_for_the_plan(
    ending: str, build: Any, inspect: Any, server: S3Server, corpus: Corpus, tmp_path: Path
) -> None:
    assert build("--limit", 3).code == 0
    server.fail("PUT", ending, "500", times=100)
    first, second = ("--utterances_per_shard", 1), ("--utterances_per_shard", 2)
    if ending != "store.json":
        first = ("--overwrite", "--dtype", "int8", *first)
        second = ("--overwrite", "--dtype", "float32", *second, *NOTHING_KEPT)
    assert build(*first).code == 2
    server.rules.clear()
    assert build(*second).code == 0
    assert "no plan lists" not in seen_elsewhere(inspect, corpus, tmp_path)


def test_shards_left_here_of_a_plan_that_is_gone_are_not_uploaded(
    build: Any, inspect: Any, server: S3Server, corpus: Corpus, tmp_path: Path
) -> None:
    seed = ("--set", "videonet.videonet_config.seed=1")
    assert build("--limit", 3).code == 0
    server.fail("PUT", ".tar", "close", times=10_000)
    assert build().code == 2
    server.rules.clear()
    other_machine(tmp_path)
    assert build("--overwrite", *seed, *NOTHING_KEPT).code == 0
    other_machine(tmp_path)
    outcome = build(*seed)
    assert outcome.code == 0 and "which an earlier run wrote" not in outcome.err
    assert "no plan lists" not in seen_elsewhere(inspect, corpus, tmp_path, *seed)


def test_shards_left_here_of_one_overwrite_are_not_taken_for_those_of_another(
    build: Any, inspect: Any, server: S3Server, corpus: Corpus, tmp_path: Path
) -> None:
    seeds = [("--overwrite", "--set", f"videonet.videonet_config.seed={seed}") for seed in (1, 2)]
    assert build().code == 0
    server.fail("PUT", ".tar", "close", times=10_000)
    assert build(*seeds[0]).code == 2
    other_machine(tmp_path)
    assert build(*seeds[1]).code == 2
    other_machine(tmp_path)
    server.rules.clear()
    assert build(*seeds[1], *NOTHING_KEPT).code == 0
    assert "no plan lists" not in seen_elsewhere(inspect, corpus, tmp_path, *seeds[1][1:])
    build_store(corpus, tmp_path / "local", "videonet.videonet_config.seed=2")
    local, remote = open_reader(tmp_path / "local", "train"), open_reader(URL, "train")
    for row in range(5):
        (found,) = remote.rows_of(local.keys.slice(row, 1))
        assert (remote.read(int(found)) == local.read(row)).all()


def test_shards_left_here_that_another_machine_has_built_meanwhile_are_theirs(
    build: Any, inspect: Any, server: S3Server, corpus: Corpus, tmp_path: Path
) -> None:
    server.fail("PUT", ".tar", "close", times=10_000)
    assert build("--utterances_per_shard", 2).code == 2
    server.rules.clear()
    shutil.move(tmp_path / "cache", tmp_path / "first")
    assert build().code == 0
    left = list((tmp_path / "first").rglob("*.tar"))
    for tar in left:  # as another kind of processor would have them: as long, in other digits
        content = bytearray(tar.read_bytes())
        content[700] ^= 1
        tar.write_bytes(bytes(content))
    assert left
    shutil.rmtree(tmp_path / "cache")
    shutil.move(tmp_path / "first", tmp_path / "cache")
    outcome = build("--compact", *NOTHING_KEPT, "--utterances_per_shard", 8)
    assert outcome.code == 0, outcome.err
    assert inspect("--verify", "--against", corpus.config_file).code == 0


def test_an_overwrite_takes_the_place_of_all_that_was_there(build: Any, inspect: Any, server: S3Server) -> None:
    build()
    before = set(objects(server))
    assert build("--overwrite", "--dtype", "int8", *NOTHING_KEPT).code == 0
    assert not before & set(objects(server))
    shown = inspect("--verify")
    assert shown.code == 0, shown.out
    assert "int8" in shown.out


def test_what_others_keep_below_the_same_prefix_stays(build: Any, inspect: Any, server: S3Server) -> None:
    foreign = {f"{PREFIX}/{name}": name.encode() for name in ("train-000001.tar", "notes.txt", "old.index", "a/x.tar")}
    for name, content in foreign.items():
        server.write(name, content)
    assert build().code == 0
    assert build("--overwrite", "--dtype", "float32", *NOTHING_KEPT).code == 0
    assert {name: server.read(name) for name in foreign} == foreign
    assert "all as the indexes say" in inspect("--verify").out


def test_a_bucket_is_compacted(build: Any, inspect: Any, server: S3Server, corpus: Corpus, tmp_path: Path) -> None:
    build("--utterances_per_shard", 2)
    change_mouth(corpus.mouth(corpus.names["train"][0]))
    build()
    before = {row: open_reader(URL, "train").read(row).tobytes() for row in range(5)}
    shutil.rmtree(tmp_path / "cache")
    outcome = build("--compact", *NOTHING_KEPT)
    assert outcome.code == 0, outcome.err
    assert "9 copied, 1 superseded ones left out" in outcome.out
    assert len([name for name in server.names(PREFIX) if name.endswith(".tar")]) == 4
    assert sorted(open_reader(URL, "train").read(row).tobytes() for row in range(5)) == sorted(before.values())
    shown = inspect("--verify", "--against", corpus.config_file)
    assert shown.code == 0, shown.out


@pytest.mark.parametrize("how", ["--compact", "--overwrite"])
def test_a_training_elsewhere_goes_on_with_what_was_replaced(
    how: str, build: Any, inspect: Any, server: S3Server, corpus: Corpus, tmp_path: Path, monkeypatch: Any
) -> None:
    build("--utterances_per_shard", 2)
    change_mouth(corpus.mouth(corpus.names["train"][0]))
    build()
    old = {name for name in server.names(PREFIX) if name.endswith(".tar")}
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
        reader = open_reader(URL, "train")
    outcome = build(how)
    assert outcome.code == 0, outcome.err
    kept = outcome.out if how == "--compact" else outcome.err
    assert "what was replaced stays (plan-000.parquet, plan-001.parquet): trainings may still read it" in kept
    assert old < set(server.names(PREFIX))
    assert not list((tmp_path / "elsewhere").rglob("*.tar"))  # all of it is still to come
    now = open_reader(URL, "train")
    assert {reader.key(row): reader.read(row).tobytes() for row in range(5)} == {
        now.key(row): now.read(row).tobytes() for row in range(5)
    }
    shown = inspect("--verify", "--against", corpus.config_file)
    assert shown.code == 0, shown.out
    assert re.search(
        r"plan-000.parquet: was replaced \(20.*\), and its 5 shards stay while they may be read", shown.out
    )
    assert build(*NOTHING_KEPT).code == 0
    assert not old & set(server.names(PREFIX))
    assert "plan-000.parquet" not in server.names(PREFIX)
    assert inspect("--verify", "--against", corpus.config_file).code == 0


def test_a_second_build_refuses_and_names_the_first(build: Any, server: S3Server) -> None:
    build("--limit", 1)
    server.write(f"{PREFIX}/{CLAIM_PREFIX}elsewhere.77.abc", b"process 77 on elsewhere since noon")
    outcome = build()
    assert outcome.code == 2
    assert "process 77 on elsewhere since noon" in outcome.err
    assert [name for name in server.names(PREFIX) if name.startswith(CLAIM_PREFIX)] == [
        f"{CLAIM_PREFIX}elsewhere.77.abc"
    ]


def test_claims_of_the_dead_do_not_count() -> None:
    own = RemoteFile(1, "", 10_000.0)
    dead = 2**22 + 1  # above the highest process number
    here = f"{CLAIM_PREFIX}{_this_system()}"
    namesake = f"{CLAIM_PREFIX}{socket.gethostname()}"
    assert _is_dead(f"{here}.{dead}.abc", RemoteFile(1, "", 10_000.0), own)
    assert not _is_dead(f"{here}.1.abc", RemoteFile(1, "", 10_000.0 - DEAD_AFTER_SECONDS), own)
    assert _is_dead(f"{here}.1.abc", RemoteFile(1, "", 0.0), own)  # the number of another process by now
    assert not _is_dead(f"{namesake}.{dead}.abc", RemoteFile(1, "", 10_000.0), own)
    assert not _is_dead(f"{CLAIM_PREFIX}far.1.abc", RemoteFile(1, "", 10_000.0 - DEAD_AFTER_SECONDS), own)
    assert _is_dead(f"{CLAIM_PREFIX}far.1.abc", RemoteFile(1, "", 9_999.0 - DEAD_AFTER_SECONDS), own)


def test_a_build_whose_claim_was_deleted_writes_no_more(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with claimed(RemoteStore.at(URL)) as claim:
        claim.check()
        server.delete(f"{PREFIX}/{claim.name}")
        monkeypatch.setattr(claim_module, "REFRESH_SECONDS", 0)
        claim.keep(threading.Event())  # ends, since it finds none
        assert not [name for name in server.names(PREFIX) if name.startswith(CLAIM_PREFIX)]
        with pytest.raises(StoreError, match=r"this build's claim was deleted, so another build may be writing by now"):
            claim.check()


def test_a_build_that_could_not_keep_its_claim_uploads_nothing(
    build: Any, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim_module, "LOST_AFTER_SECONDS", 0)
    outcome = build()
    assert outcome.code == 2
    assert "this build's claim could not be written for 0 minutes" in outcome.err
    assert server.names(PREFIX) == []


def test_of_builds_that_start_at_once_at_most_one_goes_on(server: S3Server) -> None:
    start, ended = threading.Barrier(4), threading.Barrier(4)
    held: list[int] = []

    def try_to_build(number: int) -> None:
        start.wait()
        try:
            with claimed(RemoteStore.at(URL)):
                held.append(number)
                ended.wait()
        except StoreError:
            ended.wait()

    threads = [threading.Thread(target=try_to_build, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) <= 1


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("s3://key:secret@bucket/lrs2", "has credentials"),
        ("s3://", "is no URL of a store"),
        ("S3://bucket/lrs2", "S3:/...: is no URL of a store"),
        ("s3:/bucket/lrs2", "s3:/...: is no URL of a store"),
        ("s4://bucket/lrs2", "s4:/...: is no URL of a store"),
        ("file:///lrs2", "or the path of a folder"),
        ("http://host/lrs2", "is no URL of a store"),
        ("memory://lrs2", "is no URL of a store"),
        ("s3://bucket/a{1}", "is no URL of a store"),
        ("simplecache::s3://key:secret@bucket/lrs2", "is no URL of a store"),
        ("gs://bucket/lrs2", "pip install gcsfs"),
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


def test_a_bucket_that_is_not_there_is_named(corpus: Corpus, server: S3Server, capsys: Any) -> None:
    words = ["--conf_dir", corpus.config_file, "--shards", "s3://nowhere/lrs2"]
    outcome = run_main(build_cli.main, words, capsys)
    assert outcome.code == 2
    assert "s3://nowhere/lrs2" in outcome.err
    assert "no such bucket" in outcome.err


def test_what_needs_a_folder_says_so(corpus: Corpus, server: S3Server, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = run_main(build_cli.main, ["--conf_dir", corpus.config_file, "--shards", URL], capsys)
    assert outcome.code == 2
    assert "need a folder that all of them share" in outcome.err


def test_an_overwrite_that_can_store_nothing_leaves_the_old_store_and_nothing_else(
    build: Any, inspect: Any, server: S3Server, corpus: Corpus
) -> None:
    build()
    before = objects(server)
    mouths = {path: path.read_bytes() for names in corpus.names.values() for path in map(corpus.mouth, names)}
    for path in mouths:
        path.write_bytes(b"no npz")
    refused = build("--overwrite")
    assert refused.code == 2
    assert f"{URL}: --overwrite could store none of 9 utterances" in refused.err
    assert objects(server) == before
    for path, content in mouths.items():
        path.write_bytes(content)
    assert build().code == 0
    assert build("--overwrite").code == 0
    assert inspect("--verify", "--against", corpus.config_file).code == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"{ no json", "is damaged"), (b"[]", "not a store of this format"), (b"{}", "not a store of this format")],
)
def test_a_record_that_cannot_be_read_is_named(build: Any, server: S3Server, content: bytes, said: str) -> None:
    build()
    server.write(f"{PREFIX}/store.json", content)
    for flag in ("--compact", "--abandon", "--overwrite"):
        refused = build(flag)
        assert refused.code == 2
        assert f"error: {URL}/store.json: {said}" in refused.err
        assert "--reindex" not in refused.err  # which works on folders alone


def test_a_claim_that_cannot_be_taken_back_does_not_hide_how_the_build_ended(build: Any, server: S3Server) -> None:
    server.rules.append(Rule(lambda verb, path: verb == "DELETE" and CLAIM_PREFIX in path, "500", 100))
    outcome = build()
    assert outcome.code == 0
    assert f"{CLAIM_PREFIX}" in outcome.err and "the next build is refused for 10 minutes" in outcome.err


def test_digests_are_those_of_the_bytes_in_the_bucket(build: Any, server: S3Server, inspect: Any) -> None:
    build()
    name = f"{PREFIX}/train-000000.tar"
    content = bytearray(server.read(name))
    content[700] ^= 1
    server.write(name, bytes(content))
    shown = inspect("--verify")
    assert shown.code == 1
    assert f"{URL}/train-000000.tar: its digest is" in shown.out
    assert "delete this object and its .index beside it, and run build-shards" in shown.out
    assert f"  {URL}/train-000000.index" in shown.out
    assert xxhash.xxh3_64_hexdigest(bytes(content)) in shown.out


def test_a_reader_goes_on_with_what_it_opened_although_another_one_fetched_something_else_of_that_name(
    build: Any, server: S3Server
) -> None:
    build()
    reader = open_reader(URL, "train")
    expected = [reader.read(row).tobytes() for row in range(5)]
    for name in server.names(PREFIX):
        server.delete(f"{PREFIX}/{name}")
    build("--set", "videonet.videonet_config.seed=1")
    other = open_reader(URL, "train")
    assert other.keys == reader.keys
    assert all(other.read(row).tobytes() != expected[row] for row in range(5))
    reader.files._open.clear()  # as workers of the next epoch begin
    assert [reader.read(row).tobytes() for row in range(5)] == expected


def test_each_attempt_to_write_asks_whether_it_still_may(server: S3Server, tmp_path: Path) -> None:
    asked: list[int] = []

    def ask() -> None:
        asked.append(1)
        if len(asked) > 1:
            raise StoreError("the claim is lost")

    (tmp_path / "file").write_bytes(b"record")
    server.fail("PUT", "store.json", "close", times=20)
    with pytest.raises(StoreError, match="the claim is lost"):
        RemoteStore.at(URL).put(tmp_path / "file", "store.json", ask)
    assert len(asked) == 2 and server.names(PREFIX) == []


def test_a_claim_that_was_too_old_once_does_not_count_again(server: S3Server) -> None:
    with claimed(RemoteStore.at(URL)) as claim:
        claim._written -= claim_module.LOST_AFTER_SECONDS + 1  # the machine slept
        claim.write()
        with pytest.raises(StoreError, match="could not be written for 9 minutes"):
            claim.check()


def test_a_copy_that_a_power_cut_left_short_is_fetched_anew(
    build: Any, inspect: Any, server: S3Server, tmp_path: Path
) -> None:
    build()
    assert inspect().code == 0
    for name in ("store.json", "train.index"):
        (path,) = [path for path in (tmp_path / "cache").rglob(name) if not path.parent.name.endswith("-build")]
        path.write_bytes(path.read_bytes()[:50])
    assert inspect("--verify").code == 0


def test_large_files_of_others_are_not_copied(build: Any, inspect: Any, server: S3Server, tmp_path: Path) -> None:
    build()
    server.write(f"{PREFIX}/faiss.index", b"x" * 1000)
    assert inspect().code == 0
    assert not list((tmp_path / "cache").rglob("faiss.index"))


def test_an_endpoint_that_is_no_url_is_told_of(server: S3Server, monkeypatch: pytest.MonkeyPatch, build: Any) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    outcome = build()
    assert outcome.code == 2
    assert "Invalid endpoint: localhost:9000" in outcome.err and "check endpoint" in outcome.err


def test_what_a_listing_tells_of_an_object_changes_with_it() -> None:
    told = [_described({"name": "a", "size": 3, "changed": when}) for when in (1, 2)]
    assert told[0].version != told[1].version
    assert _described({"name": "a", "size": 3, "ETag": "x"}).version == "x"


def test_few_of_the_copies_that_made_room_stay_open(
    build: Any, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("--utterances_per_shard", 1)
    monkeypatch.setattr(reader_module, "OPEN_DELETED", 2)
    reader = open_reader(URL, "train")
    expected = [reader.read(row).tobytes() for row in range(5)]
    for row in range(5):
        assert reader.read(row).tobytes() == expected[row]
    assert len(reader.files._open) == 5  # all are in the cache
    for path in (tmp_path / "cache").rglob("*.tar"):
        path.unlink()
    again = open_reader(URL, "train")
    for row in range(5):
        assert again.read(row).tobytes() == expected[row]
        shard = int(again.shard_of[row])
        assert drop_copy(again.files.paths[shard], again.files.digests[shard])
    assert list(again.files._open) == [int(again.shard_of[row]) for row in (3, 4)]
