"""Ranks as torchrun and Slurm start them: processes of their own."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.builds import contents
from helpers.corpus import Corpus, make_corpus

SMALL = "shardwriter.utterances_per_shard=1"


def words(corpus: Corpus, store: Path) -> list[str]:
    """build-shards of a corpus, as a process of its own."""
    flags = {"--conf_dir": corpus.config_file, "--shards": store, "--device": "cpu", "--set": SMALL}
    return ["-m", "shardwriter.build_cli", *(str(word) for flag in flags.items() for word in flag)]


def start(number: int, arguments: Sequence[str]) -> subprocess.Popen[str]:
    """One of two ranks of a Slurm job."""
    job = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": str(number)}
    environment = {**os.environ, **job}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *arguments], env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Long enough that a rank can be killed within, when its first utterance is stored."""
    return make_corpus(tmp_path_factory.mktemp("long"), {"train": 16, "val": 2, "test": 2}, frames=25)


@pytest.fixture(scope="module")
def one(long_corpus: Corpus) -> Path:
    """The store that one process makes."""
    store = long_corpus.root / "one"
    subprocess.run([sys.executable, *words(long_corpus, store)], check=True)
    return store


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--num_processes", "2")])
def test_ranks_that_slurm_starts_build_one_store(
    long_corpus: Corpus, store: Path, one: Path, flags: Sequence[str]
) -> None:
    ranks = [start(number, [*words(long_corpus, store), *flags]) for number in range(2)]
    said = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    ends = ("is done; the last one to finish sums up", "\nstore: ")
    assert sorted([end in out for end in ends] for out, _ in said) == [[False, True], [True, False]], said
    assert contents(store) == contents(one)


@pytest.mark.slow
def test_a_killed_rank_leaves_its_shards_to_the_other(long_corpus: Corpus, store: Path, one: Path) -> None:
    first = start(0, words(long_corpus, store))
    assert first.stderr is not None
    said = ""
    while not re.search(r"stored=[1-9]", said):
        more = first.stderr.read(1)
        assert more, said
        said += more
    second = start(1, words(long_corpus, store))
    assert second.stderr is not None and second.stdout is not None
    first.kill()
    first.communicate()
    out, err = second.communicate()
    assert second.returncode == 0, err
    assert "\nstore: " in out
    assert contents(store) == contents(one)
    assert not list(store.glob(".tmp-*"))


@pytest.mark.slow
def test_torchrun_starts_ranks_that_build_one_store(long_corpus: Corpus, store: Path, one: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*torchrun, *words(long_corpus, store)], capture_output=True, text=True, check=True)
    assert done.stdout.count("\nstore: ") == 1
    assert contents(store) == contents(one)
