"""What build-shards is asked for, beside the config."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from iianet.config.schema import Config
from shardwriter.build.difference import Wanted
from shardwriter.execute.executor import Executor, OneProcess
from shardwriter.format.names import SPLITS
from shardwriter.format.record import Identity


class Stored(NamedTuple):
    """How embeddings and their audio are stored: `dtype` and `audio` of an Identity."""

    dtype: str
    audio: str


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a build is asked for.

    Attributes:
        splits: To build; the training split with the views that the config asks for and those that the store has.
        device: That encodes, or the first of those that do.
        executor: Runs the tasks; None is this process, on `device`.
        dtype: Type of the stored embeddings; None is the store's, where it exists, else the config's.
        audio: `path` or `embed`; None likewise.
        overwrite: Build everything again, with the views that the config asks for; the old store stays in use until
            then.
        limit: Take only the first so many utterances of each split, in hash order.
        verify_sources: Digest every npz, even where size and time are as recorded.
        retry_failed: Try those again that failed and have not changed since.
        import_embeddings: Take the embeddings that an earlier tool left beside the npz, instead of encoding.
    """

    splits: Sequence[str] = SPLITS
    device: torch.device
    executor: Executor | None = None
    dtype: str | None = None
    audio: str | None = None
    overwrite: bool = False
    limit: int | None = None
    verify_sources: bool = False
    retry_failed: bool = False
    import_embeddings: bool = False

    @property
    def runner(self) -> Executor:
        """Who runs the tasks."""
        return self.executor or OneProcess(self.device)

    @property
    def wanted(self) -> Wanted:
        """Which differences count."""
        return Wanted(self.limit, self.verify_sources, self.retry_failed)

    def stored(self, config: Config, recorded: Identity | None) -> Stored:
        """How to store, where a store of the identity `recorded` is there, or none."""
        kept = config.shardwriter if recorded is None or self.overwrite else recorded
        return Stored(self.dtype or kept.dtype, self.audio or kept.audio)
