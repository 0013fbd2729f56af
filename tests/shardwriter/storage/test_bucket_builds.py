"""Builds into a bucket: what is there afterwards, after interruptions, and while others build."""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import xxhash
from helpers.bucket import ATTEMPTS, PREFIX, URL, bucket
from helpers.builds import CPU, build_store, change_mouth, contents, edited
from helpers.commands import Outcome, run_main
from helpers.corpus import Corpus, make_corpus
from helpers.s3 import BUCKET, Fault, Rule, S3Server

from iianet.errors import StoreError
from loaders import reader as reader_module
from loaders.reader import StoreReader, open_reader
from shardwriter import build_cli, inspect_cli
from shardwriter.build.build import build as build_into
from shardwriter.build.options import BuildOptions
from shardwriter.format.names import parse_plan_name, plan_id_of
from shardwriter.storage import bucket as bucket_module
from shardwriter.storage.lease import LEASE_FILE
from shardwriter.storage.locate import Cache, open_storage

NOTHING_KEPT = ("--set", "shardwriter.keep_replaced_days=0")
OTHER_SEED = ("--set", "videonet.videonet_config.seed=1")
SECOND_TRAIN = r"train-\w{10}-000001"
"""The second shard of a plan's train split, as a regular expression."""

Command = Callable[..., Outcome]

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus", {"train": 5, "val": 2, "test": 2})


@pytest.fixture
def server(s3: S3Server, tmp_path: Path) -> Iterator[S3Server]:
    with bucket(s3, tmp_path / "cache") as running:
        yield running


@pytest.fixture
def build(corpus: Corpus, server: S3Server, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*flags: object) -> Outcome:
        return run_main(build_cli.main, ["--conf_dir", corpus.config_file, "--shards", URL, *flags], capsys)

    return run


@pytest.fixture
def inspect(server: S3Server, capsys: pytest.CaptureFixture[str]) -> Command:
    return lambda *flags: run_main(inspect_cli.main, [URL, *flags], capsys)


def objects(server: S3Server) -> dict[str, bytes]:
    """What a build into a folder publishes once: tars, their indexes, and plans. There are some."""
    names = [name for name in server.names(PREFIX) if "-" in name]
    assert names
    return {name: server.read(f"{PREFIX}/{name}") for name in names}


def tars(server: S3Server) -> set[str]:
    return {name for name in server.names(PREFIX) if name.endswith(".tar")}


def embeddings(reader: StoreReader) -> dict[str, bytes]:
    """All that a reader reads, by key. There is something."""
    found = {reader.key(row): reader.read(row).tobytes() for row in range(len(reader))}
    assert found
    return found


def test_a_bucket_holds_what_a_folder_would(
    build: Command, inspect: Command, server: S3Server, corpus: Corpus, tmp_path: Path
) -> None:
    outcome = build()
    assert outcome.code == 0
    assert f"store: {URL}\n" in outcome.out
    build_store(corpus, tmp_path / "local")
    assert objects(server) == contents(tmp_path / "local")
    assert {"store.json", "README.md", "train.index", "val.index", "test.index"} < set(server.names(PREFIX))
    assert LEASE_FILE not in server.names(PREFIX)
    shown = inspect("--verify", "--against", corpus.config_file)
    assert shown.code == 0, shown.out
    assert "all as the indexes say" in shown.out


def test_what_is_uploaded_is_not_kept(build: Command, tmp_path: Path) -> None:
    assert build().code == 0
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert [path.suffix for path in left if path.parent.name == "logs"] == [".log"]
    assert not [path for path in left if path.suffix == ".tar" or path.parent.name == "staging"]


def test_building_again_encodes_what_is_new_and_changed_alone(
    build: Command, inspect: Command, server: S3Server, corpus: Corpus, tmp_path: Path
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
    assert "Nothing to do: everything is stored already." in build().out
    assert objects(server) == after


def test_a_build_with_nothing_to_do_writes_nothing_but_its_lease(build: Command, server: S3Server) -> None:
    assert build().code == 0
    server.requests.clear()
    assert build().code == 0
    written = [path for method, path in server.requests if method in ("PUT", "POST", "DELETE")]
    assert {path for path in written if LEASE_FILE not in path} <= {f"/{BUCKET}"}  # a lease is deleted by a POST to it
    assert f"/{BUCKET}/{PREFIX}/{LEASE_FILE}" in written


def test_nothing_in_a_store_but_data_root_holds_a_path_of_the_machine(
    build: Command, server: S3Server, tmp_path: Path
) -> None:
    build()
    held = {name: server.read(f"{PREFIX}/{name}") for name in server.names(PREFIX)}
    record = json.loads(held["store.json"])
    assert record["data_root"] == str(tmp_path / "corpus")
    held["store.json"] = edited(held["store.json"], data_root=None)
    paths = [str(tmp_path).encode(), str(Path.home()).encode(), str(Path.cwd()).encode(), b"testing-"]
    assert {name: path for name, content in held.items() for path in paths if path in content} == {}


def test_an_upload_that_fails_is_made_up_for_by_the_next_build(build: Command, server: S3Server) -> None:
    server.fail("PUT", rf"{SECOND_TRAIN}\.index", "500", times=100)
    outcome = build()
    assert outcome.code == 2
    assert re.search(
        rf"{URL}/{SECOND_TRAIN}\.index: cannot be written after {ATTEMPTS} attempts \(.*500.*\)", outcome.err
    )
    assert not [name for name in server.names(PREFIX) if re.search(rf"{SECOND_TRAIN}\.index", name)]
    server.rules.clear()
    assert build().code == 0
    assert len(tars(server)) == 4
    assert LEASE_FILE not in server.names(PREFIX)


def test_shards_that_an_interrupted_build_left_here_are_uploaded_and_not_encoded_again(
    build: Command, server: S3Server
) -> None:
    server.fail("PUT", r"\.tar", "close", times=10_000)
    assert build("--utterances_per_shard", 1).code == 2  # far more shards than wait to be uploaded
    server.rules.clear()
    assert not tars(server)
    outcome = build()
    assert outcome.code == 0
    left = int(outcome.err.partition(" shards which an earlier run wrote")[0].rpartition(" ")[2])
    encoded = int(outcome.out.partition(" utterances in")[0].rpartition("\n")[2])
    assert left > 0 and left + encoded == 9
    assert len([name for name in server.names(PREFIX) if name.endswith(".index") and "-" in name]) == 9


@pytest.mark.parametrize("damage", ["cut tar", "no tar", "cut index"])
def test_a_shard_left_here_in_part_is_not_uploaded(
    damage: str, build: Command, inspect: Command, server: S3Server, tmp_path: Path
) -> None:
    server.fail("PUT", r"\.tar", "close", times=10_000)
    assert build("--utterances_per_shard", 9).code == 2
    server.rules.clear()
    staged = sorted((tmp_path / "cache").rglob("staging/*.tar"))
    assert staged
    for tar in staged:
        path = tar.with_suffix(".index") if damage == "cut index" else tar
        content = path.read_bytes()
        path.unlink()
        if damage != "no tar":
            path.write_bytes(content[:-100])
    outcome = build()
    assert outcome.code == 0
    assert "which an earlier run wrote" not in outcome.err
    assert inspect("--verify").code == 0


@pytest.mark.parametrize(
    "ending",
    [
        "store.json",
        r"plan-\w{10}.parquet",
        r"train-\w{10}-000000.tar",
        r"train-\w{10}-000000.index",
        "train.index",
        "README.md",
    ],
)
def test_a_build_that_ends_at_any_upload_is_completed_by_the_next(
    ending: str, build: Command, inspect: Command, server: S3Server, corpus: Corpus
) -> None:
    assert build("--limit", 3).code == 0
    server.fail("PUT", ending, "500", times=100)
    assert build().code == 2
    server.rules.clear()
    assert build().code == 0
    shown = inspect("--verify", "--against", corpus.config_file)
    assert shown.code == 0, shown.out
    assert "all as the indexes say" in shown.out


def test_the_card_is_that_of_the_store_although_a_build_ended_before_it(build: Command, server: S3Server) -> None:
    assert build().code == 0
    before = server.read(f"{PREFIX}/store.json")
    card_after_record = Rule(
        lambda verb, path: (
            verb == "PUT" and path.endswith("README.md") and server.read(f"{PREFIX}/store.json") != before
        ),
        "500",
        99,
    )
    server.rules.append(card_after_record)
    assert build("--overwrite", "--dtype", "int8").code == 2
    assert b"float16 array" in server.read(f"{PREFIX}/README.md")
    server.rules.clear()
    assert build().code == 0  # nothing is left to be done but that
    assert b"int8 array" in server.read(f"{PREFIX}/README.md")


@pytest.mark.parametrize(
    "fault",
    [
        "500",
        "close afterwards",
        *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("close", "cut", "500 afterwards")),
    ],
)
def test_faults_that_pass_are_not_noticed(
    fault: Fault, build: Command, inspect: Command, server: S3Server, corpus: Corpus, tmp_path: Path
) -> None:
    names = (r"train-\w{10}-000000.tar", rf"{SECOND_TRAIN}.index", r"plan-\w{10}.parquet", "store.json", LEASE_FILE)
    for ending in names:
        server.fail("PUT", ending, "500" if fault == "cut" else fault, times=2)
    for ending in names[:-1]:
        server.fail("GET", ending, fault, times=2)
    listings = f"/{BUCKET}/?"
    server.fail("GET", listings, "500" if fault == "cut" else fault)
    assert build().code == 0
    shutil.rmtree(tmp_path / "cache")
    shown = inspect("--verify")
    assert shown.code == 0, shown.out + shown.err
    assert not [rule for rule in server.rules if rule.times]
    build_store(corpus, tmp_path / "local")
    assert objects(server) == contents(tmp_path / "local")


def other_machine(tmp_path: Path) -> None:
    """Let what follows run on the other one of two machines."""
    shutil.move(tmp_path / "cache", tmp_path / "moving")
    if (tmp_path / "other").exists():
        shutil.move(tmp_path / "other", tmp_path / "cache")
    shutil.move(tmp_path / "moving", tmp_path / "other")


def assert_no_strays(server: S3Server, inspect: Command, corpus: Corpus, tmp_path: Path, *flags: object) -> None:
    """Assert that the bucket holds no shards but those that count, and that nothing is wrong with these."""
    shutil.rmtree(tmp_path / "cache")
    shown = inspect("--verify", "--json", "--against", corpus.config_file, *flags)
    document = json.loads(shown.out)
    assert (shown.code, document["problems"], document["notes"]) == (0, [], []), shown.out
    named = {parse_plan_name(name) for name in json.loads(server.read(f"{PREFIX}/store.json"))["plans"]}
    assert {plan_id_of(name) for name in server.names(PREFIX)} == {None, *named}


@pytest.mark.parametrize("ending", [r"train-\w{10}-000002.tar", "store.json"])
def test_what_is_there_of_a_plan_that_was_dropped_is_deleted_and_never_counted(
    ending: str, build: Command, inspect: Command, server: S3Server, corpus: Corpus, tmp_path: Path
) -> None:
    assert build("--limit", 3).code == 0
    server.fail("PUT", ending, "500", times=100)
    first: tuple[object, ...] = ("--utterances_per_shard", 1)
    second: tuple[object, ...] = ("--utterances_per_shard", 2)
    if ending != "store.json":
        first = ("--overwrite", "--dtype", "int8", *first)
        second = ("--overwrite", "--dtype", "float32", *second, *NOTHING_KEPT)
    before = server.names(PREFIX)
    assert build(*first).code == 2
    server.rules.clear()
    assert set(before) < set(server.names(PREFIX))
    assert build(*second).code == 0
    assert_no_strays(server, inspect, corpus, tmp_path)


def test_shards_left_here_of_a_plan_that_another_machine_replaced_are_not_uploaded(
    build: Command, inspect: Command, server: S3Server, corpus: Corpus, tmp_path: Path
) -> None:
    server.fail("PUT", r"\.tar", "close", times=10_000)
    assert build().code == 2
    server.rules.clear()
    other_machine(tmp_path)
    for name in server.names(PREFIX):
        server.delete(f"{PREFIX}/{name}")
    assert build(*OTHER_SEED, "--limit", 1).code == 0
    other_machine(tmp_path)
    outcome = build(*OTHER_SEED)
    assert outcome.code == 0 and "which an earlier run wrote" not in outcome.err
    assert_no_strays(server, inspect, corpus, tmp_path, *OTHER_SEED)
    build_store(corpus, tmp_path / "fresh", OTHER_SEED[1])
    assert embeddings(open_reader(URL, "train")) == embeddings(open_reader(tmp_path / "fresh", "train"))


def test_shards_left_here_of_a_plan_that_is_gone_are_not_uploaded(
    build: Command, inspect: Command, server: S3Server, corpus: Corpus, tmp_path: Path
) -> None:
    assert build("--limit", 3).code == 0
    server.fail("PUT", r"\.tar", "close", times=10_000)
    assert build().code == 2
    server.rules.clear()
    other_machine(tmp_path)
    assert build("--overwrite", *OTHER_SEED, *NOTHING_KEPT).code == 0
    other_machine(tmp_path)
    outcome = build(*OTHER_SEED)
    assert outcome.code == 0 and "which an earlier run wrote" not in outcome.err
    assert_no_strays(server, inspect, corpus, tmp_path, *OTHER_SEED)


def test_shards_left_here_of_one_overwrite_are_not_taken_for_those_of_another(
    build: Command, inspect: Command, server: S3Server, corpus: Corpus, tmp_path: Path
) -> None:
    seeds = [("--overwrite", "--set", f"videonet.videonet_config.seed={seed}") for seed in (1, 2)]
    assert build().code == 0
    server.fail("PUT", r"\.tar", "close", times=10_000)
    assert build(*seeds[0]).code == 2
    other_machine(tmp_path)
    assert build(*seeds[1]).code == 2
    other_machine(tmp_path)
    server.rules.clear()
    assert build(*seeds[1], *NOTHING_KEPT).code == 0
    assert_no_strays(server, inspect, corpus, tmp_path, *seeds[1][1:])
    build_store(corpus, tmp_path / "local", "videonet.videonet_config.seed=2")
    assert embeddings(open_reader(URL, "train")) == embeddings(open_reader(tmp_path / "local", "train"))


def test_shards_left_here_that_another_machine_has_built_meanwhile_are_theirs(
    build: Command, inspect: Command, server: S3Server, corpus: Corpus, tmp_path: Path
) -> None:
    server.fail("PUT", r"\.tar", "close", times=10_000)
    assert build("--utterances_per_shard", 2).code == 2
    server.rules.clear()
    other_machine(tmp_path)
    assert build().code == 0
    left = list((tmp_path / "other").rglob("*.tar"))
    for tar in left:  # as another kind of processor would have them: as long, in other digits
        content = bytearray(tar.read_bytes())
        content[700] ^= 1
        tar.write_bytes(bytes(content))
    assert left
    other_machine(tmp_path)
    outcome = build("--compact", *NOTHING_KEPT, "--utterances_per_shard", 8)
    assert outcome.code == 0, outcome.err
    assert inspect("--verify", "--against", corpus.config_file).code == 0


def test_an_overwrite_takes_the_place_of_all_that_was_there(build: Command, inspect: Command, server: S3Server) -> None:
    build()
    before = set(objects(server))
    assert build("--overwrite", "--dtype", "int8", *NOTHING_KEPT).code == 0
    assert not before & set(objects(server))
    shown = inspect("--verify")
    assert shown.code == 0, shown.out
    assert "int8" in shown.out


def test_what_others_keep_below_the_same_prefix_stays(build: Command, inspect: Command, server: S3Server) -> None:
    names = ("train-000001.tar", "train-0123456789.tar", "notes.txt", "old.index", "a/x.tar")
    foreign = {f"{PREFIX}/{name}": name.encode() for name in names}
    for name, content in foreign.items():
        server.write(name, content)
    assert build().code == 0
    assert build("--overwrite", "--dtype", "float32", *NOTHING_KEPT).code == 0
    assert {name: server.read(name) for name in foreign} == foreign
    assert "all as the indexes say" in inspect("--verify").out


def test_large_files_of_others_are_not_copied(
    build: Command, inspect: Command, server: S3Server, tmp_path: Path
) -> None:
    build()
    server.write(f"{PREFIX}/faiss.index", b"x" * 1000)
    shutil.rmtree(tmp_path / "cache")
    assert inspect().code == 0
    assert list((tmp_path / "cache").rglob("train.index*"))
    assert not list((tmp_path / "cache").rglob("faiss.index*"))


def test_a_bucket_is_compacted(
    build: Command, inspect: Command, server: S3Server, corpus: Corpus, tmp_path: Path
) -> None:
    build("--utterances_per_shard", 2)
    change_mouth(corpus.mouth(corpus.names["train"][0]))
    build()
    before = embeddings(open_reader(URL, "train"))
    shutil.rmtree(tmp_path / "cache")
    outcome = build("--compact", *NOTHING_KEPT)
    assert outcome.code == 0, outcome.err
    assert "9 copied, 1 superseded ones left out" in outcome.out
    assert len(tars(server)) == 4
    assert embeddings(open_reader(URL, "train")) == before
    shown = inspect("--verify", "--against", corpus.config_file)
    assert shown.code == 0, shown.out


@pytest.mark.parametrize("how", ["--compact", "--overwrite"])
def test_a_training_elsewhere_goes_on_with_what_was_replaced(
    how: str,
    build: Command,
    inspect: Command,
    server: S3Server,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build("--utterances_per_shard", 2)
    change_mouth(corpus.mouth(corpus.names["train"][0]))
    build()
    old = tars(server)
    plans = json.loads(server.read(f"{PREFIX}/store.json"))["plans"]
    assert len(plans) == 2
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
        reader = open_reader(URL, "train")
    outcome = build(how)
    assert outcome.code == 0, outcome.err
    said = f"replaced shards stay ({', '.join(plans)}): trainings may still read them"
    assert (outcome.out + outcome.err).count(said) == 1
    assert old < tars(server)
    assert not list((tmp_path / "elsewhere").rglob("*.tar"))  # all of it is still to come
    assert embeddings(reader) == embeddings(open_reader(URL, "train"))
    assert list((tmp_path / "elsewhere").rglob("*.tar"))
    shown = inspect("--verify", "--against", corpus.config_file)
    assert shown.code == 0, shown.out
    assert re.search(rf"{plans[0]}: was replaced \(20.*\), and its 5 shards stay while they may be read", shown.out)
    assert build(*NOTHING_KEPT).code == 0
    assert not old & tars(server)
    assert not set(plans) & set(server.names(PREFIX))
    assert inspect("--verify", "--against", corpus.config_file).code == 0


def test_replaced_shards_are_deleted_when_their_days_are_over(
    build: Command, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    build()
    old = tars(server)
    assert build("--overwrite", "--dtype", "int8").code == 0
    assert build().code == 0
    assert old < tars(server)
    record = json.loads(server.read(f"{PREFIX}/store.json"))
    for days, is_kept in ((6, True), (8, False)):
        since = datetime.now(UTC) - timedelta(days=days)
        retired = dict.fromkeys(record["retired"], since.isoformat(timespec="seconds"))
        now = server.read(f"{PREFIX}/store.json")
        server.write(f"{PREFIX}/store.json", edited(now, retired=retired))
        assert build().code == 0
        assert (old < tars(server), bool(old & tars(server))) == (is_kept, is_kept)


def test_a_build_that_another_one_overtakes_commits_nothing(build: Command, server: S3Server) -> None:
    """Its lease was lost unseen, and the other one has changed the store."""
    assert build("--limit", 3).code == 0
    other = edited(server.read(f"{PREFIX}/store.json"), data_root="/elsewhere")

    def overtake(verb: str, path: str) -> bool:
        if verb == "PUT" and "plan-" in path:
            server.write(f"{PREFIX}/store.json", other)
        return False

    server.rules.append(Rule(overtake, "500", 1))
    outcome = build()
    assert outcome.code == 2
    assert f"{URL}/store.json: another build has changed the store since this one opened it" in outcome.err
    assert server.read(f"{PREFIX}/store.json") == other


def run_both(corpus: Corpus, tmp_path: Path) -> list[str]:
    """Build on two machines at once, each with shards of another size. Returns how each ended."""

    def build_on(number: int) -> str:
        storage = open_storage(URL, Cache.at(tmp_path / f"machine{number}"))
        config = corpus.config(f"shardwriter.utterances_per_shard={number}")
        try:
            build_into(config, storage, BuildOptions(device=CPU))
        except StoreError as error:
            return str(error)
        return "done"

    with ThreadPoolExecutor(2) as pool:
        return sorted(pool.map(build_on, (1, 2)))


def test_of_two_builds_at_once_one_goes_on(
    build: Command, inspect: Command, server: S3Server, corpus: Corpus, tmp_path: Path
) -> None:
    assert build("--limit", 3).code == 0
    together = threading.Barrier(2, timeout=60)
    arrived: list[str] = []

    def wait_for_both(verb: str, path: str) -> bool:
        if verb == "PUT" and path.endswith(LEASE_FILE) and len(arrived) < 2:
            arrived.append(path)
            together.wait()
        return False

    server.rules.append(Rule(wait_for_both, "500", 1))
    done, refused = run_both(corpus, tmp_path)
    assert done == "done"
    assert f"{URL}: another build is writing to it (process {os.getpid()} on " in refused
    assert_no_strays(server, inspect, corpus, tmp_path)


def test_of_two_builds_at_once_one_commits_although_neither_sees_the_other(
    build: Command,
    inspect: Command,
    server: S3Server,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert build("--limit", 3).code == 0
    together = threading.Barrier(2, timeout=60)
    commits: list[str] = []

    def wait_for_both(verb: str, path: str) -> bool:
        if verb == "PUT" and path.endswith("store.json") and len(commits) < 2:
            commits.append(path)
            together.wait()
        return False

    server.rules.append(Rule(wait_for_both, "500", 1))
    monkeypatch.setattr(bucket_module, "held_lease", lambda _: nullcontext())
    done, refused = run_both(corpus, tmp_path)
    monkeypatch.undo()
    assert done == "done"
    assert f"{URL}/store.json: another build has changed the store since this one opened it" in refused
    assert len(json.loads(server.read(f"{PREFIX}/store.json"))["plans"]) == 2
    assert build().code == 0
    assert_no_strays(server, inspect, corpus, tmp_path)


def test_a_bucket_that_is_not_there_is_named(
    corpus: Corpus, server: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--conf_dir", corpus.config_file, "--shards", "s3://nowhere/lrs2"]
    outcome = run_main(build_cli.main, words, capsys)
    assert outcome.code == 2
    assert "s3://nowhere/lrs2" in outcome.err
    assert "no such bucket" in outcome.err


def test_what_needs_a_folder_says_so(build: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = build()
    assert outcome.code == 2
    assert "need a folder that all of them share" in outcome.err


def test_an_overwrite_that_can_store_nothing_leaves_the_old_store_and_nothing_else(
    build: Command, inspect: Command, server: S3Server, corpus: Corpus
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


@pytest.mark.parametrize("content", [b"{ no json", b"[]", b"{}"])
def test_a_record_that_cannot_be_read_is_named_and_kept(
    content: bytes, build: Command, inspect: Command, server: S3Server
) -> None:
    build()
    server.write(f"{PREFIX}/store.json", content)
    for flag in ("--compact", "--abandon", "--overwrite"):
        refused = build(flag)
        assert refused.code == 2
        assert f"error: {URL}/store.json: is damaged, or not the record of a store" in refused.err
    assert server.read(f"{PREFIX}/store.json") == content
    assert "copy the store to one" in inspect("--reindex").err  # works on folders alone, and says how to go on


def test_digests_are_those_of_the_bytes_in_the_bucket(build: Command, server: S3Server, inspect: Command) -> None:
    build()
    tar = min(tars(server))
    content = bytearray(server.read(f"{PREFIX}/{tar}"))
    content[700] ^= 1
    server.write(f"{PREFIX}/{tar}", bytes(content))
    shown = inspect("--verify")
    assert shown.code == 1
    assert f"{URL}/{tar}: its digest is" in shown.out
    assert "delete this object and its .index beside it, and run build-shards" in shown.out
    assert f"  {URL}/{tar.removesuffix('.tar')}.index" in shown.out
    assert xxhash.xxh3_64_hexdigest(bytes(content)) in shown.out


def test_a_reader_goes_on_with_what_it_opened_although_another_store_took_its_place(
    build: Command, server: S3Server
) -> None:
    build()
    reader = open_reader(URL, "train")
    expected = embeddings(reader)
    for name in server.names(PREFIX):
        server.delete(f"{PREFIX}/{name}")
    build(*OTHER_SEED)
    other = embeddings(open_reader(URL, "train"))
    assert other.keys() == expected.keys()
    assert all(other[key] != expected[key] for key in other)
    reader.files._open.clear()  # as workers of the next epoch start
    assert embeddings(reader) == expected


def test_a_copy_that_a_power_cut_left_short_is_fetched_anew(build: Command, inspect: Command, tmp_path: Path) -> None:
    build()
    assert inspect().code == 0
    for name in ("store.json", "train.index"):
        (path,) = (tmp_path / "cache").rglob(f"{name}.*")
        path.write_bytes(path.read_bytes()[:50])
    assert inspect("--verify").code == 0


def test_few_of_the_copies_that_made_room_stay_open(
    build: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("--utterances_per_shard", 1)
    monkeypatch.setattr(reader_module, "KEPT_AFTER_DELETION", 2)
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
        assert again.files.tars[int(again.shard_of[row])].forget()
    assert list(again.files._open) == [int(again.shard_of[row]) for row in (3, 4)]
