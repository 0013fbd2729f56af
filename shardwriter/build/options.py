"""What build-shards is asked for, beside the config."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from iianet.config.schema import Config
from shardwriter.execute.executor import Executor, OwnProcess
from shardwriter.format.names import SPLITS, Identity
from shardwriter.storage.outlet import Folder, Outlet


class Storage(NamedTuple):
    """How embeddings and their audio are stored: `dtype` and `audio` of an Identity."""

    dtype: str
    audio: str


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a build is asked for.

    Attributes:
        splits: To build; the training split with the views that the config asks for and those that the store has.
        device: That encodes, or the first of those that do.
        executor: Runs the tasks.
        outlet: Takes what is written to where the store is.
        dtype: Of the embeddings; None is the store's, where it exists, else the config's.
        audio: `path` or `embed`; None likewise.
        overwrite: Build everything anew, with the views that the config asks for; the old store serves until then.
        limit: Take only the first so many utterances of each split, in hash order.
        verify_sources: Digest every npz, even where size and time are as recorded.
        retry_failed: Try those again that failed and have not changed since.
        import_embeddings: Take the embeddings that an earlier tool left beside the npz, instead of encoding.
    """

    splits: Sequence[str] = SPLITS
    device: torch.device
    executor: Executor = field(default_factory=OwnProcess)
    outlet: Outlet = field(default_factory=Folder)
    dtype: str | None = None
    audio: str | None = None
    overwrite: bool = False
    limit: int | None = None
    verify_sources: bool = False
    retry_failed: bool = False
    import_embeddings: bool = False

    def storage(self, config: Config, recorded: Identity | None) -> Storage:
        """How to store, where a store of the identity `recorded` is there, or none."""
        kept = config.shardwriter if recorded is None or self.overwrite else recorded
        return Storage(self.dtype or kept.dtype, self.audio or kept.audio)
