"""What build-shards is asked for, beside the config."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from iianet.config.schema import Config
from iianet.encoder.kernels import Kernels
from iianet.encoder.protocol import Encoder
from iianet.encoder.source import EncoderSource
from iianet.errors import ConfigError
from shardwriter.build.difference import Wanted
from shardwriter.execute.executor import Executor, OneProcess
from shardwriter.format.names import SPLITS, parse_view_split
from shardwriter.format.plan import PlanHeader
from shardwriter.format.record import Identity
from shardwriter.store.identity import identity_of, recorded_kernels
from shardwriter.store.snapshot import Snapshot


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

    def refuse_partial_overwrite(self, snapshot: Snapshot) -> None:
        """Raise ConfigError where an --overwrite is asked for less than what the store holds."""
        stored = {parse_view_split(split)[0] for split in snapshot.splits}
        left_out = stored.difference(self.splits)
        if left_out or self.limit is not None:
            asked = f"--limit {self.limit}" if self.limit is not None else f"without {', '.join(sorted(left_out))}"
            raise ConfigError(
                f"{snapshot.storage.name}: --overwrite replaces the whole store, so that it keeps one identity, but "
                f"was asked {asked}. Give --data_split all and no --limit, or another --shards folder."
            )


def is_overwrite(pending: PlanHeader | None, identity: Identity) -> bool:
    """Whether the pending plan of a store, if any, is an --overwrite with this identity."""
    return pending is not None and pending.kind == "replace" and pending.identity == identity


def chosen_kernels(
    snapshot: Snapshot | None, source: EncoderSource, encoder: Encoder, stored: Stored, *, overwrite: bool
) -> Kernels:
    """The kernels that a build uses: those that its store was begun with, else the device's default ones.

    Raises:
        StoreError: The store's are of another version.
    """
    if snapshot is None:
        return encoder.kernels
    pending = snapshot.pending
    if pending is not None and pending.kind == "replace" and not pending.identity.is_imported:
        kernels = recorded_kernels(snapshot.storage.name, pending.identity, source.precision)
        if identity_of(source, encoder.fingerprint, kernels, *stored) == pending.identity:
            return kernels
    if overwrite or snapshot.identity.is_imported:
        return encoder.kernels
    return recorded_kernels(snapshot.storage.name, snapshot.identity, source.precision)
