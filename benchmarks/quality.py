"""How well does a small IIANet separate, trained from raw mouths, from stores of each kind, and from no video at all?

    python benchmarks/quality.py [--epochs 4] [--seeds 3] [--output benchmarks/results/quality-toy.md]
    python benchmarks/quality.py --conf_dir CONFIG --set KEY=VALUE ... --output FILE.md     on a corpus of one's own

Every way trains with the same steps, seeds and audio, in a process of its own, by train.py; evaluate.py then gives the
SI-SNRi of the test split. Without --conf_dir the toy corpus is made, with test voices that training never heard. Audio
alone is the float32 store with embeddings of zeros. The picture beside the output shows each seed.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import torch
from machine import machine
from tabulate import tabulate
from tqdm import tqdm

from iianet.config.schema import load_config
from iianet.drawing import drawing

ROOT = Path(__file__).parents[1]
TOY = ROOT / "configs" / "toy.yml"
BLIND = "audio alone"
COMMAND = """
import atexit, re, sys
from importlib import import_module
from pathlib import Path
home, peak, sees, command = sys.argv[1:5]
sys.path.insert(0, home)
def note():
    Path(peak).write_text(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
atexit.register(note)
if sees == "blind":
    from iianet.encoder.lazy_encoder import LazyEncoder
    LazyEncoder.complete = lambda _, batch: batch.embedding.float() * 0
import_module(command).main(sys.argv[5:])
"""
"""Runs a command of ours, with embeddings of zeros where it is blind, and notes the peak memory of its process."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Of one way and seed: SI-SNRi of the test split (dB), seconds of training, peak memory (bytes)."""

    improvement: float
    seconds: float
    peak: int


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus, and the words by which every command finds it."""

    folder: Path
    words: Sequence[str]

    def run(self, *words: object) -> None:
        """Run a command of ours; it fails only where its exit code is neither 0 nor 3 (some npz cannot be used)."""
        command = [sys.executable, *map(str, words), *self.words]
        ended = subprocess.run(command, cwd=self.folder, check=False, capture_output=True, text=True)
        if ended.returncode not in (0, 3):
            sys.exit(f"{' '.join(command)}\n{ended.stderr[-3000:]}")

    def store(self, name: str, *words: str) -> list[str]:
        """Build a store; returns the flags that train from it."""
        build = ["-m", "shardwriter.build_cli", "--data_split", "all", "--shards", self.folder / name]
        self.run(*build, *words)
        return ["--shards", str(self.folder / name)]


def main() -> None:
    """Measure and print; --output also writes it, with a picture beside it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--conf_dir", type=Path, help="of a corpus; by default a toy corpus is made")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="as in every command")
    parser.add_argument("--utterances", type=int, default=200, help="of the toy corpus")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quality-") as name:
        corpus = _corpus(arguments, Path(name))
        runs = {way: list(found) for way, found in _measure(corpus, arguments)}
    text = _report(runs, arguments)
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
        _draw(runs, arguments.output.with_suffix(".png"))


def _corpus(arguments: argparse.Namespace, folder: Path) -> Corpus:
    wishes = [*arguments.set, f"training.epochs={arguments.epochs}", "exp.exp_name=quality", "training.loggers=[]"]
    if arguments.conf_dir is not None:
        return Corpus(folder=folder, words=["--conf_dir", str(arguments.conf_dir.absolute()), "--set", *wishes])
    made = [ROOT / "examples" / "toy_corpus.py", "demo/corpus", "--utterances", arguments.utterances]
    subprocess.run([sys.executable, *map(str, made)], cwd=folder, check=True, capture_output=True)
    return Corpus(folder=folder, words=["--conf_dir", str(TOY), "--set", *wishes])


def _measure(corpus: Corpus, arguments: argparse.Namespace) -> Iterator[tuple[str, list[Run]]]:
    """Way by way, its runs, seed by seed."""
    narrow = "datamodule.data_config.block_size=10"  # else so few utterances take one view an epoch
    ways: Mapping[str, Sequence[str]] = {
        "stored, float32": corpus.store("float32", "--dtype", "float32"),
        "stored, float16": corpus.store("float16"),
        "stored, int8": corpus.store("int8", "--dtype", "int8"),
        f"stored, float16, {arguments.views} views": corpus.store("views", "--views", str(arguments.views)),
        "raw mouths, random crop and flip": ["--no_shards"],
        BLIND: corpus.store("float32"),
    }
    bar = tqdm(total=len(ways) * arguments.seeds, desc="trainings")
    for way, flags in ways.items():
        runs = []
        for seed in range(arguments.seeds):
            runs.append(_train(corpus, way, flags, [f"training.seed={seed}", narrow]))
            bar.update()
        yield way, runs
    bar.close()


def _train(corpus: Corpus, way: str, flags: Sequence[str], wishes: Sequence[str]) -> Run:
    peak, figures = corpus.folder / "peak", corpus.folder / "figures"
    best = corpus.folder / "Experiments/checkpoint/quality/best_model.pth"
    own = ["-c", COMMAND, ROOT, peak, "blind" if way == BLIND else "sees"]
    start = time.monotonic()
    corpus.run(*own, "iianet_cli.train_cli", *flags, "--set", *wishes)
    seconds, bytes_used = time.monotonic() - start, 1024 * int(peak.read_text())
    shutil.rmtree(figures, ignore_errors=True)
    flags = [*flags, "--checkpoint", str(best), "--metrics", "si_snr", "--out", str(figures)]
    corpus.run(*own, "iianet_cli.evaluate_cli", *flags)
    found = json.loads((figures / "summary.json").read_text(encoding="utf-8"))["figures"]["si_snri"]
    return Run(improvement=found["mean"], seconds=seconds, peak=bytes_used)


def _report(runs: Mapping[str, Sequence[Run]], arguments: argparse.Namespace) -> str:
    config = load_config(arguments.conf_dir or TOY, arguments.set)
    what = arguments.conf_dir.stem if arguments.conf_dir else f"the toy corpus, {arguments.utterances} utterances"
    rows = [
        [
            way,
            f"{statistics.mean(run.improvement for run in own):.2f}",
            " ".join(f"{run.improvement:.2f}" for run in own),
            f"{statistics.median(run.seconds for run in own):.0f}",
            f"{max(run.peak for run in own) / 1e9:.2f}",
        ]
        for way, own in runs.items()
    ]
    headers = ["trained from", "SI-SNRi (dB)", "of each seed", "training (s)", "peak memory (GB)"]
    network = config.audionet.audionet_config
    return (
        f"# Quality: {what}\n\n{machine(torch.device('cpu'))}\n\nTest split, {arguments.epochs} epochs, "
        f"{len(next(iter(runs.values())))} seeds; network: {network.num_blocks} iterations, {network.in_channels} "
        f"channels; encoder weights: {'random' if config.videonet.videonet_config.pretrain is None else 'published'}."
        f"\n\n{tabulate(rows, headers=headers, tablefmt='github', disable_numparse=True)}\n"
    )


def _draw(runs: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Draw the SI-SNRi of each seed, and their mean, way by way."""
    with drawing({"font.size": 9}, figsize=(7.2, 0.5 + 0.45 * len(runs))) as canvas:
        axis = canvas.subplots()
        for place, own in enumerate(reversed(list(runs.values()))):
            values = [run.improvement for run in own]
            axis.plot(values, [place] * len(values), "o", color="#4477aa", alpha=0.7, markersize=5)
            axis.plot([statistics.mean(values)] * 2, [place - 0.25, place + 0.25], color="#ee6677", linewidth=2)
        names = [way.replace(", random crop", ",\nrandom crop") for way in reversed(list(runs))]
        axis.set_yticks(range(len(runs)), names)
        axis.set_xlabel("SI-SNRi on the test split (dB): each seed, and the mean")
        axis.grid(axis="x", color="0.9")
        canvas.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
