"""Everything that only a GPU can tell, in one command: parity, steps, building, training, loading.

    python benchmarks/gpu.py [--minutes 8] [--output benchmarks/results/gpu.md]
    python benchmarks/gpu.py --tiny --device cpu --output FILE.md       everything in small, where there is no GPU

The output grows section by section, so that a run that is cut leaves what it has. A section that no longer fits into
the minutes is named and left out; one that fails says why, the others go on, and the exit code is 1. The published
network stands for itself by its own formulas, see former_separator.py.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout, whatever is installed

import building
import torch
from former_separator import former_separator
from machine import machine
from made_corpus import black, lifelike, make_clips
from made_utterances import FRAMES
from tabulate import tabulate
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from iianet.config.schema import Config, load_config
from iianet.encoder.kernels import default_kernels
from iianet.encoder.mouth import CROP_SIZE, FPS
from iianet.losses import pairwise_neg_snr, permutation_invariant
from iianet.separator.model import IIANet
from iianet.training.step_times import StepRecord
from loaders import EmbeddingLoader, ShardedEmbeddings
from tests.helpers.corpus import Corpus, make_corpus

ROOT = Path(__file__).parents[1]
PUBLISHED = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from former_separator import former_separator
from iianet_cli.train_cli import main
with former_separator():
    main(sys.argv[1:])
"""
WARM_UP = 3


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything: of a real run, or of a dry one."""

    batches: Sequence[int] = (3, 8, 16)
    rounds: int = 10
    clips: int = 256
    utterances: int = 160
    steps: int = 30
    frames: int = FRAMES
    settings: Sequence[str] = ()

    @classmethod
    def full(cls) -> "Sizes":
        """The sizes of the published configuration, whatever its corpus."""
        config = load_config(ROOT / "configs/LRS2-IIANet.yml")
        network = config.audionet.audionet_config.model_dump()
        settings = [f"audionet.audionet_config.{name}={value}" for name, value in network.items()]
        data = ["datamodule.data_config.num_workers=8", "datamodule.data_config.pin_memory=true"]
        return cls(settings=[*settings, *data])

    @classmethod
    def tiny(cls) -> "Sizes":
        """Just enough to see every line run."""
        return cls(batches=(2,), rounds=1, clips=4, utterances=10, steps=2, frames=6)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all sections share."""

    device: torch.device
    sizes: Sizes
    folder: Path
    end: float
    failures: list[str] = field(default_factory=list)

    def run(self, *words: object) -> None:
        """Run a command of ours with this Python, as long as there is time.

        Raises:
            SubprocessError: It failed, or took too long.
        """
        command = [sys.executable, *map(str, words)]
        subprocess.run(command, cwd=ROOT, check=True, timeout=max(1.0, self.end - time.monotonic()))

    @property
    def is_over(self) -> bool:
        """Whether the minutes have passed."""
        return time.monotonic() > self.end

    @cached_property
    def corpus(self) -> Corpus:
        """Utterances of one length."""
        return make_corpus(
            self.folder / "corpus",
            {"train": self.sizes.utterances, "val": 4, "test": 2},
            frames=self.sizes.frames,
            draw=black if self.device.type == "cpu" else lifelike,
            compressed=True,
        )

    @cached_property
    def config(self) -> Config:
        """Of the corpus, with the network of the sizes."""
        return self.corpus.config(*self.sizes.settings)

    @cached_property
    def store(self) -> Path:
        """Of the corpus, float16."""
        words = ["--conf_dir", self.corpus.config_file, "--shards", self.folder / "store", "--device", self.device]
        self.run("-m", "shardwriter.build_cli", *words)
        return self.folder / "store"

    def network(self) -> IIANet:
        """A separator with weights of its own, the same each time."""
        torch.manual_seed(0)
        return IIANet(**self.config.audionet.audionet_config.model_dump()).to(self.device)

    def example(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mixture, embedding and target, of noise."""
        torch.manual_seed(batch)
        data, dim = self.config.datamodule.data_config, self.config.audionet.audionet_config.vpre_channels
        samples, frames = round(data.segment * data.sample_rate), round(data.segment * FPS)
        made = torch.randn(batch, samples), torch.randn(batch, dim, frames), torch.randn(batch, samples)
        return made[0].to(self.device), made[1].to(self.device), made[2].to(self.device)


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to take a training step."""

    name: str
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    tf32: bool = False
    bf16: bool = False
    compiled: bool = False
    recorded: bool = False
    keeps_activations: bool = True


WAYS = (
    Way(name="the published formulas, float32, TF32 as torch has it", within=former_separator, tf32=True),
    Way(name="float32"),
    Way(name="float32, tf32", tf32=True),
    Way(name="bf16-mixed", bf16=True),
    Way(name="float32, checkpoint_activations", keeps_activations=False),
    Way(name="float32, compiled", compiled=True),
    Way(name="float32, compiled, cuda_graphs", compiled=True, recorded=True),
    Way(name="bf16-mixed, compiled", bf16=True, compiled=True),
    Way(name="bf16-mixed, compiled, cuda_graphs", bf16=True, compiled=True, recorded=True),
)


def parity(bench: Bench) -> str:
    """The same numbers as on the CPU, in float32 without TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    source = bench.config.encoder_source()
    clips = [
        torch.randint(0, 256, (bench.sizes.frames + lead, CROP_SIZE, CROP_SIZE), dtype=torch.uint8) for lead in range(4)
    ]
    embeddings, estimates, gradients = [], [], []
    for device in (torch.device("cpu"), bench.device):
        encoder = source.load(device, default_kernels(device, "float32"))
        embeddings.append(torch.cat(encoder.encode([clip.to(device) for clip in clips]), 1).cpu())
        model = bench.network().to(device).eval()
        mixture, embedding, target = (each.to(device) for each in bench.example(1))
        estimate = model(mixture, embedding)
        _loss(estimate, target).backward()
        estimates.append(estimate.detach().cpu())
        gradients.append(torch.cat([each.grad.flatten().cpu() for each in model.parameters()]))  # type: ignore[union-attr]
    rows = [
        [name, f"{(one - other).norm() / one.norm():.2g}", f"{(one - other).abs().max():.2g}"]
        for name, (one, other) in {"embeddings": embeddings, "estimates": estimates, "gradients": gradients}.items()
    ]
    return _table(["", "difference of CPU and device, relative", "largest"], rows)


def steps(bench: Bench) -> Iterator[str]:
    """Forward, loss, backward, clipping and Adam, way by way; speed is against the first way of the batch."""
    for batch in bench.sizes.batches:
        yield _row(
            f"batch {batch}", "step (ms)", "examples/s", "speed", "kernels", "device idle", "peak (GB)", head=True
        )
        example, first = bench.example(batch), 0.0
        for way in WAYS:
            if bench.is_over or (way.compiled and batch != bench.sizes.batches[0]):
                continue
            if way.recorded and bench.device.type != "cuda":
                continue
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = way.tf32
            try:
                step = _step(bench, way, example)
                for _ in range(WARM_UP):
                    step()
                _reset_peak(bench.device)
                seconds = statistics.median(_timed(step, bench.device) for _ in range(bench.sizes.rounds))
                peak = _peak(bench.device)
                first = first or seconds
                figures = f"{1e3 * seconds:.1f}", f"{batch / seconds:.1f}", f"{first / seconds:.2f}"
                yield _row(way.name, *figures, *_profiled(step, bench.device, seconds), peak)
            except Exception as error:  # the next way may fit
                bench.failures.append(f"{way.name}: {error}")
                traceback.print_exc()
                yield _row(way.name, f"failed: {type(error).__name__}", *"-----")
        yield ""


def building_shards(bench: Bench) -> str:
    """build-shards beside its encoder and the earlier script's way."""
    folder = bench.folder / "clips"
    folder.mkdir()
    options = argparse.Namespace(clips=bench.sizes.clips, batch_size=32, num_workers=4, rounds=2)
    config = make_clips(folder, options.clips, options.batch_size, options.num_workers)
    shared = building.Bench(config, folder, sorted((folder / "mouths").glob("*.npz")), bench.device)
    rates, kernels = building.measure(shared, options.rounds)
    text = building.report(rates, kernels, building.read_alone(shared), "", options)
    return text.removeprefix("# Building").strip()


def training(bench: Bench) -> Iterator[str]:
    """train.py on the made corpus, raw and from the store; each row is a process of its own."""
    common = ["--conf_dir", bench.corpus.config_file]
    settings = [*bench.sizes.settings, f"datamodule.data_config.batch_size={bench.sizes.batches[0]}"]
    on_gpu, graphs = bench.device.type == "cuda", "store, bf16-mixed, compiled, cuda_graphs"
    settings += ["training.gpus=1"] if on_gpu else []
    common += [word for setting in settings for word in ("--set", setting)]
    record, first = bench.folder / "steps.json", 0.0
    train, raw, shards = [ROOT / "train.py"], ["--no_shards"], ["--shards", bench.store]
    ways: dict[str, tuple[Sequence[object], Sequence[object]]] = {
        "the published formulas and raw data, float32": (
            ["-c", PUBLISHED, Path(__file__).parent],
            [*raw, "--set", "training.tf32=true"],
        ),
        "raw, float32": (train, raw),
        "store, float32": (train, shards),
        "store, bf16-mixed": (train, [*shards, "--precision", "bf16-mixed"]),
        "store, bf16-mixed, compiled": (train, [*shards, "--precision", "bf16-mixed", "--compile"]),
        **({graphs: (train, [*shards, "--precision", "bf16-mixed", "--compile", "cuda_graphs"])} if on_gpu else {}),
    }
    yield _row("way", "examples/s", "speed", "step (ms)", "waits for data", "peak (GB)", head=True)
    for name, (command, flags) in ways.items():
        if bench.is_over:
            return
        record.unlink(missing_ok=True)
        try:
            bench.run(*command, *common, *flags, "--record_steps", bench.sizes.steps, "--record_file", record)
            measured = StepRecord.load(record)
        except (subprocess.SubprocessError, OSError) as error:
            bench.failures.append(f"{name}: {error}")
            yield _row(name, f"failed: {type(error).__name__}", *"----")
            continue
        whole, middle = sum(measured.seconds), 1e3 * statistics.median(measured.seconds)
        rate, waited = measured.examples / whole, sum(measured.waited) / whole
        first = first or rate
        figures = f"{rate:.1f}", f"{rate / first:.2f}", f"{middle:.1f}", f"{100 * waited:.1f} %"
        yield _row(name, *figures, f"{measured.peak_bytes / 1e9:.2f}")


def loading(bench: Bench) -> str:
    """Embeddings from the store to the device, through page-locked memory."""
    rows = []
    for workers in (0, 2):
        pins = bench.device.type == "cuda"
        loader = EmbeddingLoader(
            ShardedEmbeddings(bench.store, "train", batch_size=8), num_workers=workers, pin_memory=pins
        )
        rates = []
        for _ in range(max(3, bench.sizes.rounds)):
            start, count = time.perf_counter(), 0
            for batch in loader:
                count += len(batch.to(bench.device, non_blocking=True))
            _wait(bench.device)
            rates.append(count / (time.perf_counter() - start))
        rows.append([workers, f"{statistics.median(rates[1:]):,.0f}"])
    return _table(["workers", "utterances/s on the device"], rows)


SECTIONS: Sequence[tuple[str, float, Callable[[Bench], str | Iterator[str]]]] = (
    ("Parity", 30, parity),
    ("A training step", 90, steps),
    ("Loading", 20, loading),
    ("Building", 60, building_shards),
    ("Training", 100, training),
)
"""Name, seconds that it wants to be left, and what measures it."""


def main() -> None:
    """Measure section by section; exits with 1 where one failed or had no time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--tiny", action="store_true", help="everything in small: a dry run")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/gpu.md")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    with arguments.output.open("w", encoding="utf-8") as output, tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        sizes = Sizes.tiny() if arguments.tiny else Sizes.full()
        bench = Bench(device=arguments.device, sizes=sizes, folder=Path(folder), end=end)
        write = partial(print, file=output, flush=True)
        write(f"# On a GPU\n\n{machine(arguments.device)}{'; a dry run, tiny' if arguments.tiny else ''}")
        for name, seconds, measure in SECTIONS:
            write(f"\n## {name}\n\n{(measure.__doc__ or '').strip()}\n")
            if arguments.device.type == "cuda":
                torch.cuda.empty_cache()
            if time.monotonic() + seconds > end and not arguments.tiny:
                bench.failures.append(f"{name}: no time")
                write(f"Not measured: it wants {seconds:.0f} s, and fewer are left.")
                continue
            try:
                found = measure(bench)
                for text in [found] if isinstance(found, str) else found:
                    write(text)
            except (Exception, SystemExit) as error:  # the others can still be measured
                bench.failures.append(f"{name}: {error}")
                traceback.print_exc()
                write(f"Failed: {type(error).__name__}: {error}")
    print(arguments.output.read_text(encoding="utf-8"))
    sys.exit("\n".join(bench.failures) or 0)


def _step(bench: Bench, way: Way, example: tuple[Tensor, Tensor, Tensor]) -> Callable[[], None]:
    model = bench.network().train()
    model.separator.keeps_activations = way.keeps_activations
    if way.compiled:
        model.separator.compile_blocks(way.recorded)
    optimizer = torch.optim.Adam(model.parameters(), fused=bench.device.type == "cuda")
    mixture, embedding, target = example

    def step() -> None:
        optimizer.zero_grad()
        with way.within():
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=way.bf16):
                estimate = model(mixture, embedding)
            _loss(estimate, target).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


def _loss(estimate: Tensor, target: Tensor) -> Any:
    return permutation_invariant(pairwise_neg_snr(estimate, target.unsqueeze(1))).mean()


def _timed(step: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def _profiled(step: Callable[[], None], device: torch.device, seconds: float) -> tuple[str, str]:
    """Kernels of a step, and the share of its seconds in which the device ran none."""
    if device.type != "cuda":
        return "-", "-"
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        _timed(step, device)
    events = [event for event in profiler.events() if event.device_type.name == "CUDA"]
    kernels = [event for event in events if not getattr(event, "is_user_annotation", False)]
    busy, reached = 0.0, 0.0
    for begin, end in sorted((event.time_range.start, event.time_range.end) for event in kernels):
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return (f"{len(kernels):,}", f"{100 * max(0.0, 1 - busy / 1e6 / seconds):.0f} %") if kernels else ("-", "-")


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> str:
    return f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f}" if device.type == "cuda" else "-"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _row(*cells: str, head: bool = False) -> str:
    """A row of a table that grows."""
    line = f"| {' | '.join(cells)} |"
    return f"{line}\n|{' --- |' * len(cells)}" if head else line


def _table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    main()
