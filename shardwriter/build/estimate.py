"""What a build would take, by the lengths that its manifests tell."""

from collections.abc import Mapping

import numpy as np

from iianet.encoder.mouth import SAMPLES_PER_FRAME
from iianet.encoder.video_encoder import EMBEDDING_DIM
from shardwriter.build.options import Storage
from shardwriter.build.work import Work
from shardwriter.corpus.manifest import Manifest
from shardwriter.format.audio import stored_dtype
from shardwriter.format.names import parse_view_split

SAMPLE_BYTES = 4096
"""Of a sample beside its data, about: headers, padding to tar blocks, its json member, its rows of plan and index."""


def count_embeddings(work: Mapping[str, Work]) -> int:
    """Embeddings to be made: of utterances, and of views of them."""
    return sum(_count(item) for item in work.values())


def count_frames(work: Mapping[str, Work]) -> float:
    """Frames to be encoded, about."""
    return sum(_frames(item) for item in work.values())


def stored_bytes(work: Mapping[str, Work], storage: Storage) -> float:
    """Bytes that a build would add to its store, about. Raises AudioError where a wav cannot be stored."""
    return sum(_stored_bytes(split, item, storage) for split, item in work.items())


def _count(work: Work) -> int:
    return len(work.to_plan) + len(work.resumed)


def _frames(work: Work) -> float:
    lengths = work.manifest.num_samples()
    return _count(work) * float(lengths.mean()) / SAMPLES_PER_FRAME if len(lengths) else 0.0


def _stored_bytes(split: str, work: Work, storage: Storage) -> float:
    columns = _frames(work) * np.dtype(storage.dtype).itemsize
    if storage.dtype == "int8":
        columns += _count(work) * np.dtype(np.float32).itemsize  # the scale
    has_audio = storage.audio == "embed" and parse_view_split(split)[1] == 0
    audio = _count(work) * _mean_audio_bytes(work.manifest) if has_audio else 0.0
    return columns * EMBEDDING_DIM + audio + _count(work) * SAMPLE_BYTES


def _mean_audio_bytes(manifest: Manifest) -> float:
    """Of an utterance, if all wavs are as the first: each of its examples holds a source and a mixture."""
    if not len(manifest.examples):
        return 0.0
    itemsize = np.dtype(stored_dtype(manifest.data_root / manifest.examples[0].mixture)).itemsize
    return 2.0 * itemsize * float(manifest.num_samples().sum()) / len(manifest.utterances)
