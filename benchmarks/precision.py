"""What storing embeddings in fewer bits costs: bytes, error, and the SI-SNR of a separator trained on float32.

The separator is trained once, from a float32 store, and then validated with each of the stores.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from machine import machine
from tabulate import tabulate

from iianet.checkpoint import load_published, read_checkpoint
from iianet.config.schema import Config, load_config
from iianet.encoder.lazy_encoder import LazyEncoder
from iianet.losses import PermutationInvariantLoss
from iianet.separator.model import IIANet
from loaders.datamodule import SeparationData
from loaders.reader import StoreReader, open_reader
from shardwriter.build.build import build
from shardwriter.build.options import BuildOptions
from shardwriter.format.names import STORED_DTYPES
from shardwriter.storage.folder import Folder
from shardwriter.store.snapshot import Snapshot

ROOT = Path(__file__).parent.parent
HEADERS = ("stored as", "bytes / utterance", "max error / max", "rms error / rms", "val SI-SNR (dB)", "change (dB)")


def main() -> None:
    """Measure and print; --output also writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--conf_dir", type=Path, help="of a corpus; by default a toy corpus is made")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="as in every command")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        conf_dir, overrides = arguments.conf_dir or ROOT / "configs" / "toy.yml", list(arguments.set)
        if arguments.conf_dir is None:
            corpus = folder / "corpus"
            subprocess.run([sys.executable, ROOT / "examples" / "toy_corpus.py", corpus], check=True)
            overrides += _toy_paths(corpus)
        rows = measure(conf_dir.absolute(), overrides, folder)
    what = "the toy corpus" if arguments.conf_dir is None else arguments.conf_dir.stem
    table = tabulate(rows, headers=HEADERS, tablefmt="github", disable_numparse=True)
    text = f"# Stored precision: {what}\n\n{machine(torch.device('cpu'))}\n\n{table}\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


def _toy_paths(corpus: Path) -> list[str]:
    """The toy config's folders, where the corpus was made this time."""
    data = load_config(ROOT / "configs" / "toy.yml").datamodule.data_config
    folders = {
        name: corpus / "json" / Path(getattr(data, name)).name for name in ("train_dir", "valid_dir", "test_dir")
    }
    return [f"datamodule.data_config.{name}={folder}" for name, folder in folders.items()] + [
        f"datamodule.data_config.data_root={corpus}"
    ]


def measure(conf_dir: Path, overrides: list[str], folder: Path) -> list[tuple[str, ...]]:
    """A row for each type."""
    config = load_config(conf_dir, overrides)
    for dtype in STORED_DTYPES:
        options = BuildOptions(splits=("train", "val"), device=torch.device("cpu"), dtype=dtype)
        build(config, Folder(folder / dtype), options)
    model = _trained(config, conf_dir, overrides, folder)
    reference = open_reader(folder / "float32", "val")
    quality = {dtype: _si_snr(config, model, folder / dtype) for dtype in STORED_DTYPES}
    rows: list[tuple[str, ...]] = []
    for dtype in ("float32", "float16", "int8"):
        reader = open_reader(folder / dtype, "val")
        largest, rms = _errors(reader, reference)
        size = np.mean([reader.stored_bytes(row) for row in range(len(reader))])
        change = quality[dtype] - quality["float32"]
        rows.append((dtype, f"{size:,.0f}", f"{largest:.2e}", f"{rms:.2e}", f"{quality[dtype]:.4f}", f"{change:+.5f}"))
    return rows


def _trained(config: Config, conf_dir: Path, overrides: list[str], folder: Path) -> IIANet:
    """The best model of a run of train.py."""
    words = ["--conf_dir", str(conf_dir), "--shards", str(folder / "float32")]
    words += ["--set", *overrides] if overrides else []
    subprocess.run([sys.executable, ROOT / "train.py", *words], cwd=folder, check=True)
    model = IIANet(**config.audionet.audionet_config.model_dump(), sample_rate=16000)
    best = folder / "Experiments" / "checkpoint" / config.exp.exp_name / "best_model.pth"
    load_published(model, read_checkpoint(best))
    return model.eval()


def _si_snr(config: Config, model: IIANet, store: Path) -> float:
    """Mean over the validation examples, dB."""
    encoder = LazyEncoder(config.encoder_source())
    loss = PermutationInvariantLoss(sdr_type="pairwise_neg_sisdr", threshold_byloss=False)
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in SeparationData(config, [Snapshot.open(Folder(store))], "").val_dataloader():
            losses = loss(model(batch.mixture, encoder.complete(batch)), batch.target.unsqueeze(1))
            total, count = total - float(losses.sum()), count + len(batch)
    return total / count


def _errors(reader: StoreReader, reference: StoreReader) -> tuple[float, float]:
    """Largest error as a share of the largest value, and their root mean squares' ratio, of the worst utterance."""
    found = []
    for row in range(len(reader)):
        exact = reference.read(int(reference.rows_of(reader.keys.slice(row, 1))[0]))
        error = reader.read(row).astype(np.float32) - exact
        rms = np.sqrt((error**2).mean() / (exact**2).mean())
        found.append((float(np.abs(error).max() / np.abs(exact).max()), float(rms)))
    return max(largest for largest, _ in found), max(rms for _, rms in found)


if __name__ == "__main__":
    main()
