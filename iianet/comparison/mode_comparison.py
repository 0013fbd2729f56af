"""Measurements of raw mode against the store, on a user's own corpus: --compare_modes."""

import logging
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iianet.command_line import own_environment
from iianet.config.schema import Config, dump_config
from iianet.errors import ConfigError, TrainingError
from iianet.launch import Launch
from iianet.training.step_times import WARM_UP, StepRecord
from iianet.wording import duration

logger = logging.getLogger(__name__)

ROUNDS = 2
"""Runs of each way, in turns, every other round backwards, so that changes of the machine's load affect all ways."""
PLAIN = "32-true"


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to train.

    Attributes:
        mode: "raw" or "store".
        precision: training.precision.
        compile: training.compile.
    """

    mode: str
    precision: str
    compile: bool | str

    @property
    def setting(self) -> str:
        """Precision and compilation, in words."""
        words = [self.precision, *(["compiled"] if self.compile else []), *self._further]
        return ", ".join(words)

    @property
    def flags(self) -> list[str]:
        """Flags of the training command, for a config of the store in plain precision."""
        raw = ["--no_shards"] if self.mode == "raw" else []
        return [*raw, "--precision", self.precision, *(["--compile"] if self.compile else []), *self._further]

    @property
    def _further(self) -> list[str]:
        """What compiling is to do beyond itself."""
        return [self.compile] if isinstance(self.compile, str) else []


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Results of a way's runs.

    Attributes:
        way: The way.
        device: Name of the device.
        examples_per_second: Examples per second over all rounds.
        rounds: Examples per second of each round.
        median_seconds: Median time of a step, seconds.
        p90_seconds: Time that nine of ten steps take at most, seconds.
        wait_share: Share of the time that waited for data, 0 to 1.
        peak_bytes: Largest peak of all rounds; see StepRecord.
        epoch_bytes: Bytes read in an epoch, estimated from the measured steps.
    """

    way: Way
    device: str
    examples_per_second: float
    rounds: tuple[float, ...]
    median_seconds: float
    p90_seconds: float
    wait_share: float
    peak_bytes: int
    epoch_bytes: float

    @classmethod
    def of(cls, way: Way, records: Sequence[StepRecord]) -> "Figures":
        """Sum up the rounds."""
        seconds = [second for record in records for second in record.seconds]
        steps = sorted(seconds)
        return cls(
            way=way,
            device=records[0].device,
            examples_per_second=sum(record.examples for record in records) / sum(seconds),
            rounds=tuple(record.examples / sum(record.seconds) for record in records),
            median_seconds=statistics.median(steps),
            p90_seconds=steps[-(-9 * len(steps) // 10) - 1],
            wait_share=sum(sum(record.waited) for record in records) / sum(seconds),
            peak_bytes=max(record.peak_bytes for record in records),
            epoch_bytes=records[0].epoch_steps * sum(record.bytes_read for record in records) / len(steps),
        )


def refuse_unfit_comparison(config: Config, kept: Sequence[str], streams: Sequence[str]) -> None:
    """Raise ConfigError if --compare_modes would measure something else than was asked for.

    Args:
        config: Config with the command line's values.
        kept: Flags of the command line that are for a training whose model is kept, such as --resume.
        streams: Tars that --shards names without a store's folder.
    """
    data = config.datamodule.data_config
    launch = Launch.for_training()
    ranks = launch.world_size if launch else 1
    if not data.use_precomputed_embeddings:
        raise ConfigError("--compare_modes compares raw mode with a store, and none is named; add --shards STORE")
    if streams:
        raise ConfigError(
            f"--compare_modes compares raw mode with a store of the same examples; {streams[0]} is read as a stream, "
            "which may hold others. Make a store of it with inspect-shards --reindex"
        )
    if data.build_missing or kept:
        word = "--build_missing" if data.build_missing else kept[0]
        raise ConfigError(f"--compare_modes builds and trains nothing that is kept; leave {word} out")
    if ranks > 1 or config.training.num_nodes > 1:
        raise ConfigError(
            f"--compare_modes starts its runs itself, on the GPUs of one machine; found world size {ranks} and "
            f"training.num_nodes {config.training.num_nodes}, expected 1 of each: start it without torchrun and srun"
        )


def ways(config: Config) -> list[Way]:
    """Both modes, in plain precision and in each setting that the config asks for."""
    training = config.training
    return [
        Way(mode=mode, precision=precision, compile=compiled)
        for precision in dict.fromkeys((PLAIN, training.precision))
        for compiled in dict.fromkeys((False, training.compile))
        for mode in ("raw", "store")
    ]


def run_ways(config: Config, command: Sequence[str], steps: int) -> list[Figures]:
    """Train in each way for some steps, each time in a process of its own, and keep only the measurements.

    Args:
        config: Config of training from the store.
        command: Words that start the training command, without flags.
        steps: Measured steps of each round.

    Raises:
        TrainingError: A run failed; its own message is above.
    """
    records: dict[Way, list[StepRecord]] = defaultdict(list)
    asked = ways(config)
    plain = config.training.model_copy(update={"precision": PLAIN, "compile": False, "test_every_n_epochs": None})
    with tempfile.TemporaryDirectory(prefix="compare-modes-") as folder:
        config_file = Path(folder, "config.yml")
        config_file.write_text(dump_config(config.model_copy(update={"training": plain})), encoding="utf-8")
        runs = [way for number in range(ROUNDS) for way in (asked if number % 2 == 0 else reversed(asked))]
        logger.info(
            "%d runs of %d steps each; after the first it is known how long they take", len(runs), WARM_UP + steps
        )
        start = time.monotonic()
        for done, way in enumerate(runs):
            left = (time.monotonic() - start) / done * (len(runs) - done) if done else None
            wait = "" if left is None else f"; about {duration(left)} left"
            logger.info("run %d of %d: %s, %s%s", done + 1, len(runs), way.mode, way.setting, wait)
            records[way].append(_run_way(way, command, config_file, steps))
    return [Figures.of(way, records[way]) for way in asked]


def _run_way(way: Way, command: Sequence[str], config_file: Path, steps: int) -> StepRecord:
    path = config_file.with_name("steps.json")
    path.unlink(missing_ok=True)
    own = ["--record_steps", str(steps), "--record_file", str(path)]
    words = [*command, "--conf_dir", str(config_file), *way.flags, *own]
    code = subprocess.run(words, env=own_environment(), check=False).returncode
    if code or not path.is_file():
        ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise TrainingError(
            f"--compare_modes: the run of {way.mode}, {way.setting}, {ended}; expected {steps} measured steps. Its own "
            "message is above: fix that, and compare again"
        )
    return StepRecord.load(path)
