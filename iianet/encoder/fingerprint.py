"""Digest of a network's weights. It is apart because every encoder needs one, whatever its layers are."""

import hashlib

import torch
from torch import nn


@torch.no_grad()
def weights_fingerprint(network: nn.Module) -> str:
    """Digest of the weights and statistics, whatever file they came from: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue  # counts training steps, which do not change what the network computes
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]
