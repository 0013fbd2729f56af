"""The IterableDatasets of streams: Batches for training, and for validation."""

from collections.abc import Iterable, Iterator
from itertools import chain, count, islice

import torch
from torch.utils.data import IterableDataset

from iianet.batch import Batch, Dropped
from iianet.encoder.mouth import SAMPLES_PER_FRAME
from iianet.errors import StoreError
from loaders.stream import Part, buffered, generator, part_here, permuted
from loaders.stream_rows import Asked, Item, Made, RowMaker, eligible_examples, with_interferers
from loaders.stream_sample import StreamExample
from shardwriter.inspect.tar_samples import is_decoded, read_samples

SHUFFLE_BUFFER = 1000
"""Examples that a worker shuffles."""


class StreamDataset(IterableDataset[Batch]):
    """Batches of one split, of one rank.

    Args:
        urls: Its shards.
        rows: Makes the rows.
        batch_size: Rows of a batch.
        rank: Of this process.
        world_size: Ranks.
        num_workers: Of the loader.

    Attributes:
        too_short: Examples that this iteration has left out so far, of each worker.
    """

    def __init__(
        self, urls: list[str], rows: RowMaker, *, batch_size: int, rank: int, world_size: int, num_workers: int
    ) -> None:
        self.urls = urls
        self.rows = rows
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.too_short = torch.zeros(max(num_workers, 1), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, in every worker."""
        self._epoch.fill_(epoch)

    def _examples(self, share: Part, urls: list[str]) -> Iterator[Item]:
        samples = read_samples(share.of(urls), select=is_decoded)
        return eligible_examples(samples, self.rows, self.too_short[share.worker : share.worker + 1])


class ValidationStream(StreamDataset):
    """Every example once, as it was mixed.

    Each rank reads all shards and takes its part of every global batch, so that all have equally many batches and none
    waits for another.
    """

    def __iter__(self) -> Iterator[Batch]:
        share = part_here(rank=0, world_size=1)
        self.too_short[share.worker] = 0
        items = self._examples(share, self.urls)
        while group := list(islice(items, self.batch_size * self.world_size)):
            own = group[self.rank * self.batch_size :][: self.batch_size]
            yield self.rows.batch(
                [
                    Made(None, None, item) if isinstance(item, Dropped) else self.rows.make(Asked(item, 0))
                    for item in own
                ]
            )


class TrainingStream(StreamDataset):
    """The examples of this rank's shards, shuffled.

    Args:
        urls: See `StreamDataset`, as for `options`.
        rows: See `StreamDataset`.
        seed: Of the order.
        dynamic_mixing: Whether sources are mixed anew.
        random_start: Whether segments start at random frames; else at 0.
        batches: Of an epoch; the stream starts over where it ends before. None is one pass over the shards.
    """

    def __init__(
        self,
        urls: list[str],
        rows: RowMaker,
        *,
        seed: int,
        dynamic_mixing: bool,
        random_start: bool,
        batches: int | None,
        **options: int,
    ) -> None:
        super().__init__(urls, rows, **options)
        self.seed = seed
        self.dynamic_mixing = dynamic_mixing
        self.random_start = random_start
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        share = part_here(self.rank, self.world_size)
        self.too_short[share.worker] = 0
        if self.batches is None:
            yield from self._batches(self._pass(share, 0))
            return
        own = len(range(share.worker, self.batches, share.num_workers))
        yield from islice(self._batches(chain.from_iterable(self._full_pass(share, turn) for turn in count())), own)

    def _batches(self, made: Iterable[Made]) -> Iterator[Batch]:
        """Fill batches; what is left out does not make them smaller."""
        pending: list[Made] = []
        rows = 0
        for each in made:
            pending.append(each)
            rows += each.row is not None
            if rows == self.batch_size:
                yield self.rows.batch(pending)
                pending, rows = [], 0
        if pending:
            yield self.rows.batch(pending)

    def _full_pass(self, share: Part, turn: int) -> Iterator[Made]:
        """Raises StoreError where a pass has no row, since the next would have none either."""
        reason = "none of their examples is as long as the segment"
        rows = 0
        for made in self._pass(share, turn):
            rows += made.row is not None
            reason = made.dropped.reason if made.dropped else reason
            yield made
        if not rows:
            raise StoreError(
                f"{self.urls[0]}: the shards that worker {share.worker} of rank {share.rank} reads have nothing to "
                f"train on: {reason}. Mend them, or use fewer num_workers."
            )

    def _pass(self, share: Part, turn: int) -> Iterator[Made]:
        """The rows of this worker's shards."""
        place = (self.seed, int(self._epoch))
        own = (*place, share.rank, share.worker, turn)
        numbers = generator((*own, 1))

        def start(example: StreamExample) -> int:
            spare = (example.num_samples - self.rows.num_samples) // SAMPLES_PER_FRAME if self.random_start else 0
            return numbers.randint(0, spare)

        items = buffered(self._examples(share, permuted(self.urls, place)), SHUFFLE_BUFFER, own)
        for item, other in with_interferers(items) if self.dynamic_mixing else ((item, None) for item in items):
            if isinstance(item, Dropped):
                yield Made(None, None, item)
            else:
                yield self.rows.make(Asked(item, start(item), other, start(other) if other else 0))
