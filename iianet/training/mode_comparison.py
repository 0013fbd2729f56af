"""Raw mode against the store, on a user's own corpus: train.py --compare_modes."""

import logging
import os
import statistics
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iianet.command_line import own_environment
from iianet.config.schema import Config, dump_config
from iianet.errors import ConfigError, TrainingError
from iianet.training.step_times import StepRecord

logger = logging.getLogger(__name__)

ROUNDS = 2
"""Each way is run so often, in turns, every other round backwards: what changes meanwhile strikes all alike."""
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
    compile: bool

    @property
    def setting(self) -> str:
        """All but the mode."""
        return f"{self.precision}, compiled" if self.compile else self.precision

    @property
    def flags(self) -> list[str]:
        """What train.py is told, over a config of the store in plain precision."""
        raw = ["--no_shards"] if self.mode == "raw" else []
        return [*raw, "--precision", self.precision, *(["--compile"] if self.compile else [])]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What came out of a way's runs.

    Attributes:
        way: The way.
        device: Its name.
        examples_per_second: Of all rounds together.
        rounds: The same of each round.
        median_seconds: Of a step.
        p90_seconds: Nine of ten steps take at most this.
        wait_share: Share of the time that waited for data, 0 to 1.
        peak_bytes: See StepRecord; the most of all rounds.
        epoch_bytes: Read in an epoch, as the measured steps tell it.
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
        """Sum the rounds up."""
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


def refuse_unfit_comparison(config: Config, resume: str | None, streams: Sequence[str]) -> None:
    """Raise ConfigError where --compare_modes would measure something else than was asked for.

    Args:
        config: With the command line's values.
        resume: What --resume says.
        streams: Tars that --shards names without a store's folder.
    """
    data = config.datamodule.data_config
    ranks = max(int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    if not data.use_precomputed_embeddings:
        raise ConfigError("--compare_modes compares raw mode with a store, and none is named; add --shards STORE")
    if streams:
        raise ConfigError(
            f"--compare_modes compares raw mode with a store of the same examples; {streams[0]} is read as a stream, "
            "which may hold others. Make a store of it with inspect-shards --reindex"
        )
    if data.build_missing or resume is not None:
        word = "--build_missing" if data.build_missing else "--resume"
        raise ConfigError(f"--compare_modes builds and trains nothing that is kept; leave {word} out")
    if ranks > 1 or config.training.num_nodes > 1:
        raise ConfigError(
            f"--compare_modes starts its runs itself, on the GPUs of one machine; found {ranks} processes and "
            f"training.num_nodes {config.training.num_nodes}, expected 1 of each: start it without torchrun and srun"
        )


def ways(config: Config) -> list[Way]:
    """Both modes, plainly and in each setting that the config asks for."""
    training = config.training
    return [
        Way(mode=mode, precision=precision, compile=compiled)
        for precision in dict.fromkeys((PLAIN, training.precision))
        for compiled in dict.fromkeys((False, training.compile))
        for mode in ("raw", "store")
    ]


def run_ways(config: Config, command: Sequence[str], steps: int) -> list[Figures]:
    """Train in each way for so many steps, each time in a process of its own, and forget what was learnt.

    Args:
        config: Of training from the store.
        command: What starts the training command; its flags are added.
        steps: Measured in each round.

    Raises:
        TrainingError: A run failed; its own message stands above.
    """
    records: dict[Way, list[StepRecord]] = defaultdict(list)
    asked = ways(config)
    plain = config.training.model_copy(update={"precision": PLAIN, "compile": False})
    with tempfile.TemporaryDirectory(prefix="compare-modes-") as folder:
        config_file = Path(folder, "config.yml")
        config_file.write_text(dump_config(config.model_copy(update={"training": plain})), encoding="utf-8")
        for number in range(ROUNDS):
            for way in asked if number % 2 == 0 else reversed(asked):
                logger.info("round %d of %d: %s, %s", number + 1, ROUNDS, way.mode, way.setting)
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
            "message stands above: mend that, and compare again"
        )
    return StepRecord.load(path)
