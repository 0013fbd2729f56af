"""How near does build-shards come to its encoder? Clips per second of both, in one run.

    python benchmarks/building.py [--clips 96] [--batch_size 32] [--rounds 5] [--device cpu] [--output FILE.md]

The limit is the same encoder object on ready tensors at the same batch. The build reads npz, inflates, digests, crops,
encodes, and writes shards. Rounds alternate, and ratios are of rounds side by side, since machines are noisy.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from machine import machine
from tabulate import tabulate
from tqdm import tqdm

from configs.schema import Config, load_config
from iianet.encoder_source import EncoderSource
from iianet.mouth import FPS, FRAME_SIZE, center_crop
from iianet.video_encoder import VideoEncoder
from shardwriter.format import Identity
from shardwriter.generation import Generations
from shardwriter.identity import identity_of
from shardwriter.manifest import load_manifests
from shardwriter.tasks import Encoding, run_tasks
from shardwriter.work import Work

FRAMES = 50


def main() -> None:
    """Measure and print; --output also writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        config = make_corpus(Path(folder), arguments.clips, arguments.batch_size)
        rows = measure(config, Path(folder), device, arguments.rounds)
    text = report(rows, machine(device, "pyarrow"), arguments)
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


def make_corpus(folder: Path, clips: int, batch_size: int) -> Config:
    """Clips of 50 frames that compress about as real mouths do, in IIANet's layout; one short wav stands for all."""
    random = np.random.default_rng(0)
    (folder / "mouths").mkdir()
    soundfile.write(folder / "silence.wav", np.zeros(FRAMES * 640, dtype=np.float32), 16000)
    texture = random.normal(128, 30, size=(FRAME_SIZE, FRAME_SIZE))
    for clip in range(clips):
        noise = random.normal(0, 8, size=(FRAMES, FRAME_SIZE, FRAME_SIZE))
        frames = np.clip(texture + noise, 0, 255).astype(np.uint8)
        np.savez_compressed(folder / "mouths" / f"clip_{clip:04d}.npz", data=frames)
    for split in ("tr", "cv", "tt"):
        names = [f"clip_{clip:04d}" for clip in range(clips if split == "tr" else 0)]
        pairs = list(zip(names[::2], names[1::2], strict=True))
        lists = {
            "mix": [["silence.wav", FRAMES * 640] for _ in pairs],
            "s1": [["silence.wav", f"mouths/{first}.npz", FRAMES * 640] for first, _ in pairs],
            "s2": [["silence.wav", f"mouths/{second}.npz", FRAMES * 640] for _, second in pairs],
        }
        (folder / split).mkdir()
        for name, rows in lists.items():
            (folder / split / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    directories = {"train_dir": "tr", "valid_dir": "cv", "test_dir": "tt"}
    data = {name: str(folder / value) for name, value in directories.items()} | {"data_root": str(folder)}
    document = {
        "datamodule": {"data_config": data},
        "exp": {"exp_name": "benchmark"},
        "shardwriter": {"batch_size": batch_size, "utterances_per_shard": 1000},
    }
    (folder / "config.yml").write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
    return load_config(folder / "config.yml")


def measure(config: Config, folder: Path, device: torch.device, rounds: int) -> list[tuple[float, float]]:
    """Clips per second of the limit and of the build, round by round."""
    source = EncoderSource.from_config(config)
    encoder = source.load(device)
    identity = identity_of(source, encoder.fingerprint(), "float16")
    mouths = sorted((folder / "mouths").glob("*.npz"))
    ready = [center_crop(torch.from_numpy(np.load(path, allow_pickle=False)["data"])).to(device) for path in mouths]
    encoder.encode(ready[: config.shardwriter.batch_size])
    rates = []
    for number in tqdm(range(rounds), desc="rounds", leave=False):
        limit = _limit(encoder, ready, config.shardwriter.batch_size)
        rates.append((limit, _build(config, folder / f"store-{number}", encoder, identity, device)))
    return rates


def _limit(encoder: VideoEncoder, ready: list[torch.Tensor], batch_size: int) -> float:
    started = time.monotonic()
    for start in range(0, len(ready), batch_size):
        for embedding in encoder.encode(ready[start : start + batch_size]):
            embedding.cpu()
    return len(ready) / (time.monotonic() - started)


def _build(config: Config, store: Path, encoder: VideoEncoder, identity: Identity, device: torch.device) -> float:
    """From the published plan to the last published shard: what grows with the corpus."""
    store.mkdir()
    manifests = load_manifests(config, ("train",))
    manifest = manifests["train"]
    generations = Generations.open(store)
    work = {"train": Work(manifest=manifest, new=range(len(manifest.utterances)))}
    generations.extend(work, identity, config.shardwriter.utterances_per_shard, manifest.data_root)
    tasks = list(generations.active[0].tasks(("train",)))
    encoding = Encoding(
        encoder=encoder,
        device=device,
        dtype="float16",
        fps=FPS,
        batch_size=config.shardwriter.batch_size,
        num_workers=config.shardwriter.num_workers,
    )
    started = time.monotonic()
    run_tasks(store, manifest.data_root, tasks, encoding, _Silent())
    return len(manifest.utterances) / (time.monotonic() - started)


class _Silent:
    """Fails on what should not happen."""

    def encoded(self, split: str, key: str) -> None:
        """Nothing to show."""

    def failed(self, split: str, key: str, mouth: str, reason: str) -> None:
        """The made clips are fine."""
        sys.exit(f"{split} {key}: {mouth}: {reason}")

    def published(self, shard: str, stored_bytes: int) -> None:
        """Nothing to show."""


def report(rates: list[tuple[float, float]], where: str, arguments: argparse.Namespace) -> str:
    """The table, in Markdown."""
    limits, builds = zip(*rates, strict=True)
    ratios = [build / limit for limit, build in rates]
    rows = [
        ("the encoder on ready tensors (limit)", *_spread(limits)),
        ("build-shards, npz to published shard", *_spread(builds)),
        ("ratio, round by round", *_spread(ratios)),
    ]
    table = tabulate(rows, headers=["clips/s", "median", "lowest", "highest"], floatfmt=".2f", tablefmt="github")
    options = (
        f"{arguments.clips} clips of {FRAMES} frames, batch {arguments.batch_size}, {arguments.rounds} rounds, float32"
    )
    return f"# Building\n\n{where}\n\n{options}\n\n{table}\n"


def _spread(values: tuple[float, ...] | list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


if __name__ == "__main__":
    main()
