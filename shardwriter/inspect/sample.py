"""One stored sample: its members read back, and all that is known of it."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from iianet.errors import StoreError
from iianet.wording import did_you_mean
from shardwriter.format.index import Entry
from shardwriter.format.names import (
    AUDIO_MEMBER,
    EMBEDDING_MEMBER,
    VIEW_MARK,
    escape_key,
    parse_view_split,
    split_view_key,
    unescape_key,
    view_key,
)
from shardwriter.format.sample import read_array, read_metadata, read_values
from shardwriter.inspect.inspected import InspectedStore
from shardwriter.inspect.report import Section


@dataclass(frozen=True, kw_only=True)
class Sample:
    """All that is known of one utterance of a split, or of one of its views.

    Attributes:
        entry: Its newest row of an index.
        metadata: What its json member says; None where it is not stored.
        embedding: `(dim, frames)`, in the store's dtype; None where it is not stored.
        values: What the embedding stands for, `(dim, frames)` float32; None where it is not stored.
        audio: Its sources and mixtures one after the other, `(num_samples,)`; None where the store holds none.
        seconds: Length.
        views: Keys of its views.
    """

    entry: Entry
    metadata: dict[str, Any] | None = None
    embedding: npt.NDArray[Any] | None = None
    values: npt.NDArray[np.float32] | None = None
    audio: npt.NDArray[Any] | None = None
    seconds: float
    views: Sequence[str] = ()

    def facts(self) -> dict[str, Any]:
        """For people and for programs, in the order to be shown."""
        entry = self.entry
        facts: dict[str, Any] = {"key": entry.key, "utterance": unescape_key(split_view_key(entry.key)[0])}
        if self.metadata is not None:
            facts["utterance"] = self.metadata.get("utterance", facts["utterance"])
        facts |= {"split": entry.split, "shard": entry.shard, "mouth": self.mouth, "error": entry.error}
        if self.mouth != entry.mouth:
            facts["imported_from"] = entry.mouth
        if self.views:
            facts["views"] = list(self.views)
        if self.embedding is None or self.values is None:
            return facts
        facts |= {
            "members": {member: place._asdict() for member, place in entry.members.items()},
            "shape": list(self.embedding.shape),
            "dtype": str(self.embedding.dtype),
            **_statistics(self.values),
            "frames": entry.frames,
            "seconds": self.seconds,
        }
        if self.audio is not None:
            facts["audio"] = {"num_samples": len(self.audio), "dtype": str(self.audio.dtype)}
        return {**facts, "metadata": self.metadata}

    @property
    def mouth(self) -> str | None:
        """The mouth npz, relative to data_root, also where the embedding was imported from a file beside it."""
        recorded = (self.metadata or {}).get("mouth")
        return recorded if isinstance(recorded, str) and self.entry.mouth is not None else self.entry.mouth


def show_samples(samples: Sequence[Sample]) -> Section:
    """All that is known of some samples; those that are not stored are problems."""
    failed = [entry for entry in (sample.entry for sample in samples) if entry.error is not None]
    return Section(
        text="\n\n".join(map(_text, samples)),
        fields={"samples": [sample.facts() for sample in samples]},
        problems=[f"{entry.split} {entry.key}: is not stored: {entry.error}" for entry in failed],
    )


def find_samples(store: InspectedStore, given: str) -> list[Sample]:
    """The samples of a key, one for each split that has it; the utterance's unescaped name does as well.

    The name of a mixture, or its path, gives those of its sources.

    Raises:
        StoreError: No split has it, or what is stored cannot be read.
    """
    held = [
        (split, key)
        for split, entries in store.splits.items()
        if (key := next((key for key in _spellings(given) if key in entries.newest), None)) is not None
    ]
    held = held or list(_of_mixture(store, given))
    if not held:
        raise StoreError(_unknown(store, given))
    return [read_sample(store, store.entry(split, key)) for split, key in held]


def _spellings(given: str) -> list[str]:
    """The keys that may be meant: a key as it is, an utterance's name, or a name with the number of a view."""
    if not _is_utf8(given):
        return []
    name, mark, view = given.rpartition(VIEW_MARK)
    numbered = [view_key(escape_key(name), int(view))] if mark and view.isdecimal() and int(view) else []
    return [given, escape_key(given), *numbered]


def read_sample(store: InspectedStore, entry: Entry) -> Sample:
    """Read a sample whole. Raises StoreError where it is stored but cannot be read."""
    seconds, views = entry.frames / store.identity.fps, _views(store, entry)
    if entry.error is not None:
        return Sample(entry=entry, seconds=seconds, views=views)
    with store.open_tar(entry) as tar:
        return Sample(
            entry=entry,
            metadata=read_metadata(tar, entry),
            embedding=read_array(tar, entry, EMBEDDING_MEMBER),
            values=read_values(tar, entry),
            audio=read_array(tar, entry, AUDIO_MEMBER) if AUDIO_MEMBER in entry.members else None,
            seconds=seconds,
            views=views,
        )


def _views(store: InspectedStore, entry: Entry) -> list[str]:
    split, view = parse_view_split(entry.split)
    if view:
        return []
    others = {name: parse_view_split(name) for name in store.splits}
    keys = {name: view_key(entry.key, other[1]) for name, other in others.items() if other[0] == split and other[1]}
    return [key for name, key in keys.items() if key in store.splits[name].newest]


def _text(sample: Sample) -> str:
    facts = sample.facts()
    members, metadata = facts.pop("members", None), facts.pop("metadata", None)
    if "audio" in facts:
        facts["audio"] = f"{facts['audio']['num_samples']:,} samples {facts['audio']['dtype']}"
    lines = [f"{name:<13} {_shown(value)}" for name, value in facts.items() if value is not None]
    for name, place in (members or {}).items():
        lines.append(f"{'member':<13} {name}: {place['size']:,} bytes at {place['offset']:,}")
    if metadata is not None:
        lines += ["", json.dumps(metadata, indent=2, ensure_ascii=False)]
    return "\n".join(lines)


def _statistics(embedding: npt.NDArray[Any]) -> dict[str, float | None]:
    """Over all values; None where one is not finite, since JSON has no word for that."""
    values = embedding.astype(np.float64)
    found = {
        "min": values.min(initial=math.inf),
        "max": values.max(initial=-math.inf),
        "mean": values.mean() if values.size else math.nan,
        "std": values.std() if values.size else math.nan,
    }
    return {name: float(value) if math.isfinite(value) else None for name, value in found.items()}


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(value) if value and isinstance(value[0], str) else str(tuple(value))
    return str(value)


def _unknown(store: InspectedStore, given: str) -> str:
    planned = {
        split: store.snapshot.planned_rows(split, ("key",))["key"].to_pylist() for split in store.snapshot.splits
    }
    for split, keys in planned.items():
        if not set(keys).isdisjoint(_spellings(given)):
            return f"--key {given}: is planned for {split} but not stored yet; run build-shards to resume"
    names = dict.fromkeys(unescape_key(key) for keys in planned.values() for key in keys)
    return f"--key {given}: {store.name} has no such utterance or mixture{did_you_mean(given, names)}"


def _is_utf8(name: str) -> bool:
    """Whether a name could stand in a store."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _of_mixture(store: InspectedStore, given: str) -> Iterator[tuple[str, str]]:
    """Split and key of the stored utterances whose audio lists a mixture of this name or path."""
    if not _is_utf8(given):
        return
    for split, entries in store.splits.items():
        rows = store.snapshot.planned_rows(split, ("key", "audio")).combine_chunks()
        audio = rows["audio"].combine_chunks()
        named = pc.match_substring_regex(
            pc.struct_field(audio.flatten(), "mixture"), rf"(^|/){re.escape(given)}(\.[^/.]*)?$"
        )
        chosen = pc.list_parent_indices(audio).filter(named).unique()
        yield from ((split, key) for key in rows["key"].take(chosen).to_pylist() if key in entries.newest)
