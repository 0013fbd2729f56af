"""The lip encoder computes what the published one does, and stays frozen."""

import torch
from helpers.reference_golden import load_golden, published_shapes, published_weights, relative_difference, uniform
from torch import nn

from iianet.checkpoint import load_published
from iianet.encoder.fingerprint import weights_fingerprint
from iianet.encoder.video_encoder import VideoEncoder


def test_embedding_equals_that_of_the_reference() -> None:
    encoder = VideoEncoder()
    load_published(encoder, published_weights(published_shapes("encoder")))
    embedding = encoder(3 * uniform(3, (2, 1, 9, 88, 88)))
    assert embedding.shape == (2, 512, 9)
    assert relative_difference(embedding, load_golden("encoder")["embedding"]) <= 1e-5


def test_train_leaves_it_in_eval_mode() -> None:
    encoder = VideoEncoder()
    nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())


def test_statistics_do_not_drift_and_no_gradients_flow() -> None:
    encoder = VideoEncoder().train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    mouths = uniform(1, (1, 1, 3, 88, 88)).requires_grad_()
    assert not encoder(mouths).requires_grad
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_fingerprint_tells_weights_apart_and_nothing_else() -> None:
    first, same, other = VideoEncoder(), VideoEncoder(), VideoEncoder()
    for encoder, seed in ((first, 0), (same, 0), (other, 1)):
        encoder.init_weights(seed)
    same.front_end[1].num_batches_tracked += 5
    assert weights_fingerprint(first) == weights_fingerprint(same) != weights_fingerprint(other)
    same.front_end[1].running_var += 1
    assert weights_fingerprint(first) != weights_fingerprint(same)
