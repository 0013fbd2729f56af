"""The trained separator that a command line names, and what its config says of mixtures and mouths.

It is apart from the command, for there may be no config: then the file itself, or what was published, says it.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from iianet.config.data_section import DataConfig
from iianet.config.schema import Config, load_config
from iianet.encoder.mouth import CROP_SIZE, FPS, SAMPLE_RATE
from iianet.encoder.source import EncoderSource
from iianet.errors import ConfigError, WeightsError
from iianet.inference.trained import CONF_FILE, NORMALIZE, Trained, open_trained
from iianet.paths import expand_path
from iianet_cli.speakers import EmbeddingFile, Speaker
from loaders.matching import refuse_other_encoder
from shardwriter.storage.locate import Cache
from shardwriter.store.snapshot import Snapshot

FRAME_TOLERANCE: int = DataConfig.model_fields["frame_tolerance"].default

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NamedSeparator:
    """A trained separator with its config.

    Attributes:
        trained: The separator.
        config: Config that it was trained with; None where none is there.
    """

    trained: Trained
    config: Config | None

    @classmethod
    def of(cls, arguments: argparse.Namespace, overrides: Sequence[str]) -> Self:
        """Open the one that --checkpoint names, with the config of --conf_dir, or with the one that lies beside it.

        Args:
            arguments: Command line.
            overrides: Overrides of the config.

        Raises:
            ConfigError: The config is wrong or contradicts the checkpoint, or --set is given and there is none.
            WeightsError: The checkpoint is missing, damaged, or holds no separator of one voice.
        """
        path = expand_path(arguments.checkpoint)
        named = config_beside(arguments)
        if named is None and overrides:
            raise ConfigError(f"{overrides[0]}: there is no config to override; give --conf_dir CONFIG")
        config = None if named is None else load_config(named, overrides)
        trained = open_trained(path, config)
        if trained.model.num_sources != 1:
            raise WeightsError(
                f"{path}: gives {trained.model.num_sources} sources at once; expected 1, the voice of the mouth that "
                "it sees. Give another checkpoint"
            )
        return cls(trained=trained, config=config)

    @property
    def dim(self) -> int:
        """Rows of an embedding."""
        return self.trained.model.video_bottleneck.in_channels

    @property
    def samples_per_frame(self) -> int:
        """Audio samples that a mouth frame spans; as published where there is no config."""
        return SAMPLE_RATE // (FPS if self.config is None else self.config.encoder.fps)

    @property
    def normalises(self) -> bool:
        """Whether it hears normalised mixtures: as the config says, else the file, else as published."""
        if self.config is not None:
            return self.config.datamodule.data_config.normalize_audio
        return bool(self.trained.settings.get(NORMALIZE, False))

    @property
    def frame_tolerance(self) -> int:
        """Frames by which a mouth may be longer or shorter than its audio."""
        return FRAME_TOLERANCE if self.config is None else self.config.datamodule.data_config.frame_tolerance

    @property
    def cache(self) -> Cache | None:
        """Where copies of stores behind a URL lie; None is the default."""
        return None if self.config is None else Cache.of(self.config.datamodule.data_config)

    def encoder_of(self, mouth: str) -> EncoderSource:
        """The encoder that sees a mouth. Raises ConfigError where no config names it, WeightsError without weights."""
        if self.config is None:
            raise ConfigError(
                f"--mouth {mouth}: no config says which encoder is to see it, for "
                f"{self.trained.path.with_name(CONF_FILE)} is not there; give --conf_dir CONFIG, the one that the "
                "separator was trained with, or --embedding NPZ"
            )
        return self.config.encoder_source()

    def refuse_embeddings_of_other_rows(self, speakers: Sequence[Speaker]) -> None:
        """Raise ConfigError where the separator knows fewer rows of mouths than an earlier tool's embeddings are of."""
        rows = CROP_SIZE if self.config is None else self.config.videonet.videonet_config.crop_rows
        for speaker in speakers:
            if isinstance(speaker, EmbeddingFile) and rows != CROP_SIZE:
                raise ConfigError(
                    f"--embedding {speaker.word}: an earlier tool made it, of all {CROP_SIZE} rows of the mouths, and "
                    f"videonet.videonet_config.crop_rows is {rows}; give the mouth itself, --mouth NPZ"
                )

    def accept(self, snapshot: Snapshot, trusts_imported: bool) -> None:
        """Raise StoreError where a store was not made with the config's encoder; say so where that cannot be seen."""
        name = snapshot.storage.name
        if self.config is None:
            logger.warning(
                "%s: there is no config to compare its encoder with; if the separator was trained with another, "
                "estimates are wrong. Give --conf_dir CONFIG to have it compared",
                name,
            )
            return
        source = self.config.encoder_source(encodes=False)
        refuse_other_encoder(snapshot, source, trusts_imported or self.config.datamodule.data_config.trust_imported)


def config_beside(arguments: argparse.Namespace) -> str | None:
    """The config that --conf_dir names, else the one that lies beside --checkpoint; None where there is none."""
    if arguments.conf_dir is not None:
        return str(arguments.conf_dir)
    beside = expand_path(arguments.checkpoint).with_name(CONF_FILE)
    if not beside.is_file():
        return None
    logger.info("config: %s", beside)
    return str(beside)
