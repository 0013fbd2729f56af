"""build-shards --check: what a build would stumble over, before it starts."""

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import soundfile
import torch
from tabulate import tabulate

from iianet.config.schema import Config
from iianet.encoder.clip_encoder import ClipEncoder
from iianet.encoder.mouth import FRAME_SIZE, center_crop
from iianet.encoder.source import EncoderSource
from iianet.errors import FeatureStoreError
from shardwriter.build.estimate import count_embeddings, count_frames, stored_bytes
from shardwriter.build.options import BuildOptions
from shardwriter.build.survey import survey
from shardwriter.build.work import Work
from shardwriter.corpus.manifest import Manifest
from shardwriter.corpus.mouth_npz import read_mouth_npz
from shardwriter.encode.import_embeddings import ImportReader, refuse_views
from shardwriter.encode.kernel_choice import kept_kernels
from shardwriter.format.names import parse_view_split
from shardwriter.storage.mirror import mirror_at, store_name
from shardwriter.store.catalog import is_store, read_store_record
from shardwriter.store.generation import is_begun_with
from shardwriter.store.identity import identity_of, imported_identity, refuse_other_identity

SAMPLED = 8
"""Files of each kind and split that are opened."""
TIMED_FRAMES = 100
PACKAGES = ("torch", "numpy", "pyarrow", "webdataset", "soundfile", "pytorch_lightning")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the table; `problem` is what to do, empty where all is well."""

    what: str
    found: str
    problem: str = ""


def check(config: Config, store: Path, options: BuildOptions) -> int:
    """Print a table of ok / what to do. Returns 0 where a build could start, else 2."""
    findings = [Finding(what="config", found=f"exp {config.exp.exp_name}"), _try("imports", _imports)]
    work: dict[str, Work] = {}
    encoder: list[ClipEncoder] = []

    def weights() -> str:
        if options.import_embeddings:
            return "none needed, embeddings are imported"
        source = EncoderSource.from_config(config)
        encoder.append(source.load(options.device))
        origin = source.pretrain or f"RANDOM, seed {source.seed}"
        return f"{origin}, fingerprint {encoder[0].fingerprint}"

    def manifests() -> str:
        work.update(survey(config, store, options))
        if options.import_embeddings:
            refuse_views(work)
        return ", ".join(f"{split} {len(item.manifest.utterances)} utterances" for split, item in work.items())

    findings += [
        _try("weights", weights),
        _try("device", lambda: _device(options.device)),
        _try("manifests", manifests),
    ]
    rate = config.datamodule.data_config.sample_rate
    for split, item in work.items():
        if parse_view_split(split)[1]:  # its files are those of the split
            continue
        findings.append(_try(f"{split} npz", partial(_sample_mouths, item.manifest)))
        if options.import_embeddings:
            findings.append(_try(f"{split} embeddings", partial(_sample_embeddings, item.manifest)))
        findings.append(_try(f"{split} wav", partial(_sample_audio, item.manifest, rate)))
    known = next(iter(encoder), None)
    if work and (known or options.import_embeddings):
        findings.append(_try("store", lambda: _store(config, store, options, known)))
        findings.append(_try("disk", lambda: _disk(config, store, options, work)))
    if work and known:
        findings.append(_try("time", partial(_time, work, known, options.device)))
    print(tabulate([(f.what, "what to do" if f.problem else "ok", f.problem or f.found) for f in findings]))
    return 2 if any(finding.problem for finding in findings) else 0


def _try(what: str, find: Callable[[], str]) -> Finding:
    try:
        return Finding(what=what, found=find())
    except FeatureStoreError as error:
        return Finding(what=what, found="", problem=str(error))


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


def _sample_embeddings(manifest: Manifest) -> str:
    """Whether an earlier tool's files can be imported."""
    reader = ImportReader(data_root=manifest.data_root)
    chosen = [manifest.utterances[index] for index in _spread(manifest)]
    found = [reader.read({"mouth": utterance.mouth, "audio": []}).error for utterance in chosen]
    problems = [error for error in found if error is not None]
    if chosen and len(problems) == len(chosen):
        raise FeatureStoreError(f"none of {len(chosen)} sampled files can be imported, e.g. {problems[0]}")
    broken = f"; {len(problems)} would be listed as failed: {problems[0]}" if problems else ""
    return f"{len(chosen) - len(problems)} of {len(chosen)} sampled can be imported{broken}"


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
    return f"{2 * len(examples)} sampled are as the manifest says"


def _store(config: Config, store: Path, options: BuildOptions, encoder: ClipEncoder | None) -> str:
    if not is_store(store):
        return f"{store_name(store)} will be made"
    if options.overwrite:
        return f"{store_name(store)} will be replaced"
    recorded = read_store_record(store).identity
    storage = options.storage(config, recorded)
    if encoder is None:
        asked = imported_identity(*storage)
    else:
        source = EncoderSource.from_config(config)
        kernels = kept_kernels(store, source, encoder.fingerprint, storage, options.overwrite)
        asked = identity_of(source, encoder.fingerprint, kernels or encoder.kernels, *storage)
    if is_begun_with(store, asked):
        return f"the --overwrite of {store_name(store)} that was begun will be continued"
    refuse_other_identity(store, recorded, asked)
    return f"{store_name(store)} will be continued"


def _disk(config: Config, store: Path, options: BuildOptions, work: Mapping[str, Work]) -> str:
    storage = options.storage(config, read_store_record(store).identity if is_store(store) else None)
    needed = stored_bytes(work, storage)
    if mirror_at(store):
        return f"{needed / 1e9:.2f} GB will go to {store_name(store)}, through a few shards at a time in {store}"
    folder = next(parent for parent in (store.absolute(), *store.absolute().parents) if parent.exists())
    if not os.access(folder, os.W_OK):
        raise FeatureStoreError(f"{folder}: cannot be written; choose another --shards folder, or mend its rights")
    free = shutil.disk_usage(folder).free
    found = f"{needed / 1e9:.2f} GB needed, {free / 1e9:.1f} GB free in {folder}"
    if free <= needed:
        raise FeatureStoreError(f"{found}; free some, or choose another --shards folder")
    return found


def _time(work: Mapping[str, Work], encoder: ClipEncoder, device: torch.device) -> str:
    seconds = count_frames(work) * _seconds_per_frame(encoder, device)
    return f"about {_duration(seconds)} for {count_embeddings(work)} embeddings on {device}"


def _seconds_per_frame(encoder: ClipEncoder, device: torch.device) -> float:
    clip = center_crop(torch.zeros(TIMED_FRAMES, FRAME_SIZE, FRAME_SIZE, dtype=torch.uint8, device=device))
    encoder.encode([clip])[0].cpu()
    started = time.monotonic()
    encoder.encode([clip])[0].cpu()
    return (time.monotonic() - started) / TIMED_FRAMES


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
