"""A store in numbers: what each split holds, and what the embeddings were made with."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.compute as pc
from tabulate import tabulate

from iianet.wording import counted
from shardwriter.format.names import INDEX_SUFFIX, Identity, parse_view_split, split_view_key
from shardwriter.format.plan import Plan
from shardwriter.inspect.contents import Contents
from shardwriter.storage.mirror import store_name
from shardwriter.store.identity import is_imported, is_reindexed, unknown_origin

SHOWN_FAILURES = 10
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

    def to_json(self) -> dict[str, Any]:
        """For programs; `missing` and `stale` are known only against a corpus."""
        counts = asdict(self)
        del counts["planned"]
        return {**counts, "missing": None, "stale": None}


def summarise(contents: Contents, split: str) -> SplitSummary:
    """Count what a split holds."""
    held = contents.splits[split]
    stored = set(held.newest).difference(held.failures)
    frames = held.entries["frames"].to_numpy()
    rows = contents.planned_rows(split)
    audio = zip(rows["key"].to_pylist(), pc.list_value_length(rows["audio"]).to_pylist(), strict=True)
    examples = {key: count for key, count in audio if key in stored}  # the newest plan's row of a key wins
    return SplitSummary(
        planned=len(held.planned),
        shards=len(held.shards),
        utterances=len(stored),
        examples=sum(examples.values()),
        frames=int(frames[list(held.newest.values())].sum()) if held.newest else 0,
        bytes=sum(record.tar_size for record in held.shards),
        failed=len(held.failures),
    )


def store_json(contents: Contents) -> dict[str, Any]:
    """What store.json says, for programs."""
    record = contents.catalog.record
    identity = asdict(contents.identity)
    return {"path": store_name(contents.store), **identity, "data_root": record.data_root, "plans": list(record.plans)}


def summary_table(summaries: Mapping[str, SplitSummary], fps: float) -> str:
    """A row for each split."""
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


def identity_lines(contents: Contents) -> list[str]:
    """What the store is, in short lines."""
    identity, record = contents.identity, contents.catalog.record
    lines = {
        "store": store_name(contents.store),
        "encoder": _encoder(identity),
        "fingerprint": identity.encoder.get("fingerprint") or "unknown",
        "precision": _settings(identity.precision),
        "preprocessing": _settings(identity.preprocessing),
        "embedding": f"({identity.dim}, frames) {_stored_as(identity.dtype)}, {identity.fps:g} frames per second",
        "audio": AUDIO_WORDS.get(identity.audio, identity.audio),
        "data_root": record.data_root or "none recorded",
    }
    plans = [f"{plan.name}: {plan.kind}, {len(plan.table):,} utterances" for plan in contents.catalog.plans]
    return [
        *(f"{name:<14} {value}" for name, value in lines.items()),
        *(f"{'plans' if index == 0 else '':<14} {plan}" for index, plan in enumerate(plans)),
    ]


def failure_lines(contents: Contents) -> list[str]:
    """The first utterances that failed, with their npz and why."""
    failed = [
        contents.entry(split, key)
        for split, held in contents.splits.items()
        for key in held.failures
        if not _failed_before(contents, split, key)
    ]
    if not failed:
        return []
    lines = [f"Not stored ({len(failed)}); mend the npz and run build-shards again:"]
    for entry in failed[:SHOWN_FAILURES]:
        reason = (entry.error or "").removeprefix(f"{entry.mouth}: ")
        lines.append(f"  {entry.split} {entry.mouth or entry.key}: {reason}")
    if len(failed) > SHOWN_FAILURES:
        more = len(failed) - SHOWN_FAILURES
        lines.append(f"  ... and {more} more: column 'error' of {contents.store}/*{INDEX_SUFFIX} (Parquet)")
    return lines


def _failed_before(contents: Contents, split: str, key: str) -> bool:
    """Whether an entry is the view of an utterance that is listed already."""
    base, view = parse_view_split(split)
    return bool(view) and base in contents.splits and split_view_key(key)[0] in contents.splits[base].failures


def progress_lines(contents: Contents, summaries: Mapping[str, SplitSummary]) -> list[str]:
    """What of the plans is not done yet, and the command that goes on."""
    left = {split: found.planned - found.shards for split, found in summaries.items() if found.planned > found.shards}
    lines = [
        f"{split}: {count} of {summaries[split].planned} planned shards are not complete"
        for split, count in left.items()
    ]
    generations = contents.generations
    if generations.replacement is not None:
        lines.append(_begun(contents, "an --overwrite", generations.replacement))
    if lines:
        lines.append(f"To go on: {build_command(contents)}")
    if generations.compaction is not None:
        lines.append(_begun(contents, "a --compact", generations.compaction))
        lines.append(f"To go on: {build_command(contents)} --compact; to give it up: --abandon instead")
    for plan in generations.retired:
        since = contents.catalog.record.retired.get(plan.name, "a build that ends now")
        lines.append(
            f"{plan.name}: was replaced ({since}), and its {counted(len(plan.shards), 'shard')} stay while they may be "
            "read; build-shards deletes them"
        )
    return lines


def _begun(contents: Contents, what: str, plan: Plan) -> str:
    done = sum((contents.store / f"{shard}{INDEX_SUFFIX}").is_file() for shard in plan.shards)
    return (
        f"{plan.name}: {what} was begun and has {done} of {counted(len(plan.shards), 'shard')}; "
        "this store serves until it is complete"
    )


def build_command(contents: Contents, config: str = "CONFIG", flags: Sequence[str] = ()) -> str:
    """How to call build-shards on this store."""
    imported = is_imported(contents.identity) and not is_reindexed(contents.identity)
    words = ["build-shards", "--conf_dir", config, *flags, "--shards", store_name(contents.store)]
    return shlex.join([*words, "--import_embeddings"] if imported else words)


def readable_bytes(count: float) -> str:
    """Bytes with a decimal unit, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB" if count < 999.5 else f"{count:,.0f} TB"


def _hours(hours: float) -> str:
    decimals = 1 if hours >= 10 else 2 if hours >= 0.1 else 4
    return f"{hours:,.{decimals}f}"


def _encoder(identity: Identity) -> str:
    """Its name and where its weights come from; random ones are good for trials only, so they are shouted."""
    told = {name: value for name, value in identity.encoder.items() if name != "fingerprint"}
    words = [str(told.pop("name"))] if "name" in told else []
    if is_imported(identity):
        words.append(f"whose weights nothing names: from {unknown_origin(identity)}")
        told = {name: value for name, value in told.items() if name not in ("imported", "reindexed")}
    if "pretrain" in told:
        file, seed, digest = (told.pop(name, None) for name in ("pretrain", "seed", "pretrain_digest"))
        words.append(
            f"RANDOM weights from seed {seed}: for trials only"
            if file is None
            else f"weights {file} (sha256 {digest or 'unknown'})"
        )
    return ", ".join([*words, *(f"{name} {value}" for name, value in told.items())]) or "unknown"


def _stored_as(dtype: str) -> str:
    return "int8 with a float32 scale for each row" if dtype == "int8" else dtype


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items()) or "unknown"
