"""What augmentation costs and brings: raw mouths cropped at random, the stored centre crop, and stored views.

A small experiment on the toy corpus: it shows that all ways train alike, not which is best on a real one.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import machine
from tabulate import tabulate
from tqdm import tqdm

from iianet.config.schema import load_config
from shardwriter.build.build import build
from shardwriter.build.options import BuildOptions
from shardwriter.storage.folder import Folder

ROOT = Path(__file__).parent.parent
TOY = ROOT / "configs" / "toy.yml"


def main() -> None:
    """Measure and print; --output also writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = measure(Path(name), arguments.epochs, arguments.seeds, arguments.views)
    headers = ("training mouths", "s / epoch", "last train loss (dB)", "best val SI-SNR (dB)", "of the seeds")
    table = tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
    what = f"The toy corpus, {arguments.epochs} epochs, {arguments.seeds} seeds, random encoder weights."
    text = f"# Augmentation\n\n{machine(torch.device('cpu'))}\n\n{what}\n\n{table}\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


def measure(folder: Path, epochs: int, seeds: int, views: int) -> list[tuple[str, ...]]:
    """A row for each way."""
    subprocess.run([sys.executable, ROOT / "examples" / "toy_corpus.py", "demo/corpus"], cwd=folder, check=True)
    data = "datamodule.data_config"
    root = f"{data}.data_root={folder / 'demo' / 'corpus'}"
    folders = {"train_dir": "tr", "valid_dir": "cv", "test_dir": "tt"}
    wishes = [root, *(f"{data}.{key}={folder / 'demo/corpus/json' / name}" for key, name in folders.items())]
    store = folder / "store"
    config = load_config(TOY, [*wishes, f"shardwriter.views={views}"])
    build(config, Folder(store), BuildOptions(splits=("train", "val"), device=torch.device("cpu")))
    narrow = f"{data}.block_size=1"  # so few utterances would be one block, and take one view an epoch
    ways = {
        "raw, random crop and flip": ["--no_shards", "--set", narrow],
        "stored, centre crop": ["--shards", str(store), "--set", narrow, f"{data}.views=0"],
        f"stored, centre crop and {views} views": ["--shards", str(store), "--set", narrow],
    }
    rows: list[tuple[str, ...]] = []
    for name, words in tqdm(ways.items(), desc="ways"):
        runs = [_run(folder, [*words, *wishes, f"training.seed={seed}"], epochs) for seed in range(seeds)]
        seconds, losses, best = zip(*runs, strict=True)
        spread = ", ".join(f"{value:.2f}" for value in best)
        means = [f"{statistics.mean(values):.2f}" for values in (seconds, losses, best)]
        rows.append((name, *means, spread))
    return rows


def _run(folder: Path, words: list[str], epochs: int) -> tuple[float, float, float]:
    """Seconds per epoch with the start of the run, last training loss and best validation SI-SNR of one run."""
    started = time.monotonic()
    command = [sys.executable, str(ROOT / "train.py"), "--conf_dir", str(TOY), *words, f"training.epochs={epochs}"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    seconds = (time.monotonic() - started) / epochs
    results = folder / "Experiments" / "checkpoint" / "toy"
    history = torch.load(results / "last.ckpt", weights_only=True)["history"]
    return seconds, history[-1]["train_loss"], -min(row["val_loss"] for row in history)


if __name__ == "__main__":
    main()
