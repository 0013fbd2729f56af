"""The loader of ShardedEmbeddings that knows which batches were used, whatever its workers have read ahead."""

from typing import Any

from loaders.embeddings.sharded_embeddings import EmbeddingBatch, ShardedEmbeddings
from loaders.epochs import EpochLoader


class EmbeddingLoader(EpochLoader[EmbeddingBatch]):
    """A DataLoader of ready batches, whose `state_dict` resumes at the next one, inside an epoch too.

    Each iteration is the next epoch, also where the one before was left early. Lightning saves and loads the state. A
    worker that is killed, or loses batches, is a TrainingError.

    Args:
        dataset: Makes the batches.
        num_workers: Worker processes; the batches do not depend on them.
        options: Of the DataLoader, such as pin_memory, persistent_workers and multiprocessing_context.
    """

    dataset: ShardedEmbeddings

    def __init__(self, dataset: ShardedEmbeddings, num_workers: int = 0, **options: Any) -> None:
        super().__init__(dataset, num_workers=num_workers, **options)

    def state_dict(self) -> dict[str, Any]:
        """Position of the next batch, and what the order of the batches follows from."""
        return self.dataset.state_at(self.epochs.position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where `state_dict` was taken. Raises ConfigError where that was in another order of batches."""
        self.dataset.load_state_dict(state)
