"""What a process needs to run tasks of a build: small, and the same wherever it is sent."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from iianet.config.schema import Config
from iianet.encoder.clip_encoder import ClipEncoder
from iianet.encoder.kernels import Kernels
from iianet.encoder.mouth import FPS
from iianet.encoder.source import EncoderSource
from iianet.errors import WeightsError
from shardwriter.encode.tasks import Encoding
from shardwriter.format.names import Identity
from shardwriter.store.identity import is_imported


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the tasks of a build are run.

    Attributes:
        store: Folder of the store.
        data_root: Folder that the paths of the tasks are relative to.
        config: That says where the weights are, how many clips make a pack, and how many threads read.
        identity: What the embeddings are made with.
    """

    store: Path
    data_root: Path
    config: Config
    identity: Identity

    def absolute(self) -> "Recipe":
        """The same for processes with another working directory."""
        encoder = self.config.videonet.videonet_config
        if encoder.pretrain is not None:
            encoder = encoder.model_copy(update={"pretrain": str(Path(encoder.pretrain).absolute())})
        videonet = self.config.videonet.model_copy(update={"videonet_config": encoder})
        return replace(self, store=self.store.absolute(), config=self.config.model_copy(update={"videonet": videonet}))

    def load(self, device: torch.device) -> Encoding:
        """Load the encoder onto a device, as the process that planned the build has done before.

        Raises:
            WeightsError: The weights are not there, or not those of the plan.
        """
        if is_imported(self.identity):
            return self.encoding(None, device)
        with _unsaid():
            kernels = Kernels.from_record(self.identity.precision).on(device)
            encoder = EncoderSource.from_config(self.config).load(device, kernels)
        expected, found = self.identity.encoder["fingerprint"], encoder.fingerprint
        if found != expected:
            raise WeightsError(
                f"the encoder's weights here have the fingerprint {found}, those of the build {expected}: the weights "
                f"file ({self.config.videonet.videonet_config.pretrain}) is not the same on every machine, or was "
                "changed meanwhile. Copy it to all of them"
            )
        return self.encoding(encoder, device)

    def encoding(self, encoder: ClipEncoder | None, device: torch.device) -> Encoding:
        """How clips become samples with an encoder that is loaded."""
        return Encoding(
            encoder=encoder,
            device=device,
            dtype=self.identity.dtype,
            fps=FPS,
            batch_size=self.config.shardwriter.batch_size,
            num_workers=self.config.shardwriter.num_workers,
            embed_audio=self.identity.audio == "embed",
        )


@contextmanager
def _unsaid() -> Iterator[None]:
    """What there is to say of the weights, the process that planned the build has said."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
