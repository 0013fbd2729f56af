"""A run that ends by an error ends for good: its loader workers do not keep it."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.corpus import make_corpus
from helpers.runs import ROOT, build_store, run_recorded

WORKERS = ("--set", "datamodule.data_config.num_workers=2", "training.epochs=3")


@pytest.mark.parametrize("mode", ["store", pytest.param("raw", marks=pytest.mark.slow)])
def test_an_error_within_training_ends_the_process(here: Path, mode: str) -> None:
    corpus = make_corpus(here / "corpus", {"train": 6, "val": 3, "test": 2}, frames=5)
    words: tuple[object, ...] = WORKERS
    if mode == "store":
        store = build_store(corpus, "store")
        for tar in store.glob("train-*.tar"):
            content = bytearray(tar.read_bytes())
            content[-2000] ^= 1
            tar.write_bytes(bytes(content))
        words = ("--shards", store, "--on_missing", "error", *WORKERS)
    else:
        for name in corpus.names["train"]:
            corpus.mouth(name).write_bytes(b"no npz")
    ended = run_recorded(corpus, *words, record=Path("record"), timeout=90)
    assert ended.returncode in (1, 2), ended.stderr[-2000:]
    assert ("its digest is" if mode == "store" else "error: ") in ended.stderr


SLOWLY = """
import os, signal, time
from torch.utils.data import DataLoader
from loaders.workers import ignore_termination, start_workers

kill = os.kill
os.kill = lambda *words: (kill(*words), time.sleep(0.2))  # so that each is dead before the next one is killed
loader = DataLoader(range(100), num_workers=3, worker_init_fn=ignore_termination, persistent_workers=True)
batches = start_workers(lambda: iter(loader))
next(batches)
raise ValueError("what ends it")
"""


def test_the_death_of_one_worker_does_not_spare_the_others() -> None:
    """torch raises in the main process when a worker is killed."""
    ended = subprocess.run(
        [sys.executable, "-c", SLOWLY], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith("ValueError: what ends it"), ended.stderr[-2000:]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_worker_outlives_what_schedulers_send_to_all_processes(name: str) -> None:
    """However it was started: a forked one inherits handlers, others do not."""
    program = f"import signal, loaders.workers as w; w.ignore_termination(0); signal.raise_signal(signal.{name})"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=False).returncode == 0
