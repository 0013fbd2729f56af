"""What build-shards is asked for, beside the config."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from iianet.errors import ConfigError
from iianet.launch import Launch
from shardwriter.execute.executor import Executor, OneProcess
from shardwriter.format.names import SPLITS, parse_view_split
from shardwriter.store.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a build is asked for.

    Attributes:
        splits: To build; the training split with the views that the config asks for and those that the store has.
        device: That encodes, or the first of those that do.
        executor: Runs the tasks; None is this process, on `device`.
        rank: Which of several processes this is that build together; None where it is alone.
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
    rank: Launch | None = None
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
