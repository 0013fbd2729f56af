"""Augmentation of embeddings: off by default, each example on its own, as much as was asked for."""

import pytest
import torch

from iianet.config.data_section import EmbeddingAugmentation
from iianet.training.embedding_augmentation import augment_embedding

ONES = torch.ones(64, 32, 50)


def augmented(embedding: torch.Tensor = ONES, **options: float) -> torch.Tensor:
    torch.manual_seed(0)
    return augment_embedding(embedding, EmbeddingAugmentation(**options))  # type: ignore[arg-type]


def test_by_default_nothing_changes_and_nothing_is_drawn() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert augment_embedding(ONES, EmbeddingAugmentation()) is ONES
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("options", [{"time_mask": 10}, {"channel_dropout": 0.3}])
def test_the_same_seed_gives_the_same_and_examples_differ(options: dict[str, float]) -> None:
    found = augmented(**options)
    assert torch.equal(found, augmented(**options))
    assert len({tuple(row.flatten().tolist()) for row in found}) > 5


def test_a_mask_is_one_run_of_at_most_so_many_frames_over_all_channels() -> None:
    masked = augmented(time_mask=10) == 0
    assert (masked == masked[:, :1]).all()
    lengths = masked[:, 0].sum(dim=1)
    assert lengths.min() == 0
    assert lengths.max() == 10
    edges = (masked[:, 0, 1:] != masked[:, 0, :-1]).sum(dim=1)
    assert edges.max() <= 2
    assert masked[:, 0].any(dim=0).all()  # every frame is masked now and then


def test_a_mask_longer_than_the_segment_is_cut_to_it() -> None:
    assert (augmented(ONES[:, :, :3], time_mask=1000) == 0).flatten(1).all(dim=1).any()


def test_dropped_channels_are_zero_throughout_and_the_mean_stays() -> None:
    found = augmented(channel_dropout=0.25)
    dropped = found == 0
    assert (dropped == dropped[:, :, :1]).all()
    assert dropped.float().mean() == pytest.approx(0.25, abs=0.02)
    assert found[~dropped] == pytest.approx(1 / 0.75)


def test_noise_is_a_share_of_the_embeddings_own_spread() -> None:
    embedding = torch.randn(8, 512, 50) * torch.arange(1.0, 9.0)[:, None, None]
    noise = augmented(embedding, noise=0.1) - embedding
    for row, scale in zip(noise, range(1, 9), strict=True):
        assert float(row.std()) == pytest.approx(0.1 * scale, rel=0.03)
