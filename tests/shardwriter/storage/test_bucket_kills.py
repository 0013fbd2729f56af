"""Builds into a bucket that end at any write: what lies there is always whole, and the next build completes it."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver
from pathlib import Path

import pytest
from helpers.bucket import PREFIX, URL, bucket
from helpers.builds import change_mouth, edited, quick_encoder
from helpers.commands import Outcome, run_main
from helpers.corpus import Corpus, make_corpus
from helpers.s3 import Kill, S3Server

from shardwriter import build_cli, inspect_cli
from shardwriter.storage import objects
from shardwriter.storage.lease import LEASE_FILE

DEAD = 2**22 + 1
"""Above the highest process number."""
COMMANDS = {
    "extend": (),
    "overwrite": ("--overwrite", "--dtype", "float32"),
    "compact": ("--compact", "--set", "shardwriter.keep_replaced_days=0"),
}
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["shardwriter.build_cli", "shardwriter.inspect_cli", "helpers.builds", "helpers.bucket"]
)


def _command(words: list[str], environment: dict[str, str], output: Path) -> None:
    """A command as a process of its own."""
    os.environ.update(environment)
    with output.open("w") as stream:
        os.dup2(stream.fileno(), sys.stdout.fileno())
        os.dup2(stream.fileno(), sys.stderr.fileno())
    main = {"build": build_cli.main, "inspect": inspect_cli.main}[words[0]]
    with quick_encoder():
        main(words[1:])


class Machine:
    """Runs commands with a cache of its own."""

    def __init__(self, server: S3Server, cache: Path) -> None:
        self.server = server
        self.cache = cache
        self.output = cache.with_suffix(".txt")

    def run(self, *words: object, at: int = 10**9, is_carried_out: bool = False) -> tuple[int | None, int]:
        """A command, which may be killed at a write. Returns its exit code, and how many writes there were."""
        environment = {**os.environ, "XDG_CACHE_HOME": str(self.cache)}
        process = _context.Process(target=_command, args=([str(word) for word in words], environment, self.output))
        process.start()
        assert process.pid is not None
        self.server.kill = Kill(process.pid, at, is_carried_out)
        process.join(120)
        writes, self.server.kill = self.server.kill.writes, None
        return process.exitcode, writes

    def succeed(self, *words: object) -> int:
        """A command that ends well. Returns how many writes there were."""
        code, writes = self.run(*words)
        assert code == 0, self.output.read_text()
        return writes


@pytest.fixture(scope="module")
def preloaded() -> None:
    """Start the process that commands are forked from. It loads what PYTHONPATH leads to, and skips the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus", {"train": 5, "val": 2, "test": 2})


@pytest.fixture
def server(s3: S3Server, tmp_path: Path) -> Iterator[S3Server]:
    with bucket(s3, tmp_path / "unused") as running:
        yield running


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "command", ["extend", *(pytest.param(name, marks=pytest.mark.slow) for name in ("overwrite", "compact"))]
)
def test_a_build_that_ends_before_any_of_its_writes_is_completed_by_the_next(
    command: str,
    server: S3Server,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(objects, "ATTEMPTS", 1)
    words = ["--conf_dir", corpus.config_file, "--shards", URL, "--device", "cpu"]

    def build(*flags: object) -> Outcome:
        return run_main(build_cli.main, [*words, *flags], capsys)

    def count_writes(*flags: object) -> int:
        server.kill = Kill(None, at=10**9)
        assert build(*flags).code == 0
        writes, server.kill = server.kill.writes, None
        return writes

    assert build("--limit", 3, "--utterances_per_shard", 2).code == 0
    change_mouth(corpus.mouth(corpus.names["train"][0]))
    if command != "extend":
        assert build().code == 0
    earlier = _objects(server)
    writes = count_writes(*COMMANDS[command])
    expected = _objects(server)
    assert writes > 8
    for at in range(1, writes - 1):  # the first makes the lease, the last deletes it
        _put_back(server, earlier)
        server.kill = Kill(None, at)
        assert build(*COMMANDS[command]).code == 2, f"write {at} of {writes}"
        server.kill = None
        _let_holder_die(server)
        shown = run_main(inspect_cli.main, [URL, "--verify"], capsys)
        assert shown.code == 0, f"write {at} of {writes}: {shown}"
        again = build(*_to_resume(server, earlier, COMMANDS[command]))
        assert again.code == 0, f"write {at} of {writes}: {again}"
        assert _without_times(_objects(server)) == _without_times(expected), f"write {at} of {writes}"


@pytest.mark.slow
@pytest.mark.usefixtures("preloaded")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_build_that_is_killed_at_any_write_is_completed_by_the_next_on_any_machine(
    command: str, server: S3Server, corpus: Corpus, tmp_path: Path
) -> None:
    words = ["build", "--conf_dir", corpus.config_file, "--shards", URL, "--device", "cpu"]
    first = Machine(server, tmp_path / "first")
    first.succeed(*words, "--limit", 3, "--utterances_per_shard", 2)
    change_mouth(corpus.mouth(corpus.names["train"][0]))
    if command != "extend":
        first.succeed(*words)
    earlier, asked = _objects(server), [*words, *COMMANDS[command]]
    shutil.copytree(first.cache, tmp_path / "earlier")
    writes = first.succeed(*asked)
    expected = _objects(server)
    assert writes > 8
    for at in range(writes):
        _put_back(server, earlier)
        shutil.rmtree(first.cache)
        shutil.copytree(tmp_path / "earlier", first.cache)
        assert first.run(*asked, at=at, is_carried_out=at % 2 == 0)[0] == -signal.SIGKILL
        next_one = first if at % 3 else Machine(server, tmp_path / f"next{at}")
        next_one.succeed(*words, *_to_resume(server, earlier, COMMANDS[command]))
        assert _without_times(_objects(server)) == _without_times(expected), f"write {at} of {writes}"
    Machine(server, tmp_path / "reader").succeed("inspect", URL, "--verify", "--against", corpus.config_file)


def _to_resume(server: S3Server, earlier: dict[str, bytes], flags: Sequence[str]) -> list[str]:
    """Flags of the command that completes one with these flags: --overwrite would start again once it has counted."""
    counts = _plans(server.read(f"{PREFIX}/store.json")) != _plans(earlier["store.json"])
    return [flag for flag in flags if not (counts and flag == "--overwrite")]


def _let_holder_die(server: S3Server) -> None:
    """Let the lease that a build left be that of a process that has died."""
    lease = json.loads(server.read(f"{PREFIX}/{LEASE_FILE}"))
    server.write(f"{PREFIX}/{LEASE_FILE}", json.dumps({**lease, "pid": DEAD}).encode())


def _objects(server: S3Server) -> dict[str, bytes]:
    return {name: server.read(f"{PREFIX}/{name}") for name in server.names(PREFIX)}


def _put_back(server: S3Server, content_of: dict[str, bytes]) -> None:
    for name in server.names(PREFIX):
        server.delete(f"{PREFIX}/{name}")
    for name, content in content_of.items():
        server.write(f"{PREFIX}/{name}", content)


def _plans(record: bytes) -> list[str]:
    plans: list[str] = json.loads(record)["plans"]
    return plans


def _without_times(content_of: dict[str, bytes]) -> dict[str, bytes]:
    """The same, without when a plan was replaced."""
    record = json.loads(content_of["store.json"])
    retired = sorted(record.get("retired", {}))
    return {**content_of, "store.json": edited(content_of["store.json"], retired=retired)}
