"""What a build did: counted while it runs, shown in a bar, and summed up."""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tabulate import tabulate
from tqdm import tqdm

from iianet.encoder.mouth import SAMPLE_RATE
from iianet.wording import counted, listing
from shardwriter.build.difference import REASONS, Difference
from shardwriter.corpus.manifest_data import Manifest
from shardwriter.corpus.views import with_views
from shardwriter.encode.write_shards import Event, NotStored, Published, Stored
from shardwriter.format.names import count_views, parse_view_split
from shardwriter.store.entries import SplitEntries

logger = logging.getLogger(__name__)

_SUMMED = ("shards", "stored_bytes", "audio_bytes", "seconds")


@dataclass(kw_only=True)
class BuildReport:
    """What a build did, split by split.

    Attributes:
        planned: Why each utterance was stored or not: new, changed, retried, resumed (of an unfinished shard); skipped
            (stored before, or known to fail); left out (by the limit).
        stored: Utterances stored by this run.
        failed: Everything of these splits that is not stored, from this run or an earlier one.
        shards: Shards published by this run.
        stored_bytes: Bytes of those shards.
        audio_bytes: How many of these are audio.
        seconds: From the first npz read to the last shard published.
        other_lengths: Stored mouths that are longer or shorter than their audio.
        corpus: How much the lists hold, in words.
        waiting: Plan of an --overwrite that is not complete yet.
        is_import: Whether embeddings were imported instead of encoded.
    """

    planned: dict[str, dict[str, int]] = field(default_factory=dict)
    stored: Counter[str] = field(default_factory=Counter)
    failed: dict[str, list[NotStored]] = field(default_factory=dict)
    shards: int = 0
    stored_bytes: int = 0
    audio_bytes: int = 0
    seconds: float = 0.0
    other_lengths: list[str] = field(default_factory=list)
    corpus: str = ""
    waiting: str | None = None
    is_import: bool = False

    def count(self, differences: Mapping[str, Difference]) -> None:
        """Note why utterances are stored; a second pass takes what it stores from what the first one skipped."""
        for split, found in differences.items():
            if split in self.planned:
                for why, count in found.counts.items():
                    self.planned[split][why] += count
                self.planned[split]["skipped"] -= found.count
                continue
            skipped = len(found.manifest.utterances) - found.left_out - found.count
            self.planned[split] = {**found.counts, "skipped": skipped}
            if found.left_out:
                self.planned[split]["left out"] = found.left_out
            self.stored[split] = 0

    @property
    def any_failed(self) -> bool:
        """Whether some utterance is not stored."""
        return any(self.failed.values())

    def counts(self) -> dict[str, Any]:
        """What this process did, as JSON can hold it."""
        return {
            "planned": self.planned,
            "stored": dict(self.stored),
            **{name: getattr(self, name) for name in _SUMMED},
        }

    def add_counts(self, counts: Sequence[Mapping[str, Any]]) -> None:
        """Make this the report of all who counted."""
        self.planned = next((dict(each["planned"]) for each in counts if each["planned"]), {})
        self.stored = Counter(dict.fromkeys(self.planned, 0))
        for each in counts:
            self.stored.update(each["stored"])
        for name in _SUMMED:
            setattr(self, name, sum(each[name] for each in counts))
        self.seconds = max(each["seconds"] for each in counts)

    def lines(self) -> list[str]:
        """For people: counts, what could not be stored, and the total."""
        reasons = [
            why
            for why in (*REASONS, "skipped", "left out")
            if any(planned.get(why) for planned in self.planned.values())
        ]
        rows = [
            (split, *(planned.get(why, 0) for why in reasons), self.stored[split], len(self.failed.get(split, [])))
            for split, planned in self.planned.items()
        ]
        done = "imported" if self.is_import else "encoded"
        lines = tabulate(rows, headers=["split", *reasons, done, "not stored"]).splitlines()
        failures = [failure for split in self.failed.values() for failure in split]
        lines += listing(
            "Not stored ({}); fix the npz and build again, with --retry_failed for a wav or an import:",
            failures,
            "in the log",
            lambda failure: f"{failure.split} {failure.mouth}: {failure.reason}",
        )
        lines += listing(
            "Stored, but longer or shorter than their audio ({}); fix the npz, or allow it with "
            "datamodule.data_config.frame_tolerance:",
            self.other_lengths,
            "in the log",
        )
        if self.waiting:
            lines += [
                "",
                f"{self.waiting}, the --overwrite, is not complete, so the old store stays in use; build all splits",
            ]
        return [*lines, "", *([f"corpus: {self.corpus}"] if self.corpus else []), self.total()]

    def total(self) -> str:
        """What was stored, in one line."""
        stored = sum(self.stored.values())
        views = sum(count for split, count in self.stored.items() if parse_view_split(split)[1])
        if not stored and not self.shards:
            failed = sum(map(len, self.failed.values()))
            what = f"everything but the {failed} above" if failed else "everything"
            return f"Nothing to do: {what} is stored already. inspect-shards --verify tells whether it is whole."
        what = counted(stored - views, "utterance") + (f" and {counted(views, 'view')}" if views else "")
        rate = f" ({stored / self.seconds:.1f} {'embeddings' if views else 'utterances'}/s)" if stored else ""
        audio = f" ({self.audio_bytes / 1e6:.1f} MB of it audio)" if self.audio_bytes else ""
        size = f"{self.stored_bytes / 1e6:.1f} MB{audio}"
        return f"{what} in {counted(self.shards, 'shard')}, {size}, {self.seconds:.1f} s{rate}"


def counted_corpus(manifests: Mapping[str, Manifest]) -> str:
    """How many mixtures and examples the splits have, and hours of them."""
    examples = sum(len(manifest.examples) for manifest in manifests.values())
    first = [manifest.num_samples()[manifest.examples.numbers("speaker") == 1] for manifest in manifests.values()]
    mixtures, hours = sum(map(len, first)), sum(int(lengths.sum()) for lengths in first) / SAMPLE_RATE / 3600
    return f"{counted(mixtures, 'mixture')}, {counted(examples, 'example')}, {hours:.2f} h"


def failures_of(manifests: Mapping[str, Manifest], found: Mapping[str, SplitEntries]) -> dict[str, list[NotStored]]:
    """Utterances of some splits, and views of them, that a store could not hold, split by split.

    Args:
        manifests: Of the splits, without views.
        found: All splits and views of the store, with the columns `key` and `error`.
    """
    known = with_views(manifests, count_views(found))
    return {split: _failures(known[split], entries) for split, entries in found.items() if split in known}


def _failures(manifest: Manifest, entries: SplitEntries) -> list[NotStored]:
    reasons, keys = entries.failures, manifest.utterances.column("key")
    rows = pc.is_in(keys, value_set=pa.array(list(reasons), type=pa.string()))
    mouths = manifest.utterances.column("mouth").filter(rows).to_pylist()
    failed = zip(keys.filter(rows).to_pylist(), mouths, strict=True)
    return [NotStored(manifest.split, key, mouth, reasons[key]) for key, mouth in failed]


class Bar:
    """See `Progress`: shows a build's progress, and keeps its counts and the time inside the block."""

    def __init__(self, report: BuildReport, total: int | None, verb: str, *, shown: bool = True) -> None:
        self.report = report
        self.skipped = sum(counts["skipped"] for counts in report.planned.values())
        self.failures = 0
        self.bar = tqdm(total=total, unit="utt", desc=verb, dynamic_ncols=True, disable=total == 0 or not shown)

    def __enter__(self) -> "Bar":
        self.started = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.report.seconds += time.monotonic() - self.started
        self._show(refresh=True)
        self.bar.close()

    def __call__(self, event: Event) -> None:
        match event:
            case Published(shard, stored_bytes, audio_bytes):
                self.report.shards += 1
                self.report.stored_bytes += stored_bytes
                self.report.audio_bytes += audio_bytes
                logger.debug("%s: published, %d bytes", shard, stored_bytes)
                return
            case Stored(split, key):
                self.report.stored[split] += 1
                logger.debug("%s %s: stored", split, key)
            case NotStored():
                self.failures += 1
                logger.warning("%s %s: not stored: %s: %s", *event)
        self.bar.update()
        self._show()

    def _show(self, refresh: bool = False) -> None:
        stored = sum(self.report.stored.values())
        self.bar.set_postfix(stored=stored, skipped=self.skipped, failed=self.failures, refresh=refresh)
