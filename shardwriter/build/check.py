"""build-shards --check: what a build would stumble over, before it starts."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
import soundfile
import torch

from iianet.config.schema import Config
from iianet.encoder.mouth import FRAME_SIZE, SAMPLES_PER_FRAME, center_crop
from iianet.encoder.protocol import Encoder
from iianet.encoder.registry import encoder_class
from iianet.errors import FeatureStoreError
from shardwriter.build.difference import Difference, find_differences
from shardwriter.build.options import BuildOptions, Stored, chosen_kernels, is_overwrite
from shardwriter.corpus.manifest import load_manifests
from shardwriter.corpus.manifest_data import Manifest
from shardwriter.corpus.mouth_npz import read_mouth_npz
from shardwriter.corpus.views import with_views
from shardwriter.corpus.wavs import stored_dtype
from shardwriter.encode.imported import ImportReader, refuse_views
from shardwriter.format.names import count_views, parse_view_split
from shardwriter.format.sample import Failed
from shardwriter.storage.storage import Storage
from shardwriter.store.identity import identity_of, imported_identity, refuse_other_identity
from shardwriter.store.snapshot import Snapshot, is_store

SAMPLED = 8
"""Files of each kind and split that are opened."""
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


def check(config: Config, storage: Storage, options: BuildOptions) -> list[Finding]:
    """Look at all that a build needs; write nothing."""
    checked = _Checked(config, storage, options)
    findings = [
        Finding(what="config", found=f"exp {config.exp.exp_name}"),
        _try("imports", _imports),
        _try("weights", checked.weights),
        _try("device", lambda: _device(options.device)),
        _try("manifests", checked.manifests),
    ]
    rate = config.datamodule.data_config.sample_rate
    for split, found in checked.differences.items():
        if parse_view_split(split)[1]:  # its files are those of the split
            continue
        findings.append(_try(f"{split} npz", partial(_sample_mouths, found.manifest)))
        if options.import_embeddings:
            findings.append(_try(f"{split} embeddings", partial(checked.sample_embeddings, found.manifest)))
        findings.append(_try(f"{split} wav", partial(_sample_audio, found.manifest, rate)))
    if checked.differences and (checked.encoder or options.import_embeddings):
        findings += [_try("store", checked.store), _try("disk", checked.disk)]
    if checked.differences and checked.encoder:
        findings.append(_try("time", checked.time))
    return findings


def _try(what: str, find: Callable[[], str]) -> Finding:
    try:
        return Finding(what=what, found=find())
    except FeatureStoreError as error:
        return Finding(what=what, found="", problem=str(error))


@dataclass
class _Checked:
    """What was found so far, for what is checked next."""

    config: Config
    storage: Storage
    options: BuildOptions
    encoder: Encoder | None = None
    snapshot: Snapshot | None = None
    differences: Mapping[str, Difference] = field(default_factory=dict)

    def weights(self) -> str:
        """Load the encoder."""
        if self.options.import_embeddings:
            return "none needed, embeddings are imported"
        source = self.config.encoder_source()
        self.encoder = source.load(self.options.device)
        origin = source.pretrain or f"RANDOM, seed {source.seed}"
        return f"{origin}, fingerprint {self.encoder.fingerprint}"

    def manifests(self) -> str:
        """Read the manifests, and compare them with the store."""
        self.snapshot = Snapshot.open(self.storage) if is_store(self.storage) else None
        recorded = self.snapshot.record.data_root if self.snapshot else None
        own = load_manifests(self.config, self.options.splits, recorded)
        snapshot = None if self.options.overwrite else self.snapshot
        views = max(self.config.shardwriter.views, count_views(snapshot.splits) if snapshot else 0)
        manifests = with_views(own, views)
        if self.options.import_embeddings:
            refuse_views(manifests)
        active = snapshot.active if snapshot else []
        self.differences = find_differences(manifests, snapshot, active, self.options.wanted)
        counts = {split: len(found.manifest.utterances) for split, found in self.differences.items()}
        return ", ".join(f"{split} {count} utterances" for split, count in counts.items())

    def sample_embeddings(self, manifest: Manifest) -> str:
        """Whether an earlier tool's files can be imported."""
        identity = imported_identity(self._encoder_class, *self._stored)
        reader = ImportReader(data_root=manifest.data_root, identity=replace(identity, audio="path"))
        chosen = [manifest.utterances[index] for index in _spread(manifest)]
        read = [reader.read({"mouth": item.mouth, "utterance": item.name, "audio": []}) for item in chosen]
        problems = [sample.reason for sample in read if isinstance(sample, Failed)]
        if chosen and len(problems) == len(chosen):
            raise FeatureStoreError(f"none of {len(chosen)} sampled files can be imported, e.g. {problems[0]}")
        broken = f"; {len(problems)} would be listed as failed: {problems[0]}" if problems else ""
        return f"{len(chosen) - len(problems)} of {len(chosen)} sampled can be imported{broken}"

    def store(self) -> str:
        """Whether a build may add to the store."""
        name, snapshot = self.storage.name, self.snapshot
        if snapshot is None:
            return f"{name} will be made"
        if self.options.overwrite:
            return f"{name} will be replaced"
        if self.encoder is None:
            asked = imported_identity(self._encoder_class, *self._stored)
        else:
            source = self.config.encoder_source()
            kernels = chosen_kernels(snapshot, source, self.encoder, self._stored, overwrite=False)
            asked = identity_of(source, self.encoder.fingerprint, kernels, *self._stored)
        if is_overwrite(snapshot.pending, asked):
            return f"the --overwrite of {name} that is in progress will be resumed"
        refuse_other_identity(name, snapshot.identity, asked)
        return f"{name} will be resumed"

    def disk(self) -> str:
        """Whether there is room for what a build would add."""
        dim = self._encoder_class.dim
        needed = sum(stored_bytes(split, found, self._stored, dim) for split, found in self.differences.items())
        free, staging = self.storage.free_bytes(), self.storage.staging.absolute()
        if free is None:
            return f"{needed / 1e9:.2f} GB will go to {self.storage.name}, a few shards at a time through {staging}"
        folder = next(part for part in (staging, *staging.parents) if part.exists())
        if not os.access(folder, os.W_OK):
            raise FeatureStoreError(f"{folder}: cannot be written; choose another --shards folder, or fix its rights")
        found = f"{needed / 1e9:.2f} GB needed, {free / 1e9:.1f} GB free in {folder}"
        if free <= needed:
            raise FeatureStoreError(f"{found}; free some, or choose another --shards folder")
        return found

    def time(self) -> str:
        """How long it would take, by encoding one clip."""
        assert self.encoder is not None
        device = self.options.device
        clip = center_crop(torch.zeros(TIMED_FRAMES, FRAME_SIZE, FRAME_SIZE, dtype=torch.uint8, device=device))
        self.encoder.encode([clip])[0].cpu()
        started = time.monotonic()
        self.encoder.encode([clip])[0].cpu()
        per_frame = (time.monotonic() - started) / TIMED_FRAMES
        frames = sum(count_frames(found) for found in self.differences.values())
        count = sum(found.count for found in self.differences.values())
        return f"about {_duration(frames * per_frame)} for {count} embeddings on {device}"

    @property
    def _encoder_class(self) -> type[Encoder]:
        return encoder_class(self.config.videonet.videonet_name)

    @property
    def _stored(self) -> Stored:
        return self.options.stored(self.config, self.snapshot.identity if self.snapshot else None)


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


def _spread(manifest: Manifest) -> Sequence[int]:
    """A few utterances, evenly over hash order."""
    count = len(manifest.utterances)
    return np.linspace(0, count - 1, min(SAMPLED, count), dtype=int).tolist() if count else []


def _sample_mouths(manifest: Manifest) -> str:
    chosen = _spread(manifest)
    problems = []
    for index in chosen:
        try:
            read_mouth_npz(manifest.data_root / manifest.utterances[index].mouth)
        except FeatureStoreError as error:
            problems.append(str(error))
    if not chosen:
        return "no utterances"
    if len(problems) == len(chosen):
        raise FeatureStoreError(f"none of {len(chosen)} sampled npz can be used, e.g. {problems[0]}")
    broken = f"; {len(problems)} would be listed as failed: {problems[0]}" if problems else ""
    return f"{len(chosen) - len(problems)} of {len(chosen)} sampled are fine{broken}"


def _sample_audio(manifest: Manifest, sample_rate: int) -> str:
    chosen = set(_spread(manifest))
    examples = [example for example in manifest.examples if example.utterance in chosen][:SAMPLED]
    for example in examples:
        for wav in (example.mixture, example.source):
            path = manifest.data_root / wav
            try:
                info = soundfile.info(path)
            except soundfile.LibsndfileError as error:
                raise FeatureStoreError(f"{path}: cannot be read ({error}); is data_root right?") from error
            if (info.samplerate, info.channels, info.frames) != (sample_rate, 1, example.num_samples):
                raise FeatureStoreError(
                    f"{path}: {info.samplerate} Hz, {info.channels} channels, {info.frames} samples; the manifest says "
                    f"{sample_rate} Hz mono, {example.num_samples} samples"
                )
    return f"{2 * len(examples)} checked, all match the manifest"


def count_frames(found: Difference) -> float:
    """Frames to be encoded, about."""
    lengths = found.manifest.num_samples()
    return found.count * float(lengths.mean()) / SAMPLES_PER_FRAME if len(lengths) else 0.0


def stored_bytes(split: str, found: Difference, stored: Stored, dim: int) -> float:
    """Bytes that a build would add to its store for a split, about. Raises AudioError where a wav cannot be stored."""
    rows = count_frames(found) * np.dtype(stored.dtype).itemsize
    if stored.dtype == "int8":
        rows += found.count * np.dtype(np.float32).itemsize  # the scale
    has_audio = stored.audio == "embed" and parse_view_split(split)[1] == 0
    audio = found.count * _mean_audio_bytes(found.manifest) if has_audio else 0.0
    return rows * dim + audio + found.count * SAMPLE_BYTES


def _mean_audio_bytes(manifest: Manifest) -> float:
    """Of an utterance, if all wavs are as the first: each of its examples holds a source and a mixture."""
    if not len(manifest.examples):
        return 0.0
    itemsize = np.dtype(stored_dtype(manifest.data_root / manifest.examples[0].mixture)).itemsize
    return 2.0 * itemsize * float(manifest.num_samples().sum()) / len(manifest.utterances)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
