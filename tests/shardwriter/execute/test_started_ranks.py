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


@pytest.fixture
def long_corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "long", {"train": 16, "val": 2, "test": 2}, frames=50)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--num_processes", "2")])
def test_ranks_that_slurm_starts_build_one_store(
    tmp_path: Path, long_corpus: Corpus, store: Path, flags: Sequence[str]
) -> None:
    ranks = [start(number, [*words(long_corpus, store), *flags]) for number in range(2)]
    said = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    ends = ("is done; the last one to finish sums up", "\nstore: ")
    assert sorted([end in out for end in ends] for out, _ in said) == [[False, True], [True, False]], said
    subprocess.run([sys.executable, *words(long_corpus, tmp_path / "one")], check=True)
    assert contents(store) == contents(tmp_path / "one")


@pytest.mark.slow
def test_a_killed_rank_leaves_its_shards_to_the_other(tmp_path: Path, long_corpus: Corpus, store: Path) -> None:
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
    subprocess.run([sys.executable, *words(long_corpus, tmp_path / "one")], check=True)
    assert contents(store) == contents(tmp_path / "one")
    assert not list(store.glob(".tmp-*"))


@pytest.mark.slow
def test_torchrun_starts_ranks_that_build_one_store(tmp_path: Path, long_corpus: Corpus, store: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*torchrun, *words(long_corpus, store)], capture_output=True, text=True, check=True)
    assert done.stdout.count("\nstore: ") == 1
    subprocess.run([sys.executable, *words(long_corpus, tmp_path / "one")], check=True)
    assert contents(store) == contents(tmp_path / "one")
