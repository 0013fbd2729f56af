"""A store in numbers: what each split holds, and what the embeddings were made with."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tabulate import tabulate

from iianet.wording import counted, listing, readable_bytes
from shardwriter.corpus.manifest_data import last_of_each
from shardwriter.format.names import (
    INDEX_SUFFIX,
    index_name,
    merged_index_name,
    parse_view_split,
    sorted_splits,
    split_view_key,
    tar_name,
)
from shardwriter.format.plan import PlanHeader
from shardwriter.format.record import Identity
from shardwriter.inspect.compare import Comparison
from shardwriter.inspect.inspected import InspectedStore
from shardwriter.inspect.report import Section
from shardwriter.store.identity import is_reindexed, unknown_origin

UNKNOWN = {"missing": None, "stale": None, "missing_keys": None, "stale_keys": None, "other_lengths": None}
"""Of a split that has no manifest."""
AUDIO_WORDS = {
    "path": "each sample names its wavs, below data_root",
    "embed": "each sample holds its sources and mixtures",
}


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """What a split holds.

    Attributes:
        planned: Shards there will be.
        shards: Those that are complete.
        utterances: Stored, each counted once.
        examples: What they serve, as the plans list it.
        frames: Of the stored utterances.
        bytes: Of the complete tars.
        failed: Utterances that could not be stored.
    """

    planned: int = 0
    shards: int = 0
    utterances: int = 0
    examples: int = 0
    frames: int = 0
    bytes: int = 0
    failed: int = 0


def summarise(store: InspectedStore, comparisons: Mapping[str, Comparison] | None) -> Section:
    """All splits that the store has or was compared with, what it is, what failed, and what is not done yet."""
    found = {split: _summarise(store, split) for split in store.splits}
    known = {**dict.fromkeys(comparisons or {}, SplitSummary()), **found}
    splits = {split: known[split] for split in sorted_splits(known)}
    has_audio = any(found.examples for found in splits.values())
    failures = _failure_lines(store) if comparisons is None else []  # which list them among what is missing
    blocks = [_identity_lines(store, has_audio), failures, _progress_lines(store, splits)]
    text = [_table(splits, store.identity.fps), *("\n".join(block) for block in blocks if block)]
    record = store.snapshot.record
    said = {**asdict(record.identity), "data_root": record.data_root, "plans": list(record.plans)}
    counts = {split: _counts(known[split], split, comparisons) for split in splits}
    fields = {"store": {"path": store.name, **said}, "splits": counts}
    return Section(text="\n\n".join(text), fields=fields, problems=_lost_indexes(store))


def _lost_indexes(store: InspectedStore) -> list[str]:
    """Indexes that are gone. Those of shards that are not built yet are not: a build deletes the merged index first."""
    files = store.snapshot.files
    merged = [entries for split, entries in store.splits.items() if merged_index_name(split) in files]
    return [
        f"{index_name(shard)}: is gone, though {tar_name(shard)} is there, so its utterances count as missing; put it "
        "back, or write the shard again, as its build did"
        for entries in merged
        for shard in entries.incomplete
        if index_name(shard) not in files and tar_name(shard) in files
    ]


def _counts(found: SplitSummary, split: str, comparisons: Mapping[str, Comparison] | None) -> dict[str, Any]:
    """For programs; what is missing and stale is known only against a corpus."""
    counts = {{"planned": "planned_shards"}.get(name, name): value for name, value in asdict(found).items()}
    if comparisons is None:
        return {**counts, "missing": None, "stale": None}
    return {**counts, **(comparisons[split].to_json() if split in comparisons else UNKNOWN)}


def _summarise(store: InspectedStore, split: str) -> SplitSummary:
    entries = store.splits[split]
    stored = entries.entries.take(pa.array(entries.stored_rows))
    rows = store.snapshot.planned_rows(split, ("key", "audio")).combine_chunks()
    rows = rows.filter(pc.is_in(rows["key"], value_set=stored["key"].combine_chunks()))
    newest = rows.take(last_of_each(rows["key"]))  # the newest plan's row of a key wins
    return SplitSummary(
        planned=len(entries.planned),
        shards=len(entries.shards),
        utterances=len(stored),
        examples=int(np.asarray(pc.list_value_length(newest["audio"])).sum()),
        frames=int(np.asarray(stored["frames"]).sum()),
        bytes=sum(record.tar_size for record in entries.shards),
        failed=len(entries.failures),
    )


def _table(summaries: Mapping[str, SplitSummary], fps: float) -> str:
    headers = ["split", "shards", "utterances", "hours", "bytes", "bytes/utterance", "failed"]
    rows = [
        (
            split,
            f"{found.shards:,} of {found.planned:,}",
            f"{found.utterances:,}",
            _hours(found.frames / fps / 3600),
            readable_bytes(found.bytes),
            readable_bytes(found.bytes / found.utterances) if found.utterances else "-",
            f"{found.failed:,}",
        )
        for split, found in summaries.items()
    ]
    return tabulate(rows, headers=headers, disable_numparse=True, colalign=("left", *["right"] * (len(headers) - 1)))


def _identity_lines(store: InspectedStore, has_audio: bool) -> list[str]:
    """What the store is, in short lines."""
    identity, record = store.identity, store.snapshot.record
    lines = {
        "store": store.name,
        "encoder": _encoder(identity),
        "fingerprint": identity.encoder.get("fingerprint") or "unknown",
        "precision": _settings(identity.precision),
        "preprocessing": _settings(identity.preprocessing),
        "embedding": f"({identity.dim}, frames) {_stored_as(identity.dtype)}, {identity.fps:g} frames per second",
        "audio": AUDIO_WORDS[identity.audio] if has_audio else "none: no sample has wavs",
        "data_root": record.data_root or "none recorded",
    }
    plans = [f"{header.name}: {header.kind}, {_counted_rows(header)}" for header in store.snapshot.active]
    return [
        *(f"{name:<14} {value}" for name, value in lines.items()),
        *(f"{'plans' if index == 0 else '':<14} {plan}" for index, plan in enumerate(plans)),
    ]


def _failure_lines(store: InspectedStore) -> list[str]:
    """The first utterances that failed, with their npz and why."""
    failed: dict[tuple[str, str], tuple[str, str]] = {}
    for split, entries in store.splits.items():
        for key in entries.failures:
            failed.setdefault((parse_view_split(split)[0], split_view_key(key)[0]), (split, key))  # once for all views

    def show(split_and_key: tuple[str, str]) -> str:
        entry = store.entry(*split_and_key)
        reason = (entry.error or "").removeprefix(f"{entry.mouth}: ")
        return f"{entry.split} {entry.mouth or entry.key}: {reason}"

    title = "Not stored ({}); fix the npz and run build-shards again:"
    rest = f"in the column 'error' of {store.name}/*{INDEX_SUFFIX} (Parquet)"
    return listing(title, list(failed.values()), rest, show)[1:]


def _progress_lines(store: InspectedStore, summaries: Mapping[str, SplitSummary]) -> list[str]:
    """What of the plans is not done yet, and the command that resumes."""
    lines = [
        f"{name}: {planned - done} of {counted(planned, 'planned shard')} {'is' if planned - done == 1 else 'are'} "
        "not complete"
        for name, (planned, done) in _with_views(summaries).items()
        if planned > done
    ]
    pending = store.pending
    if pending is not None and pending.kind == "replace":
        lines.append(_in_progress(store, "an --overwrite", pending))
    if lines:
        lines.append(f"To resume: {build_command(store)}")
    if pending is not None and pending.kind == "compact":
        lines.append(_in_progress(store, "a --compact", pending))
        lines.append(f"To resume: {build_command(store)} --compact; to abandon it: --abandon instead")
    for header in store.snapshot.retired:
        since = store.snapshot.record.retired[header.name]
        shards = counted(len(header.all_shard_names), "shard")
        lines.append(
            f"{header.name}: was replaced ({since}), and its {shards} stay while they may be read; build-shards "
            "deletes them"
        )
    return lines


def _with_views(summaries: Mapping[str, SplitSummary]) -> dict[str, tuple[int, int]]:
    """Planned and complete shards of each split, those of its views among them."""
    counts: dict[str, tuple[int, int]] = {}
    for split in dict.fromkeys(parse_view_split(name)[0] for name in summaries):
        parts = [found for name, found in summaries.items() if parse_view_split(name)[0] == split]
        name = f"{split} and its views" if len(parts) > 1 else split
        counts[name] = sum(part.planned for part in parts), sum(part.shards for part in parts)
    return counts


def _in_progress(store: InspectedStore, what: str, header: PlanHeader) -> str:
    shards = header.all_shard_names
    done = sum(index_name(shard) in store.snapshot.files for shard in shards)
    return (
        f"{header.name}: {what} is in progress and has {done} of {counted(len(shards), 'shard')}; this store stays in "
        "use until it is complete"
    )


def _counted_rows(header: PlanHeader) -> str:
    """What a plan has: views are counted apart, since each is an utterance's."""
    what = "views and utterances" if any(parse_view_split(split)[1] for split in header.shards) else "utterances"
    return f"{header.rows:,} {what}"


def build_command(store: InspectedStore, config: str = "CONFIG", flags: Sequence[str] = ()) -> str:
    """How to call build-shards on this store."""
    imported = store.identity.is_imported and not is_reindexed(store.identity)
    words = ["build-shards", "--conf_dir", config, *flags, "--shards", store.name]
    return shlex.join([*words, "--import_embeddings"] if imported else words)


def _hours(hours: float) -> str:
    decimals = 1 if hours >= 10 else 2 if hours >= 0.1 else 4
    return f"{hours:,.{decimals}f}"


def _encoder(identity: Identity) -> str:
    """Its name and where its weights come from; random ones are good for trials only, so they stand out."""
    facts = {name: value for name, value in identity.encoder.items() if name != "fingerprint"}
    words = [str(facts.pop("name"))] if "name" in facts else []
    if identity.is_imported:
        words.append(f"weights not recorded: from {unknown_origin(identity)}")
        facts = {name: value for name, value in facts.items() if name not in ("imported", "reindexed")}
    if "pretrain" in facts:
        file, seed, digest = (facts.pop(name, None) for name in ("pretrain", "seed", "pretrain_digest"))
        words.append(
            f"RANDOM weights from seed {seed}: for trials only"
            if file is None
            else f"weights {file} (sha256 {digest or 'unknown'})"
        )
    return ", ".join([*words, *(f"{name} {value}" for name, value in facts.items())]) or "unknown"


def _stored_as(dtype: str) -> str:
    return "int8 with a float32 scale for each row" if dtype == "int8" else dtype


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items()) or "unknown"
