"""Encode some stored utterances again and compare (inspect-shards --recheck)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tabulate import tabulate
from tqdm import tqdm

from iianet.encoder.mouth import view_crop
from iianet.encoder.protocol import Encoder
from iianet.encoder.source import EncoderSource
from iianet.errors import MouthError, StoreError
from shardwriter.corpus.manifest import Manifest
from shardwriter.corpus.mouth_npz import read_mouth_npz
from shardwriter.format.index import Entry
from shardwriter.format.names import split_view_key
from shardwriter.format.record import Identity
from shardwriter.format.sample import read_values
from shardwriter.inspect.inspected import InspectedStore, choose_evenly
from shardwriter.inspect.report import Section
from shardwriter.store.identity import identity_of, recorded_kernels, refuse_other_identity

TOLERANCE: Mapping[str, float] = {"float16": 1e-3, "float32": 1e-5, "int8": 4e-3}
"""Largest difference, of the largest value: float16 rounds by 5e-4, int8 by half a step, 1/254 of its row's largest;
other kernels and packs move float32 by 1e-6."""
IMPORTED_TOLERANCE = 1e-2
"""The same where an earlier tool encoded: TF32, its default on GPUs, moves embeddings by 6e-4 (emulated).
Other weights give embeddings that have nothing in common."""
BFLOAT16_TOLERANCE = 2e-2
"""The same where the encoder computes in bfloat16: packs of other sizes round elsewhere, by 6e-3 (measured)."""


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
    store: InspectedStore, manifests: Mapping[str, Manifest], source: EncoderSource, device: torch.device, count: int
) -> Section:
    """Encode `count` stored utterances of the manifests again, evenly over hash order.

    Imported embeddings are compared too, which shows whether `source` may have made them.

    Raises:
        StoreError: The store was made with another encoder than `source`.
    """
    recorded = store.identity
    if recorded.is_imported:
        encoder = source.load(device)
    else:
        kernels = recorded_kernels(store.name, recorded, source.precision)
        encoder = source.load(device, kernels.on(device))
        asked = identity_of(source, encoder.fingerprint, kernels, recorded.dtype, recorded.audio)
        refuse_other_identity(store.name, recorded, asked)
    npz = {
        (split, utterance.key): (manifest.data_root, utterance.mouth)
        for split, manifest in manifests.items()
        for utterance in manifest.utterances
    }
    stored = [(split, key) for split in store.splits for key in store.stored(split) if (split, key) in npz]
    chosen = choose_evenly(stored, count)
    checked = [
        _recheck(store, store.entry(*item), *npz[item], encoder, device)
        for item in tqdm(chosen, desc="encoding again", unit="utt", dynamic_ncols=True)
    ]
    return _section_of(checked)


def _recheck(
    store: InspectedStore, entry: Entry, data_root: Path, mouth: str, encoder: Encoder, device: torch.device
) -> Recheck:
    imported = store.identity.is_imported
    try:
        with store.open_tar(entry) as tar:
            stored = read_values(tar, entry)
        frames = _read_again(data_root, mouth, None if imported else entry.source_digest)
        clip = torch.from_numpy(view_crop(*split_view_key(entry.key)).apply(frames))
        difference = _difference(stored, encoder.encode([clip.to(device)])[0].cpu().numpy())
    except StoreError as error:
        return Recheck(split=entry.split, key=entry.key, problem=str(error))
    allowed = max(TOLERANCE[store.identity.dtype], _encoder_tolerance(store.identity))
    too_far = f"differs by {difference:.2g} when encoded again; expected at most {allowed:g}"
    problem = too_far if difference > allowed else None
    return Recheck(split=entry.split, key=entry.key, difference=difference, problem=problem)


def _encoder_tolerance(identity: Identity) -> float:
    if identity.is_imported:
        return IMPORTED_TOLERANCE
    return BFLOAT16_TOLERANCE if identity.precision.get("dtype") == "bfloat16" else 0.0


def _read_again(data_root: Path, mouth: str, digest: str | None) -> npt.NDArray[np.uint8]:
    """Mouth frames, `(frames, 96, 96)`. Raises StoreError where the npz is no longer what was encoded."""
    path = data_root / mouth
    try:
        npz = read_mouth_npz(path)
    except MouthError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise StoreError(f"{mouth} cannot be encoded again: {reason}") from error
    if digest is not None and npz.source.digest != digest:
        raise StoreError(f"{mouth} has changed since it was encoded; build-shards encodes it again")
    return npz.frames


def _difference(stored: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> float:
    """max|stored - reference| / max|reference|. Raises StoreError where they cannot be compared."""
    if stored.shape != reference.shape:
        raise StoreError(f"is stored as {stored.shape}; encoded again it is {reference.shape}")
    if not np.isfinite(stored).all():
        raise StoreError("is stored with values that are not finite")
    largest = float(np.abs(reference).max())
    distance = float(np.abs(stored - reference).max())
    return distance / largest if largest else distance


def _section_of(checked: Sequence[Recheck]) -> Section:
    rows = [
        (item.split, item.key, "-" if item.difference is None else f"{item.difference:.2e}", item.problem or "ok")
        for item in checked
    ]
    return Section(
        text=tabulate(rows, headers=["split", "encoded again", "max|diff|/max|ref|", ""], disable_numparse=True),
        fields={"recheck": [asdict(item) for item in checked]},
        problems=[f"{item.split} {item.key}: {item.problem}" for item in checked if item.problem is not None],
    )
