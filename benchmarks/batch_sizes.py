"""How many examples of a training step fit into a GPU's memory? Calculated, from bytes that are counted on a CPU.

    python benchmarks/batch_sizes.py [--conf_dir configs/LRS2-IIANet.yml] [--output FILE.md]

Counted is what a whole step makes and holds at once (forward, loss, backward with its gradients), for one example and
for two; so what each example needs, and what any batch needs, follow. Added are the weights, Adam's two moments, and
2 GB for what a GPU's libraries and allocator keep for themselves, which is assumed.
"""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "tests"))

import torch
from helpers.made_memory import MadeMemory
from machine import machine
from tabulate import tabulate
from tqdm import tqdm

from iianet.config.schema import Config, load_config
from iianet.encoder.mouth import FPS
from iianet.losses import pairwise_neg_snr, permutation_invariant
from iianet.separator.model import IIANet

GPUS = (24, 80)
"""Memory of GPUs, in units of 2^30 bytes, as they are sold."""
RESERVED = 2e9
"""Bytes assumed for the context, the libraries' workspaces, and memory that the allocator cannot use."""
WAYS = {
    "float32": (True, False),
    "bf16-mixed": (True, True),
    "float32, checkpoint_activations": (False, False),
    "bf16-mixed, checkpoint_activations": (False, True),
}
"""Way -> whether activations are kept, and whether arithmetic is mixed."""


def main() -> None:
    """Count, calculate and print; --output also writes it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--conf_dir", default="configs/LRS2-IIANet.yml")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    config = load_config(arguments.conf_dir)
    rows = []
    for name, (keeps, mixed) in tqdm(WAYS.items(), delay=1.0):
        one, two = (_peak(config, batch, keeps, mixed) for batch in (1, 2))
        fixed, each = max(0, 2 * one - two) + 3 * _weight_bytes(config), two - one
        sizes = [max(0, int((gpu * 2**30 - RESERVED - fixed) // each)) for gpu in GPUS]
        rows.append([name, f"{each / 1e9:.2f}", f"{fixed / 1e9:.2f}", *sizes])
    headers = ["way", "an example (GB)", "any batch (GB)", *(f"batch_size on {gpu} GB" for gpu in GPUS)]
    segment = config.datamodule.data_config.segment
    text = (
        f"{machine(torch.device('cpu'))}\n{arguments.conf_dir}, segment {segment} s. Calculated, not tried: bytes "
        f"counted on a CPU, and {RESERVED / 1e9:.0f} GB assumed for a GPU's own needs.\n\n"
        f"{tabulate(rows, headers=headers, tablefmt='github', disable_numparse=True)}"
    )
    print(text)
    if arguments.output:
        arguments.output.write_text(f"# Batch sizes\n\n{text}\n", encoding="utf-8")


def _peak(config: Config, batch: int, keeps_activations: bool, mixed: bool) -> int:
    """Most bytes that a step makes and holds at once, its input and weights not counted."""
    data, network = config.datamodule.data_config, config.audionet.audionet_config
    torch.manual_seed(0)
    model = IIANet(**network.model_dump()).train()
    model.separator.keeps_activations = keeps_activations
    mixture = torch.randn(batch, round(data.segment * data.sample_rate))
    embedding = torch.randn(batch, network.vpre_channels, round(data.segment * FPS))
    arithmetic = torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext()
    with MadeMemory() as made:
        with arithmetic:
            estimate = model(mixture, embedding)
        loss = permutation_invariant(pairwise_neg_snr(estimate, mixture.unsqueeze(1))).mean()
        torch.autograd.backward(loss)
    peak: int = made.peak
    return peak


def _weight_bytes(config: Config) -> int:
    return sum(weight.nbytes for weight in IIANet(**config.audionet.audionet_config.model_dump()).parameters())


if __name__ == "__main__":
    main()
