"""Every example comes once, in batches of one length that lie in one window."""

import numpy as np
import pytest

from loaders.evaluation import EqualLengths


def order(lengths: list[int], batch_size: int, window_blocks: int = 2, block_size: int = 3) -> EqualLengths:
    count = len(lengths)
    return EqualLengths(
        utterance_of_example=np.arange(count) // 2,
        eligible=np.arange(count),
        seed=0,
        batch_size=batch_size,
        shuffle=False,
        dynamic_mixing=False,
        drop_last=False,
        block_size=block_size,
        window_blocks=window_blocks,
        lengths=np.array(lengths),
    )


@pytest.mark.parametrize("batch_size", [1, 2, 3, 50])
def test_every_example_comes_once_in_batches_of_one_length(batch_size: int) -> None:
    lengths = np.random.default_rng(0).choice([640, 1280, 1300], 41).tolist()
    found = order(lengths, batch_size)
    epoch = found.epoch(0)
    batches = [found.positions(number, 0) for number in range(found.num_batches)]
    assert sorted(epoch.example[np.concatenate(batches)].tolist()) == list(range(41))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len({lengths[example] for example in epoch.example[batch]}) == 1
        assert len(set(epoch.window[batch].tolist())) == 1
    windows = epoch.window[np.concatenate(batches)]
    assert (np.diff(windows) >= 0).all(), "shards are read one after the other"


def test_equally_long_examples_fill_their_batches() -> None:
    found = order([640] * 24, 5, window_blocks=8)
    assert [len(found.positions(number, 0)) for number in range(found.num_batches)] == [5, 5, 5, 5, 4]
