"""How fast does build-shards encode, beside its own encoder, and beside one npz for each clip?

    python benchmarks/building.py [--clips 64] [--batch_size 32] [--rounds 5] [--device cpu] [--output FILE.md]

The limit is the same encoder object on ready tensors at the same batch. The build reads npz, inflates, digests, crops,
encodes, and writes shards. The earlier script's way: one clip at a time through the network as published, preprocessed
in float64, each embedding saved as a compressed npz. Rounds alternate, and ratios are of one round, since machines are
noisy.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from machine import machine
from made_corpus import make_clips
from made_utterances import FRAMES
from tabulate import tabulate
from tqdm import tqdm

from iianet.config.schema import Config
from iianet.encoder.clip_encoder import ClipEncoder
from iianet.encoder.kernels import PRECISIONS, default_kernels
from iianet.encoder.lip_network import LipNetwork
from iianet.encoder.mouth import CROP_SIZE, FRAME_SIZE, MEAN, STD, center_crop
from iianet.encoder.protocol import Encoder
from shardwriter.corpus.manifest import load_manifests
from shardwriter.corpus.planning import plan_utterances
from shardwriter.encode.clips import Clip, read_clip
from shardwriter.encode.encoded import EncodedClips
from shardwriter.encode.write_shards import Event, NotStored, write_shards
from shardwriter.storage.folder import Folder
from shardwriter.store.identity import identity_of


class Bench(NamedTuple):
    """What all ways share."""

    config: Config
    folder: Path
    mouths: list[Path]
    device: torch.device


def main() -> None:
    """Measure and print; --output also writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = make_clips(folder, arguments.clips, arguments.batch_size, arguments.num_workers)
        bench = Bench(config, folder, sorted((folder / "mouths").glob("*.npz")), device)
        rates, kernels = measure(bench, arguments.rounds)
        reading = read_alone(bench)
    text = report(rates, kernels, reading, machine(device, "pyarrow"), arguments)
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


def measure(bench: Bench, rounds: int) -> tuple[dict[str, list[float]], list[str]]:
    """Clips per second of every way, round by round; and the kernels of each precision."""
    source = bench.config.encoder_source()
    network = ClipEncoder.load_network(source.pretrain, source.seed)
    chosen = {name: default_kernels(bench.device, name) for name in PRECISIONS}
    encoders = {name: source.load(bench.device, kernels) for name, kernels in chosen.items()}
    ways: dict[str, Callable[[int], None]] = {}
    for name, encoder in encoders.items():
        ways[f"{name}: the encoder on ready tensors (limit)"] = _limit(bench, encoder)
        ways[f"{name}: build-shards, npz to published shard"] = _build(bench, encoder)
    ways["float32: the earlier script's way"] = _earlier(bench, network.to(bench.device))
    for way in ways.values():
        way(-1)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in tqdm(range(rounds), desc="rounds", leave=False):
        for name, way in ways.items():
            started = time.monotonic()
            way(number)
            rates[name].append(len(bench.mouths) / (time.monotonic() - started))
    return rates, [f"{name}: {kernels.memory_format}, {kernels.max_frames} frames" for name, kernels in chosen.items()]


def _limit(bench: Bench, encoder: Encoder) -> Callable[[int], None]:
    ready = [center_crop(torch.from_numpy(np.load(path, allow_pickle=False)["data"])) for path in bench.mouths]
    ready = [frames.to(bench.device) for frames in ready]

    def run(number: int) -> None:  # noqa: ARG001
        size = bench.config.shardwriter.batch_size
        for start in range(0, len(ready), size):
            pack = ready[start : start + size]
            encoder.columns(torch.cat(pack), list(map(len, pack))).cpu()

    return run


def _build(bench: Bench, encoder: Encoder) -> Callable[[int], None]:
    """From the manifest to the last published shard."""
    source = bench.config.encoder_source()
    identity = identity_of(source, encoder.fingerprint, encoder.kernels, "float16")

    def run(number: int) -> None:
        folder = bench.folder / f"store-{encoder.kernels.dtype}-{number}"
        folder.mkdir()
        manifest = load_manifests(bench.config, ("train",))["train"]
        rows = np.arange(len(manifest.utterances))
        per_shard = bench.config.shardwriter.utterances_per_shard
        plan = plan_utterances("extend", [], identity, {"train": (manifest, rows)}, per_shard)
        clips = EncodedClips(
            data_root=manifest.data_root,
            encoder_source=bench.config.encoder_source(),
            settings=bench.config.shardwriter,
            identity=identity,
            encoder=encoder,
        )
        write_shards(Folder(folder), plan.tasks(), clips.open(bench.device), _fail)

    return run


def _earlier(bench: Bench, network: LipNetwork) -> Callable[[int], None]:
    border = (FRAME_SIZE - CROP_SIZE) // 2

    def run(number: int) -> None:
        folder = bench.folder / f"npz-{number}"
        folder.mkdir()
        for path in bench.mouths:
            frames = np.load(path, allow_pickle=False)["data"] / 255.0
            crop = (frames[:, border:-border, border:-border] - MEAN) / STD
            clip = torch.FloatTensor(crop)[None, None].to(bench.device)
            embedding = network(clip)[0].cpu().numpy()
            np.savez_compressed(folder / f"{path.stem}_embedding.npz", data=embedding)

    return run


def read_alone(bench: Bench) -> float:
    """Clips per second of reading alone: npz to crops, by as many threads as the build has."""
    rows = [{"key": path.stem, "mouth": f"mouths/{path.name}", "audio": []} for path in bench.mouths]
    read = partial(read_clip, data_root=bench.folder)
    started = time.monotonic()
    with ThreadPoolExecutor(bench.config.shardwriter.num_workers) as pool:
        for clip in pool.map(read, rows):
            assert isinstance(clip, Clip), clip.reason
    return len(rows) / (time.monotonic() - started)


def _fail(event: Event) -> None:
    """End on what should not happen: the made clips are fine."""
    if isinstance(event, NotStored):
        sys.exit(": ".join(event))


def report(
    rates: dict[str, list[float]], kernels: list[str], reading: float, where: str, arguments: argparse.Namespace
) -> str:
    """The tables, in Markdown."""
    names = list(rates)
    earlier = names[-1]
    ratios = [(names[1], names[0]), (names[3], names[2]), (names[1], earlier), (names[3], earlier)]
    of_rounds = {
        f"{one} / {other}": [a / b for a, b in zip(rates[one], rates[other], strict=True)] for one, other in ratios
    }
    options = (
        f"{arguments.clips} clips of {FRAMES} frames, batch {arguments.batch_size}, {arguments.num_workers} reading "
        f"threads, {arguments.rounds} rounds. Kernels: {'; '.join(kernels)}. "
        f"Reading alone: {reading:.0f} clips/s."
    )
    return f"# Building\n\n{where}\n\n{options}\n\n{_table('clips/s', rates)}\n\n{_table('ratio', of_rounds)}\n"


def _table(what: str, values: dict[str, list[float]]) -> str:
    rows = [(name, statistics.median(found), min(found), max(found)) for name, found in values.items()]
    return tabulate(rows, headers=[what, "median", "lowest", "highest"], floatfmt=".2f", tablefmt="github")


if __name__ == "__main__":
    main()
