"""The configuration: every section with its types and defaults, and `load_config`, the one way in.

A config file holds values; what it leaves out has the published value or, for keys of our own, the default given in
the sections' docstrings. Nothing is converted silently and nothing unknown is passed over.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from iianet.config.data_section import DatamoduleSection, segment_problem
from iianet.config.document import Document, read_document
from iianet.config.fields import Section
from iianet.config.key_paths import Place, dotted
from iianet.config.optim_sections import OptimizerSection, SchedulerSection
from iianet.config.overrides import Override, apply_override, parse_override
from iianet.config.problems import problems, raise_problems
from iianet.config.published import find_config
from iianet.config.sections import (
    AudionetSection,
    ExpSection,
    LossSection,
    ShardwriterSection,
    TrainingSection,
    VideonetSection,
)
from iianet.encoder.mouth import CROP_SIZE
from iianet.encoder.protocol import Encoder
from iianet.encoder.registry import encoder_class
from iianet.encoder.source import EncoderSource
from iianet.errors import ConfigError

__all__ = ["Config", "dump_config", "load_config"]

ARGPARSE_GROUPS = ("positional arguments", "optional arguments", "options")
"""Groups that the reference's train.py saves with a config, named by Python's version; they say nothing new."""


def _published_scheduler() -> SchedulerSection:
    return SchedulerSection(sche_config={"patience": 10, "factor": 0.5})


class Config(Section):
    """A whole configuration, as a config file or the conf.yml that a run of the reference saved holds it."""

    audionet: AudionetSection = AudionetSection()
    videonet: VideonetSection = VideonetSection()
    loss: LossSection = LossSection()
    training: TrainingSection = TrainingSection()
    optimizer: OptimizerSection = OptimizerSection()
    scheduler: SchedulerSection = Field(default_factory=_published_scheduler)
    """Left out, it is the published one; given, it has what it says and torch's defaults."""
    datamodule: DatamoduleSection
    """A section whose data_config gives at least train_dir, valid_dir and test_dir."""
    shardwriter: ShardwriterSection = ShardwriterSection()
    exp: ExpSection
    """A section which gives exp_name."""
    main_args: dict[Any, Any] = Field(default_factory=dict)
    """Command line of the run that saved this config; kept, and without effect."""

    @model_validator(mode="before")
    @classmethod
    def _without_argparse_groups(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        groups = {name for name in ARGPARSE_GROUPS if isinstance(values.get(name), dict)}
        return {name: value for name, value in values.items() if name not in groups}

    @model_validator(mode="after")
    def _fits_the_encoder(self) -> "Config":
        """Check the keys of other sections that follow from the encoder."""
        encoder = self.encoder
        wrong: dict[str, str] = {}
        channels = self.audionet.audionet_config.vpre_channels
        if channels != encoder.dim:
            wrong["audionet.audionet_config.vpre_channels"] = (
                f"found {channels}, expected {encoder.dim}: the encoder {encoder.name} gives {encoder.dim} channels; "
                f"set vpre_channels: {encoder.dim}"
            )
        rows = self.videonet.videonet_config.crop_rows
        if rows < encoder.fewest_rows:
            wrong["videonet.videonet_config.crop_rows"] = (
                f"found {rows}, expected {_at_least(encoder.fewest_rows)}: with fewer rows of the crop the encoder "
                f"{encoder.name} cannot work; set crop_rows: {CROP_SIZE} for the whole crop"
            )
        problem = segment_problem(self.datamodule.data_config.segment, encoder.fps)
        if problem is not None:
            wrong["datamodule.data_config.segment"] = problem
        raise_problems(wrong)
        return self

    @property
    def encoder(self) -> type[Encoder]:
        """Class of the encoder that the videonet section names. Raises ConfigError where no encoder has the name."""
        return encoder_class(self.videonet.videonet_name)  # a started process may lack it

    def encoder_source(self, *, encodes: bool = True) -> EncoderSource:
        """The encoder that the videonet section names; nothing is loaded.

        Args:
            encodes: Whether something will be encoded with it; else its weights file need not exist.

        Raises:
            ConfigError: No encoder has the name.
            WeightsError: The weights file does not exist.
        """
        videonet = self.videonet.videonet_config
        source = EncoderSource(
            Path(videonet.pretrain).absolute() if videonet.pretrain is not None else None,
            videonet.seed,
            videonet.precision,
            name=self.encoder.name,
            memory_format=videonet.memory_format,
            max_frames=videonet.max_frames,
            crop_rows=videonet.crop_rows,
        )
        if encodes:
            source.require_weights()
        return source


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a config file.

    Args:
        path: The YAML file, or the name of a published config. Relative paths inside it stay relative to the working
            directory.
        overrides: Values set over the file's, `dotted.path=value` each, such as `training.gpus=[0]`; the last wins.

    Raises:
        ConfigError: The file is missing or is no YAML mapping, an override is malformed, or keys or values are wrong.
            Each problem is a line of the message.
    """
    path = find_config(Path(path))
    document = read_document(path)
    settings = [parse_override(text, Config) for text in overrides]
    values = document.values
    for setting in settings:
        values = apply_override(values, setting, Config)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [
            f"{path}: {dotted(place) or 'top level'}: {problem}{_origin(place, document, settings)}"
            for details in error.errors()
            for place, problem in problems(details, Config)
        ]
        raise ConfigError("\n".join(lines)) from error


def _at_least(rows: int) -> str:
    """Which numbers of rows are allowed, in words."""
    return str(rows) if rows == CROP_SIZE else f"{rows} to {CROP_SIZE}"


def _origin(place: Place, document: Document, settings: Sequence[Override]) -> str:
    """Where a wrong value came from: an override, else a line of the file."""
    for setting in reversed(settings):
        if place[: len(setting.path)] == setting.path:
            return f" (override {setting.text})"
    line = document.line(place)
    return "" if line is None else f" (line {line})"


def dump_config(config: Config) -> str:
    """YAML text of a whole configuration, defaults included; `load_config` reads an equal one back from it."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
