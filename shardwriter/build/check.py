"""build-shards --check: what a build would stumble over, before it starts."""

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
import torch
from tabulate import tabulate

from iianet.config.schema import Config
from iianet.encoder.mouth import FRAME_SIZE, SAMPLE_RATE, center_crop
from iianet.encoder.protocol import Encoder
from iianet.errors import FeatureStoreError, MouthError
from iianet.wording import counted, duration
from shardwriter.build.build import Build
from shardwriter.build.difference import SAMPLED, Difference, refuse_missing_files, spread
from shardwriter.build.options import BuildOptions
from shardwriter.build.preparation import Preparation
from shardwriter.build.report import counted_corpus
from shardwriter.corpus.manifest_data import Manifest
from shardwriter.corpus.mouth_lengths import other_lengths
from shardwriter.corpus.mouth_npz import read_mouth_npz
from shardwriter.corpus.wavs import stored_dtype, wav_problems
from shardwriter.encode.imported import read_embedding
from shardwriter.format.names import parse_view_split
from shardwriter.format.record import Identity
from shardwriter.format.sample import Failed
from shardwriter.storage.storage import Storage

TIMED_FRAMES = 100
SAMPLE_BYTES = 4096
"""Of a sample beside its data, about: headers, padding to tar blocks, its json member, its rows of plan and index."""
PACKAGES = ("torch", "numpy", "pyarrow", "webdataset", "soundfile", "pytorch_lightning")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the table; `problem` is what to fix, empty where all is well."""

    what: str
    found: str
    problem: str = ""


def show(findings: Sequence[Finding]) -> str:
    """The table, wrapped between words for a terminal; in files each finding is one line."""
    room = max(40, shutil.get_terminal_size().columns - 30) if sys.stdout.isatty() else sys.maxsize
    wrapper = textwrap.TextWrapper(room, break_long_words=False, break_on_hyphens=False)  # a path stays whole
    rows = []
    for it in findings:
        lines = (it.problem or it.found).splitlines()
        rows.append((it.what, "FIX" if it.problem else "ok", "\n".join(map(wrapper.fill, lines))))
    return tabulate(rows, tablefmt="plain")  # rules would be as wide as the longest path


def check(config: Config, storage: Storage, options: BuildOptions) -> list[Finding]:
    """Take the steps of a build that write nothing, and look at all else that it needs."""
    steps = Preparation(config, storage, options)
    findings = [
        Finding(what="config", found=f"exp {config.exp.exp_name}"),
        _try("imports", _imports),
        weights := _try("weights", lambda: _weights(steps)),
        _try("device", lambda: _device(options.device)),
        corpus := _try("manifests", lambda: _manifests(steps)),
    ]
    for split, manifest in steps.manifests.items() if not corpus.problem else ():
        findings.append(_try(f"{split} npz", partial(_sample_mouths, steps.config, manifest)))
        if options.import_embeddings:
            findings.append(_try(f"{split} embeddings", partial(_sample_embeddings, steps, manifest)))
        findings.append(_try(f"{split} wav", partial(_sample_audio, manifest)))
    if weights.problem or corpus.problem:
        return findings
    found: dict[str, Difference] = {}
    findings.append(_try("store", lambda: _store(steps, found)))
    if found:
        findings.append(_try("disk", lambda: _disk(steps, found)))
    if found and (encoder := steps.encoder) is not None:
        findings.append(_try("time", lambda: _time(encoder, steps, found)))
    return findings


def _try(what: str, find: Callable[[], str]) -> Finding:
    try:
        return Finding(what=what, found=find())
    except FeatureStoreError as error:
        return Finding(what=what, found="", problem=str(error))


def _weights(steps: Preparation) -> str:
    if steps.encoder is None:
        return "none needed, embeddings are imported"
    source = steps.config.encoder_source()
    origin = source.pretrain or f"RANDOM, seed {source.seed}"
    return f"{origin}, fingerprint {steps.encoder.fingerprint}"


def _manifests(steps: Preparation) -> str:
    counts = {split: len(manifest.utterances) for split, manifest in steps.manifests.items()}
    refuse_missing_files([(manifest, range(len(manifest.utterances))) for manifest in steps.manifests.values()])
    utterances = ", ".join(f"{split} {counted(count, 'utterance')}" for split, count in counts.items())
    return f"{utterances}; {counted_corpus(steps.manifests)}"


def _store(steps: Preparation, found: dict[str, Difference]) -> str:
    """Whether a build may add to the store, and what: put into `found`."""
    found.update(Build(steps).survey())
    steps.refuse_other_identity()
    name = steps.storage.name
    if steps.snapshot is None:
        return f"{name} will be made"
    if steps.resumes_overwrite:
        return f"the --overwrite of {name} that is in progress will be resumed"
    return f"{name} will be {'replaced' if steps.options.overwrite else 'resumed'}"


def _disk(steps: Preparation, found: Mapping[str, Difference]) -> str:
    """Whether there is room for what a build would add."""
    storage = steps.storage
    needed = sum(stored_bytes(split, difference, steps.identity) for split, difference in found.items())
    free, staging = storage.free_bytes(), storage.staging.absolute()
    if free is None:
        return f"{needed / 1e9:.2f} GB will go to {storage.name}, a few shards at a time through {staging}"
    folder = next(part for part in (staging, *staging.parents) if part.exists())
    if not os.access(folder, os.W_OK):
        raise FeatureStoreError(f"{folder}: cannot be written; choose another --shards folder, or fix its rights")
    room = f"{needed / 1e9:.2f} GB needed, {free / 1e9:.1f} GB free in {folder}"
    if free <= needed:
        raise FeatureStoreError(f"{room}; free some, or choose another --shards folder")
    return room


def _time(encoder: Encoder, steps: Preparation, found: Mapping[str, Difference]) -> str:
    """How long it would take, by encoding one clip."""
    count = sum(difference.count for difference in found.values())
    if not count:
        return "nothing to encode: everything is stored already"
    device = steps.options.device
    clip = center_crop(torch.zeros(TIMED_FRAMES, FRAME_SIZE, FRAME_SIZE, dtype=torch.uint8, device=device))
    encoder.encode([clip])[0].cpu()
    started = time.monotonic()
    encoder.encode([clip])[0].cpu()
    per_frame = (time.monotonic() - started) / TIMED_FRAMES
    frames = sum(count_frames(difference, steps.identity.fps) for difference in found.values())
    return f"about {duration(frames * per_frame)} for {count} embeddings on {device}"


def _imports() -> str:
    """Packages that only later steps would miss, with the versions that are here."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise FeatureStoreError(f"{', '.join(missing)} cannot be imported; install with make install")
    return ", ".join(f"{name} {version(name)}" for name in PACKAGES)


def _device(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    )


def _sample_mouths(config: Config, manifest: Manifest) -> str:
    chosen, problems = spread(range(len(manifest.utterances))), []
    frames = np.zeros(len(manifest.utterances), dtype=np.int64)
    for index in chosen:
        try:
            frames[index] = len(read_mouth_npz(manifest.data_root / manifest.utterances[index].mouth).frames)
        except MouthError as error:
            problems.append(str(error))
    found = _sampled(len(chosen), problems, "npz can be used", "are fine")
    fps, tolerance = config.encoder.fps, config.datamodule.data_config.frame_tolerance
    others = other_lengths(manifest, frames, SAMPLE_RATE / fps, tolerance)
    if others and len(others) == np.count_nonzero(frames):
        raise FeatureStoreError(
            f"none of {len(others)} sampled npz is as long as its audio at {fps} frames a second: {others[0]}. Make "
            "them again, or allow it with datamodule.data_config.frame_tolerance"
        )
    return f"{found}; {len(others)} of another length than their audio: {others[0]}" if others else found


def _sample_embeddings(steps: Preparation, manifest: Manifest) -> str:
    """Whether an earlier tool's files can be imported."""
    identity = replace(steps.identity, audio="path")
    chosen = [manifest.utterances[index] for index in spread(range(len(manifest.utterances)))]
    rows = [{"mouth": item.mouth, "utterance": item.name, "audio": []} for item in chosen]
    read = [read_embedding(row, manifest.data_root, identity) for row in rows]
    problems = [sample.reason for sample in read if isinstance(sample, Failed)]
    return _sampled(len(chosen), problems, "files can be imported", "can be imported")


def _sampled(count: int, problems: Sequence[str], none: str, some: str) -> str:
    """How many of `count` sampled files are without problems. Raises FeatureStoreError where none is."""
    if not count:
        return "no utterances"
    if len(problems) == count:
        raise FeatureStoreError(f"none of {count} sampled {none}, e.g. {problems[0]}")
    broken = f"; {len(problems)} would be listed as failed: {problems[0]}" if problems else ""
    return f"{count - len(problems)} of {count} sampled {some}{broken}"


def _sample_audio(manifest: Manifest) -> str:
    chosen = set(spread(range(len(manifest.utterances))))
    examples = [example for example in manifest.examples if example.utterance in chosen][:SAMPLED]
    wavs = {wav: example.num_samples for example in examples for wav in (example.mixture, example.source)}
    problems = wav_problems((manifest.data_root / wav, num_samples) for wav, num_samples in wavs.items())
    if problems:
        raise FeatureStoreError(f"{len(problems)} of {len(wavs)} checked cannot be used: {problems[0]}")
    return f"{len(wavs)} checked by their headers, all match the manifest"


def count_frames(found: Difference, fps: float) -> float:
    """Frames to be encoded, about."""
    lengths = found.manifest.num_samples()
    return found.count * float(lengths.mean()) * fps / SAMPLE_RATE if len(lengths) else 0.0


def stored_bytes(split: str, found: Difference, identity: Identity) -> float:
    """Bytes that a build would add to its store for a split, about. Raises AudioError where a wav cannot be stored."""
    rows = count_frames(found, identity.fps) * np.dtype(identity.dtype).itemsize
    if identity.dtype == "int8":
        rows += found.count * np.dtype(np.float32).itemsize  # the scale
    has_audio = identity.audio == "embed" and parse_view_split(split)[1] == 0
    audio = found.count * _mean_audio_bytes(found.manifest) if has_audio else 0.0
    return rows * identity.dim + audio + found.count * SAMPLE_BYTES


def _mean_audio_bytes(manifest: Manifest) -> float:
    """Of an utterance, if all wavs are as the first: each of its examples holds a source and a mixture."""
    if not len(manifest.examples):
        return 0.0
    itemsize = np.dtype(stored_dtype(manifest.data_root / manifest.examples[0].mixture)).itemsize
    return 2.0 * itemsize * float(manifest.num_samples().sum()) / len(manifest.utterances)
