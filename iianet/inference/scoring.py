"""Figures of estimates, computed beside the network: in processes where a metric takes a tenth of a second a row."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from iianet.batch import Batch
from iianet.encoder.kernels import exact_kernels
from iianet.encoder.lazy_encoder import LazyEncoder
from iianet.errors import OutputError
from iianet.inference.metrics import PACKAGES, ExampleFigures, Signals, figures_of
from iianet.inference.trained import refuse_not_finite
from iianet.interruption import begin_helper
from iianet.launch import usable_cores
from iianet.separator.model import IIANet

Item = TypeVar("Item")
Score = Callable[[Signals], "Future[ExampleFigures]"]


class Scored(NamedTuple):
    """A row of a batch: number of its example, its length in samples, and its figures."""

    example: int
    num_samples: int
    figures: ExampleFigures


@torch.inference_mode()
def estimates(model: IIANet, encoder: LazyEncoder, batch: Batch, device: torch.device) -> list[Signals]:
    """Separate the examples of a batch, in float32 on the device.

    Returns:
        What was heard, meant and estimated in each row, float64.

    Raises:
        WeightsError: An estimate is not finite.
    """
    sent = batch.to(device, non_blocking=True)
    embedding = encoder.complete(sent)
    with exact_kernels(device):
        estimate: Tensor = model(sent.mixture, embedding)[:, 0]  # (batch, num_samples)
    refuse_not_finite(estimate)
    columns = (batch.mixture, batch.target, estimate)
    rows = zip(*(column.double().cpu().numpy() for column in columns), strict=True)
    return [Signals(*row) for row in rows]


def scored(batches: Iterable[tuple[Batch, list[Signals]]], score: Score) -> Iterator[list[Scored]]:
    """The figures of each batch's examples, in order; the next batches are separated while figures are computed."""
    pending: deque[list[tuple[int, int, Future[ExampleFigures]]]] = deque()
    for batch, heard in batches:
        rows = zip(batch.examples, heard, strict=False)  # a batch of no example has a silent row
        pending.append([(example, len(row.target), score(row)) for example, row in rows])
        while sum(map(len, pending)) > 4 * usable_cores():
            yield _results(pending.popleft())
    yield from map(_results, pending)


@contextmanager
def scorer(metrics: Sequence[str], published_sdr: bool) -> Iterator[Score]:
    """What computes the figures of a row: other processes where a metric is slow, else this one, at once."""
    compute = partial(figures_of, metrics=tuple(metrics), published_sdr=published_sdr)
    if not PACKAGES.keys() & set(metrics):
        yield lambda heard: _done(compute(heard))
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy a process that uses a GPU, and threads
    with ProcessPoolExecutor(usable_cores(), context, initializer=_begin) as pool:
        try:
            yield lambda heard: pool.submit(compute, heard)
        except BrokenProcessPool as error:
            raise OutputError(
                "a process that computed figures was ended, often because memory ran out. What was evaluated is "
                "recorded: run the command again to resume"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    begin_helper()
    torch.set_num_threads(1)


def _results(rows: list[tuple[int, int, "Future[ExampleFigures]"]]) -> list[Scored]:
    return [Scored(example, num_samples, figures.result()) for example, num_samples, figures in rows]


def _done(figures: ExampleFigures) -> "Future[ExampleFigures]":
    future: Future[ExampleFigures] = Future()
    future.set_result(figures)
    return future
