"""The command evaluate-iianet: figures of a trained separator on a split of a corpus, and examples to listen to."""

if __name__ == "__main__":  # `python -m`, before the imports, as in iianet_cli/entry.py
    from iianet.interruption import main_of

    main_of("iianet_cli.evaluate_cli")()

import argparse
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from iianet.batch import Batch
from iianet.command_line import SOME_FAILED, Parser, add_config_flags, at_least_zero, command, config_overrides
from iianet.config.schema import Config, load_config
from iianet.encoder.lazy_encoder import LazyEncoder
from iianet.encoder.source import EncoderSource
from iianet.errors import ConfigError
from iianet.inference.metrics import COLUMNS, Signals, columns_of, refuse_missing_packages
from iianet.inference.pictures import draw_improvement
from iianet.inference.record import EvaluatedRow, EvaluationRecord
from iianet.inference.saved_examples import chosen, outdated, save_example
from iianet.inference.scoring import estimates, scored, scorer
from iianet.inference.summary import Summary
from iianet.inference.trained import CONF_FILE, Trained, open_trained, warn_of_other_rows
from iianet.interruption import terminable
from iianet.launch import choose_device
from iianet.paths import expand_path
from iianet.terminal import say
from iianet.training.dropped_rows import DroppedRows, refuse_dropped
from iianet.wording import counted
from iianet_cli.flags import PREFIX, add_checkpoint_flag, add_data_flags, add_device_flag, data_overrides
from iianet_cli.separator import config_beside
from iianet_cli.stores import build_command, log_mode, open_stores, refuse_missing_weights
from loaders.evaluation import EvaluationData
from loaders.matching import kernels_of
from loaders.order import Indices
from loaders.streams import stream_words

logger = logging.getLogger(__name__)

WHOLE = "full"
PICTURE_FILE = "si_snri.png"
EXAMPLES_FOLDER = "examples"


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog,
        description="Evaluate a trained separator on every example of a split. An evaluation that was interrupted "
        "resumes with the same command. Exit codes: 0 all evaluated; 3 some examples could not be read; 2 could not "
        "start or continue; 130 and 143 stopped by Ctrl-C and SIGTERM.",
        example=f"{prog} --conf_dir configs/LRS2-IIANet.yml --shards STORE "
        "--checkpoint Experiments/checkpoint/LRS2-IIANet/best_model.pth",
    )
    add_config_flags(parser, default=f"{CONF_FILE} beside the checkpoint")
    add_checkpoint_flag(parser)
    add_data_flags(parser, "evaluate")
    parser.add_argument(
        "--data_split",
        choices=["train", "val", "test"],
        default="test",
        help="split to evaluate on (default test)",
    )
    parser.add_argument(
        "--segment",
        type=_segment,
        default=argparse.SUPPRESS,
        metavar=f"SECONDS|{WHOLE}",
        help="length that is evaluated of each example, from its start on (default: the config's segment, as "
        f"published figures are made; shorter examples are left out); {WHOLE}: whole examples",
    )
    parser.add_argument(
        "--metrics",
        type=_metrics,
        default=("si_snr", "sdr"),
        metavar="NAME,...",
        help=f"among {', '.join(COLUMNS)} (default si_snr,sdr); SI-SNR and SDR with their improvements over the "
        "mixture; pesq and stoi need the extra [metrics]",
    )
    parser.add_argument(
        "--published_sdr",
        action="store_true",
        help="add SDR with estimate and target swapped, as the reference computes it, to compare with its tables",
    )
    parser.add_argument(
        "--save",
        type=at_least_zero,
        default=0,
        metavar="N",
        help="save the N best, N worst and N median examples as wavs, with spectrograms",
    )
    add_device_flag(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="folder of the results (default: results/SPLIT-SECONDS beside the checkpoint)"
    )
    return parser


def _segment(text: str) -> float | None:
    """Read --segment; None for whole examples."""
    if text == WHOLE:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected seconds above 0, or {WHOLE}")
    return seconds


def _metrics(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in COLUMNS]:
        raise argparse.ArgumentTypeError(f"found {unknown[0]!r}, expected some of {', '.join(COLUMNS)} with commas")
    return names


def _run(argv: list[str], prog: str) -> int:
    arguments = _parser(prog).read(argv)
    refuse_missing_packages(arguments.metrics)
    if arguments.save and "si_snr" not in arguments.metrics:
        raise ConfigError(f"--save {arguments.save}: examples are chosen by their SI-SNRi; add si_snr to --metrics")
    overrides = [*config_overrides(arguments), *data_overrides(arguments), f"{PREFIX}.build_missing=false"]
    device = choose_device(arguments.device)
    arguments.conf_dir = config_beside(arguments)
    if arguments.conf_dir is None:
        raise ConfigError(
            f"--checkpoint {arguments.checkpoint}: no {CONF_FILE} lies beside it, and no other config says where the "
            "examples are; give --conf_dir CONFIG"
        )
    config = load_config(arguments.conf_dir, overrides)
    trained = open_trained(expand_path(arguments.checkpoint), config)
    warn_of_other_rows(trained, config)
    data, source = _open_data(arguments, config)
    encoder = LazyEncoder(source, kernels_of(data.snapshots, source))
    evaluation = Evaluation(arguments, trained, data, encoder, device)
    with terminable():
        try:
            return evaluation.run()
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"examples do not fit into the memory of the GPU, {data.options.batch_size} at a time; lower --set "
                f"{PREFIX}.batch_size, or give a shorter --segment. What was evaluated is recorded"
            ) from error


def _open_data(arguments: argparse.Namespace, config: Config) -> tuple[EvaluationData, EncoderSource]:
    """Open the store and the split. Raises ConfigError where tars are named without a store."""
    if words := stream_words(config.datamodule.data_config):
        raise ConfigError(
            f"{words[0]}: tars without a store say neither which examples there are nor how many; make a store of them "
            "with inspect-shards --reindex or shardwriter.write_store, and evaluate from that"
        )
    source = config.encoder_source(encodes=not config.datamodule.data_config.use_precomputed_embeddings)
    log_mode(config, raw_is_meant=arguments.no_shards)
    snapshots = open_stores(config, source)
    segment = config.datamodule.data_config.segment if "segment" not in vars(arguments) else arguments.segment
    data = EvaluationData(config, snapshots, build_command(arguments, config), arguments.data_split, segment)
    data.prepare_splits()
    if snapshots:
        refuse_missing_weights(source, data)
    return data, source


class Evaluation:
    """One evaluation: what is done is in its record, what is left is separated and scored.

    Args:
        arguments: Of the command line.
        trained: The separator.
        data: The examples.
        encoder: Encoder of mouths that are not stored.
        device: Device that separates.

    Raises:
        ConfigError: The folder of the results holds another evaluation, or cannot be written to.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        trained: Trained,
        data: EvaluationData,
        encoder: LazyEncoder,
        device: torch.device,
    ) -> None:
        self.arguments = arguments
        self.data = data
        self.encoder = encoder
        self.device = device
        self.model = trained.model.to(device)
        self.names = [(key, mixture, target) for key, mixture, target in data.example_names()]
        length = WHOLE if data.segment is None else f"{data.segment:g}s"
        default = trained.path.parent / "results" / f"{arguments.data_split}-{length}"
        self.folder = expand_path(arguments.out) if arguments.out else default
        self.facts = {
            "checkpoint": trained.digest,
            "network": json.dumps(data.config.audionet.audionet_config.model_dump()),
            **data.facts(encoder.source, device),
        }
        columns = columns_of(arguments.metrics, arguments.published_sdr)
        self.record = EvaluationRecord(self.folder, self.facts, columns)
        self.dropped = DroppedRows()

    def run(self) -> int:
        """Evaluate what is left, and write and print the results; returns the exit code."""
        skipped = self.data.skipped
        eligible = np.setdiff1d(self.data.opened.eligible, skipped)
        left = np.array([example for example in eligible.tolist() if self.names[example] not in self.record.rows])
        if len(left) < len(eligible):
            done = len(eligible) - len(left)
            logger.info("%s: %s of %d done already", self.record.csv, counted(done, "example"), len(eligible))
        if len(left):
            self._evaluate(left)
        finished = self.record.rows
        rows = {one: finished[self.names[one]] for one in eligible.tolist() if self.names[one] in finished}
        summary = self._summary(eligible, rows)
        summary.save(self.folder, self.facts)
        length = "whole examples" if self.data.segment is None else f"the first {self.data.segment:g} s"
        title = f"{self.arguments.checkpoint}, {self.data.split_name} split, {length}"
        drawn = draw_improvement(list(rows.values()), title, self.folder / PICTURE_FILE)
        saved = self._save(rows) if self.arguments.save else 0
        say(summary.table())
        logger.info("results: %s%s", self.folder, f", picture {PICTURE_FILE}" if drawn else "")
        if saved:
            logger.info("%s to listen to: %s", counted(saved, "example"), self.folder / EXAMPLES_FOLDER)
        return SOME_FAILED if summary.unreadable else 0

    def _evaluate(self, examples: Indices) -> None:
        """Separate and score examples, batch by batch, and add them to the record."""
        loader = self.data.examples_loader(examples)
        with scorer(self.arguments.metrics, self.arguments.published_sdr) as score:
            bar = tqdm(total=len(examples), desc="evaluating", unit="example", delay=1.0)
            for rows in scored(self._separated(loader), score):
                self.record.add(
                    EvaluatedRow(name=self.names[row.example], seconds=row.num_samples / self.rate, figures=row.figures)
                    for row in rows
                )
                bar.update(len(rows))
            bar.close()

    def _separated(self, loader: Any) -> Iterator[tuple[Batch, list[Signals]]]:
        for batch in loader:
            if self.data.options.on_missing == "error":
                refuse_dropped(batch.dropped)
            self.dropped.count(batch)
            yield batch, estimates(self.model, self.encoder, batch, self.device)

    def _summary(self, eligible: Indices, rows: Mapping[int, EvaluatedRow]) -> Summary:
        short = sorted(set(range(len(self.names))) - set(self.data.opened.eligible.tolist()))
        failed = [self.names[example] for example in eligible.tolist() if example not in rows]
        return Summary.of(
            list(rows.values()),
            self.record.columns,
            examples=len(self.names),
            too_short=[self.names[example][1] for example in short],
            skipped=len(self.data.skipped),
            unreadable={f"{key}, {mixture}": self.dropped.reasons.get(key, "see above") for key, mixture, _ in failed},
        )

    def _save(self, rows: Mapping[int, EvaluatedRow]) -> int:
        """Separate the chosen examples once more, and save them; returns their number."""
        names = chosen(rows, self.arguments.save)
        if not names:
            logger.warning("--save: no example has an SI-SNRi, so none is saved")
            return 0
        folder = self.folder / EXAMPLES_FOLDER
        for path in outdated(folder):
            shutil.rmtree(path)
        loader = self.data.examples_loader(np.array(sorted(names), dtype=np.int64))
        bar = tqdm(total=len(names), desc="saving", unit="example", delay=1.0)
        for batch, heard in self._separated(loader):
            for example, one in zip(batch.examples, heard, strict=False):
                save_example(folder, names[example], rows[example], one)
                bar.update()
        bar.close()
        return len(names)

    @property
    def rate(self) -> int:
        """Samples of a second."""
        return self.data.options.sample_rate


main = command(_run, "evaluate-iianet")
"""Start the command."""
