"""What does a step of the separator cost, as it was written at first and as it is? In one run.

    python benchmarks/separator.py [--conf_dir configs/LRS2-IIANet.yml] [--batch_size 1] [--num_blocks N] [--rounds 3]
                                   [--device cpu] [--threads 1] [--compile] [--profile] [--output FILE.md]

A step is forward, loss and backward on made data; the ways alternate after a warm-up. Processor time is shown beside
the clock's, since machines are noisy; on a GPU both are the device's. "Kept" is what forward keeps for backward: nearly
all the memory of a step. --num_blocks takes another number of iterations than the configuration's, which are all
alike; --profile prints the operators that take most of the processor's time.
"""

import argparse
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "tests"))

import torch
from former_separator import former_separator
from helpers.made_memory import MadeMemory
from machine import machine
from spread import spread
from tabulate import tabulate
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from iianet.config.schema import load_config
from iianet.encoder.mouth import FPS
from iianet.separator.model import IIANet

BIG = 1 << 20
"""Elements from which on an operator is counted as one on fine columns."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to compute a step: the network, and within what."""

    name: str
    model: IIANet
    within: Callable[[], AbstractContextManager[Any]]


def main() -> None:
    """Measure and print; --output also writes it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--conf_dir", default="configs/LRS2-IIANet.yml")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--num_blocks", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    text = _report(arguments)
    print(text)
    if arguments.output:
        arguments.output.write_text(f"# Separator\n\n{text}\n", encoding="utf-8")


def _report(arguments: argparse.Namespace) -> str:
    config = load_config(arguments.conf_dir)
    sizes = config.audionet.audionet_config.model_dump()
    sizes["num_blocks"] = arguments.num_blocks or sizes["num_blocks"]
    data, device = config.datamodule.data_config, arguments.device
    torch.manual_seed(0)
    mixture = torch.randn(arguments.batch_size, round(data.segment * data.sample_rate), device=device)
    embedding = torch.randn(arguments.batch_size, sizes["vpre_channels"], round(data.segment * FPS), device=device)
    ways = _ways(sizes, device, arguments.compile)
    seconds = _measure(ways, mixture, embedding, arguments.rounds)
    kept = {way.name: _kept(way, mixture, embedding) for way in ways}
    rows = [[way.name, *_row(seconds[way.name], seconds[ways[0].name]), f"{kept[way.name] / 1e9:.2f}"] for way in ways]
    headers = ["way", "step, clock (s)", "step, processor (s)", "against the first", "kept (GB)"]
    title = f"Batch {arguments.batch_size}, segment {data.segment} s, {sizes['num_blocks']} blocks, float32 unless said"
    threads = f", {arguments.threads} threads" if device.type == "cpu" else ""
    lines = [f"{machine(device)}{threads}", title, "", tabulate(rows, headers=headers, tablefmt="github")]
    if arguments.profile:
        lines += [f"\n{way.name}:\n\n{_profile(way, mixture, embedding)}" for way in ways[:2]]
    return "\n".join(lines)


def _ways(sizes: dict[str, Any], device: torch.device, compiled: bool) -> list[Way]:
    model = IIANet(**sizes).to(device)
    bf16 = partial(torch.autocast, device.type, torch.bfloat16)
    ways = [
        Way(name="as it was", model=model, within=former_separator),
        Way(name="as it is", model=model, within=nullcontext),
        Way(name="as it is, bf16-mixed", model=model, within=bf16),
        Way(name="as it is, checkpoint_activations", model=model, within=partial(_keeping_none, model)),
    ]
    if compiled:
        fast = IIANet(**sizes).to(device)
        fast.load_state_dict(model.state_dict())
        fast.separator.compile_blocks()
        ways += [
            Way(name="compiled", model=fast, within=nullcontext),
            Way(name="compiled, bf16-mixed", model=fast, within=bf16),
        ]
    return ways


@contextmanager
def _keeping_none(model: IIANet) -> Iterator[None]:
    """Within, iterations are computed once more in backward."""
    model.separator.keeps_activations = False
    try:
        yield
    finally:
        model.separator.keeps_activations = True


def _measure(
    ways: Sequence[Way], mixture: Tensor, embedding: Tensor, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Way -> clock and processor seconds of each round, the first of which is left out."""
    seconds = defaultdict(list)
    for number in tqdm(range(rounds + 1), desc="rounds", delay=1.0):
        for way in ways if number % 2 else reversed(ways):
            clock, processor = time.perf_counter(), time.process_time()
            _step(way, mixture, embedding)
            if mixture.is_cuda:
                torch.cuda.synchronize()
            took = time.perf_counter() - clock
            if number:
                seconds[way.name].append((took, took if mixture.is_cuda else time.process_time() - processor))
    return dict(seconds)


def _step(way: Way, mixture: Tensor, embedding: Tensor) -> None:
    way.model.zero_grad()
    with way.within():
        loss = way.model(mixture, embedding).float().square().mean()
    loss.backward()


def _kept(way: Way, mixture: Tensor, embedding: Tensor) -> int:
    """Bytes of what forward leaves for backward: of all that it makes, what is there as long as the estimate is."""
    with MadeMemory() as made, way.within():
        estimate = way.model(mixture, embedding)
    kept: int = made.bytes_alive()
    del estimate
    return kept


def _row(own: Sequence[tuple[float, float]], first: Sequence[tuple[float, float]]) -> list[str]:
    clock, processor = (spread([pair[side] for pair in own]) for side in (0, 1))
    ratio = statistics.median(one[1] / other[1] for one, other in zip(own, first, strict=True))
    return [*(f"{middle:.2f} ({low:.2f} to {high:.2f})" for middle, low, high in (clock, processor)), f"{ratio:.2f}"]


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Processor seconds and calls of each operator, of fine columns and of others."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.calls: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.process_time()
        result = func(*args, **(kwargs or {}))
        took = time.process_time() - start
        big = any(isinstance(value, Tensor) and value.numel() >= BIG for value in args)
        key = (str(func).removeprefix("aten."), "yes" if big else "")
        self.seconds[key] += took
        self.calls[key] += 1
        return result


def _profile(way: Way, mixture: Tensor, embedding: Tensor) -> str:
    _step(way, mixture, embedding)  # memory is there from now on
    with _Operators() as operators:
        _step(way, mixture, embedding)
    total = sum(operators.seconds.values())
    rows = [
        [*key, operators.calls[key], f"{took:.3f}", f"{100 * took / total:.1f} %"]
        for key, took in sorted(operators.seconds.items(), key=lambda item: -item[1])[:16]
    ]
    return tabulate(rows, headers=["operator", "fine columns", "calls", "seconds", "share"], tablefmt="github")


if __name__ == "__main__":
    main()
