"""An hour takes no more memory than its embeddings: audio is read, separated and written in pieces."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers.runs import ROOT

from iianet.checkpoint import save_best_model
from iianet.separator.model import IIANet
from shardwriter.corpus.embedding_npz import write_embedding_npz

SIZES = {
    "out_channels": 4,
    "in_channels": 4,
    "vpre_channels": 2,
    "vin_channels": 2,
    "vout_channels": 2,
    "num_blocks": 1,
    "upsampling_depth": 2,
}
RUN = """
import resource, sys
from iianet_cli import separate_cli
try:
    separate_cli.main(sys.argv[1:])
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
"""The command, and then its largest resident memory, bytes."""
WORDS = ["--overwrite", "--checkpoint", "tiny.pth", "--mixture", "long.wav", "--embedding", "one.npz", "one.npz"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def make_separator(folder: Path) -> None:
    torch.manual_seed(0)
    settings = {f"audionet.audionet_config.{name}": str(value) for name, value in SIZES.items()}
    save_best_model(folder / "tiny.pth", IIANet(**SIZES), {}, settings)


def make_recording(folder: Path, seconds: int) -> None:
    """Write a recording at 44.1 kHz, and an embedding for it."""
    random = np.random.default_rng(0)
    with soundfile.SoundFile(folder / "long.wav", "w", 44_100, 1, "PCM_16") as wav:
        for _ in range(seconds):
            wav.write(random.integers(-9000, 9000, 44_100).astype(np.int16))
    write_embedding_npz(folder / "one.npz", random.standard_normal((2, 25 * seconds), np.float32))


def largest_memory(folder: Path, seconds: int) -> int:
    """Separate two speakers of a recording; returns the largest memory of the process, bytes."""
    make_recording(folder, seconds)
    done = subprocess.run(
        [sys.executable, "-c", RUN, *WORDS], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert soundfile.info(folder / "separated/long/one-2.wav").frames == seconds * 16_000
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    make_separator(tmp_path)
    short, long = largest_memory(tmp_path, 30), largest_memory(tmp_path, 20 * 60)
    samples = 20 * 60 * 16_000
    assert long - short < samples  # bytes: a fourth of what one of the three signals would take at once


@pytest.mark.slow
def test_sigterm_ends_it_and_leaves_nothing(tmp_path: Path) -> None:
    make_separator(tmp_path)
    make_recording(tmp_path, 20 * 60)
    command = [sys.executable, str(ROOT / "separate.py"), *WORDS]
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as running:
        until = time.monotonic() + 60
        while not any(tmp_path.rglob("*.partial")) and running.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        running.terminate()
        _, said = running.communicate(timeout=60)
    assert running.returncode == 143, said
    assert said.splitlines()[-1] == "terminated" and not any((tmp_path / "separated/long").iterdir())


@pytest.mark.slow
def test_help_has_an_example(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "separate.py", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert (
        "example: separate.py --checkpoint Experiments/checkpoint/toy/best_model.pth --mixture talk.wav --mouth" in said
    )
