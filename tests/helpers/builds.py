"""Build stores with an encoder that costs nothing, stop builds, and read what a store holds."""

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
import webdataset
from torch import Tensor

from helpers.commands import Outcome
from helpers.corpus import Corpus, make_frames, write_mouth
from iianet.encoder.kernels import Kernels, default_kernels
from iianet.encoder.mouth import view_crop
from iianet.encoder.source import EncoderSource
from loaders.reader import open_reader
from shardwriter.build.build import build
from shardwriter.build.options import BuildOptions
from shardwriter.build.report import BuildReport
from shardwriter.corpus.mouth_npz import read_mouth_npz
from shardwriter.encode import encoded
from shardwriter.format.document import seal
from shardwriter.format.index import ShardRecord, decode_index, encode_index
from shardwriter.format.plan import decode_plan, encode_plan, make_plan
from shardwriter.format.record import Identity
from shardwriter.storage.folder import Folder
from shardwriter.store.snapshot import Snapshot

CPU = torch.device("cpu")

Run = Callable[..., Outcome]
"""Runs build-shards on a test's own corpus and store, with the flags that it is given."""


class QuickEncoder:
    """An encoder without a network: an embedding is the first 512 pixels of each frame, times seed + 1."""

    dim, fps, context_frames = 512, 25, 2

    def __init__(self, seed: int, kernels: Kernels | None = None) -> None:
        self.seed = seed
        self.kernels = kernels or default_kernels(CPU)
        self.fingerprint = f"quick-{seed}"

    def columns(self, frames: Tensor, _lengths: Sequence[int]) -> Tensor:
        return frames.flatten(1)[:, :512] * (self.seed + 1) / 255

    def encode(self, clips: Sequence[Tensor]) -> list[Tensor]:
        return [self.columns(clip, [len(clip)]).t() for clip in clips]

    def to(self, _device: torch.device) -> "QuickEncoder":
        return self


def _load(source: EncoderSource, device: torch.device, kernels: Kernels | None = None) -> QuickEncoder:
    return QuickEncoder(source.seed, kernels or source.kernels(device))


@contextmanager
def quick_encoder() -> Iterator[None]:
    """Let every build inside the block encode with a QuickEncoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EncoderSource, "load", _load)
        yield


def build_store(corpus: Corpus, store: Path, *overrides: str, **options: Any) -> BuildReport:
    """Run a build as build-shards does; `options` are those of BuildOptions."""
    return build(corpus.config(*overrides), Folder(store), BuildOptions(device=CPU, **options))


def interrupt_build(corpus: Corpus, store: Path, *overrides: str, packs: int, **options: Any) -> None:
    """Run a build, and stop it as Ctrl-C does when `packs` packs of clips are encoded."""
    left = iter(range(packs))
    start_pack = encoded.start_pack

    def start_or_stop(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return start_pack(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded, "start_pack", start_or_stop)
        with pytest.raises(KeyboardInterrupt):
            build_store(corpus, store, *overrides, **options)


def opened(store: Path) -> Snapshot:
    """Open a store in a folder, as it is now."""
    return Snapshot.open(Folder(store))


def edit_record(store: Path, **changes: object) -> None:
    """Write other values into store.json, as if a build had recorded them."""
    path = store / "store.json"
    path.write_bytes(edited(path.read_bytes(), **changes))


def edited(record: bytes, **changes: object) -> bytes:
    """Contents of a store.json with other values."""
    facts = {**json.loads(record), **changes}
    del facts["digest"]
    return seal(facts)


def edit_identity(store: Path, identity: Identity) -> None:
    """Make a store of one plan one that was built with another identity; what its tars hold stays."""
    record = opened(store).record
    (name,) = record.plans
    with (store / name).open("rb") as stream:
        before = decode_plan(stream, name)
    header = before.header
    plan = make_plan(
        kind=header.kind, base=(), identity=identity, manifest_digests=header.manifest_digests, table=before.table
    )
    for path in store.glob(f"*-{header.id}-*"):
        moved = path.rename(path.with_name(path.name.replace(header.id, plan.header.id)))
        if moved.suffix == ".index":
            rows, (found,) = read_index(moved)
            moved.write_bytes(encode_index(rows, [replace(found, shard=moved.stem)]))
    for path in [store / name, *store.glob("*.index")]:
        if plan.header.id not in path.name:
            path.unlink()
    (store / plan.header.name).write_bytes(encode_plan(plan))
    named = replace(record, plans=(plan.header.name,), identity=identity)
    (store / "store.json").write_bytes(named.to_bytes())


def plans(store: Path) -> list[str]:
    """File names of the active plans, oldest first."""
    return list(opened(store).record.plans)


def shards(store: Path, split: str) -> list[str]:
    """Names of all planned shards of a split, without suffix, in the order of the active plans."""
    return [name for header in opened(store).active for name in header.shard_names(split)]


def tar(store: Path, split: str, number: int = 0) -> Path:
    """The tar of the `number`-th shard of a split."""
    return store / f"{shards(store, split)[number]}.tar"


def index(store: Path, split: str, number: int = 0) -> Path:
    """The index of the `number`-th shard of a split."""
    return store / f"{shards(store, split)[number]}.index"


def read_index(path: Path) -> tuple[pa.Table, list[ShardRecord]]:
    """Read the rows and the shard records of an index, of one shard or of a split."""
    with path.open("rb") as stream:
        return decode_index(stream, str(path))


def reasons(report: BuildReport, split: str) -> dict[str, int]:
    """Count the utterances of a split by why they were encoded or not; reasons of no utterance are left out."""
    return {why: count for why, count in report.planned[split].items() if count}


def contents(store: Path) -> dict[str, bytes]:
    """Read the files that a build publishes once and never writes again: tars, their indexes, and plans.

    A store without any is an error, since two such stores would be equal.
    """
    names = [path for pattern in ("*-*.tar", "*-*.index", "plan-*") for path in store.glob(pattern)]
    assert names, f"{store} holds no tars, indexes or plans"
    return {path.name: path.read_bytes() for path in sorted(names)}


def samples(store: Path, split: str) -> list[dict[str, Any]]:
    """Read every sample of a split's tars, as webdataset decodes it. None at all is an error."""
    shards = [str(path) for path in sorted(store.glob(f"{split}-*.tar"))]
    found = list(webdataset.WebDataset(shards, shardshuffle=False).decode()) if shards else []
    assert found, f"{store} holds no samples of {split}"
    return found


def stored(store: Path, split: str) -> dict[str, npt.NDArray[Any]]:
    """Read the newest embedding of every stored key, as training does. None at all is an error."""
    reader = open_reader(store, split)
    assert len(reader.keys), f"{store} holds no embeddings of {split}"
    return {key: reader.read(row) for row, key in enumerate(reader.keys.to_pylist())}


def quick_embedding(mouth: Path, view: int = 0) -> npt.NDArray[np.float16]:
    """Encode an npz, or a view of it, with the QuickEncoder of seed 0, as a float16 store holds it."""
    frames = torch.from_numpy(view_crop(mouth.stem, view).apply(read_mouth_npz(mouth).frames))
    embedding: npt.NDArray[np.float16] = QuickEncoder(0).encode([frames])[0].numpy().astype(np.float16)
    return embedding


def change_mouth(path: Path, *, seed: int = 99, mtime: bool = True) -> None:
    """Write other frames of the same size into an npz; its modification time changes where `mtime` is true."""
    before = path.stat()
    write_mouth(path, make_frames(len(read_mouth_npz(path).frames), seed=seed))
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000 * mtime))


def load_npy(content: bytes) -> npt.NDArray[Any]:
    """Read an array from the bytes of an npy."""
    array: npt.NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return array
