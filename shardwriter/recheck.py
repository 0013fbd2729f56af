"""Encode some stored utterances again and compare (inspect-shards --recheck)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tabulate import tabulate
from tqdm import tqdm

from configs.errors import StoreError
from iianet.encoder_source import EncoderSource
from iianet.video_encoder import VideoEncoder
from shardwriter.contents import Contents, Entry, spread
from shardwriter.encode import encode_clips, read_clip
from shardwriter.identity import identity_of, refuse_other_identity
from shardwriter.manifest import Manifest
from shardwriter.sample import open_tar, read_embedding

TOLERANCE: Mapping[str, float] = {"float16": 1e-3, "float32": 1e-5}
"""Largest difference, of the largest value: float16 rounds by 5e-4; other kernels and packs move float32 by 1e-6."""


@dataclass(frozen=True, kw_only=True)
class Recheck:
    """One utterance encoded again.

    Attributes:
        difference: max|stored - encoded| / max|encoded|; None where they cannot be compared.
        problem: What is wrong, if anything is.
    """

    split: str
    key: str
    difference: float | None = None
    problem: str | None = None


def recheck(
    contents: Contents, manifests: Mapping[str, Manifest], source: EncoderSource, device: torch.device, count: int
) -> list[Recheck]:
    """Encode `count` stored utterances of the manifests again, evenly over hash order.

    Raises:
        StoreError: The store was made with another encoder than `source`.
    """
    encoder = source.load(device)
    recorded = contents.identity
    refuse_other_identity(contents.store, recorded, identity_of(source, encoder.fingerprint(), recorded.dtype))
    npz = {
        (split, utterance.key): (manifest.data_root, utterance.mouth)
        for split, manifest in manifests.items()
        for utterance in manifest.utterances
    }
    stored = [(split, key) for split in contents.splits for key in contents.stored(split) if (split, key) in npz]
    chosen = spread(stored, count)
    return [
        _recheck(contents, contents.entry(*item), *npz[item], encoder, device)
        for item in tqdm(chosen, desc="encoding again", unit="utt", dynamic_ncols=True)
    ]


def _recheck(
    contents: Contents, entry: Entry, data_root: Path, mouth: str, encoder: VideoEncoder, device: torch.device
) -> Recheck:
    try:
        with open_tar(contents.store, entry.shard) as tar:
            stored = read_embedding(tar, entry)
        difference = _difference(stored, _encode_again(entry, data_root, mouth, encoder, device))
    except StoreError as error:
        return Recheck(split=entry.split, key=entry.key, problem=str(error))
    allowed = TOLERANCE[contents.identity.dtype]
    too_far = f"differs by {difference:.2g} when encoded again; expected at most {allowed:g}"
    problem = too_far if difference > allowed else None
    return Recheck(split=entry.split, key=entry.key, difference=difference, problem=problem)


def _encode_again(
    entry: Entry, data_root: Path, mouth: str, encoder: VideoEncoder, device: torch.device
) -> npt.NDArray[np.float32]:
    """Embedding, `(512, frames)`. Raises StoreError where the npz is no longer what was encoded."""
    clip = read_clip(data_root, mouth)
    encoded = encode_clips(iter([clip]), encoder, device)[0]
    if encoded.embedding is None:
        raise StoreError(f"{mouth} cannot be encoded again: {encoded.error}")
    if clip.source.digest != entry.source_digest:
        raise StoreError(f"{mouth} has changed since it was encoded; build-shards encodes it again")
    return encoded.embedding


def _difference(stored: npt.NDArray[Any], reference: npt.NDArray[np.float32]) -> float:
    """max|stored - reference| / max|reference|. Raises StoreError where they cannot be compared."""
    if stored.shape != reference.shape:
        raise StoreError(f"is stored as {stored.shape}; encoded again it is {reference.shape}")
    if not np.isfinite(stored).all():
        raise StoreError("is stored with values that are not finite")
    largest = float(np.abs(reference).max())
    distance = float(np.abs(stored.astype(np.float32) - reference).max())
    return distance / largest if largest else distance


def recheck_problems(checked: Sequence[Recheck]) -> Iterator[str]:
    """In one line an utterance."""
    for item in checked:
        if item.problem is not None:
            yield f"{item.split} {item.key}: {item.problem}"


def recheck_lines(checked: Sequence[Recheck]) -> list[str]:
    """For people."""
    rows = [
        (item.split, item.key, "-" if item.difference is None else f"{item.difference:.2e}", item.problem or "ok")
        for item in checked
    ]
    headers = ["split", "encoded again", "max|diff|/max|ref|", ""]
    return tabulate(rows, headers=headers, disable_numparse=True).splitlines()
