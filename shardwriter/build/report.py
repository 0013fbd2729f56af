"""What a build did: counted while it runs, shown in a bar, and summed up."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from tqdm import tqdm

from shardwriter.build.work import Work

logger = logging.getLogger(__name__)


class Failure(NamedTuple):
    """An utterance that is not stored: its npz relative to data_root, and why."""

    split: str
    key: str
    mouth: str
    reason: str


@dataclass(kw_only=True)
class BuildReport:
    """What a build did, split by split.

    Attributes:
        planned: Why each utterance was encoded or not: new, changed, retried, resumed (of an unfinished shard); skipped
            (stored, or known to fail); left out (by the limit).
        encoded: Utterances stored by this run.
        failed: Everything of these splits that is not stored, from this run or an earlier one.
        shards: Shards published by this run.
        stored_bytes: Bytes of those shards.
        audio_bytes: How many of these are audio.
        seconds: From the first npz read to the last shard published.
        waiting: Plan of an --overwrite that is not complete yet.
    """

    planned: dict[str, dict[str, int]] = field(default_factory=dict)
    encoded: Counter[str] = field(default_factory=Counter)
    failed: dict[str, list[Failure]] = field(default_factory=dict)
    shards: int = 0
    stored_bytes: int = 0
    audio_bytes: int = 0
    seconds: float = 0.0
    waiting: str | None = None

    def count(self, split: str, work: Work) -> None:
        """Note why utterances are encoded; a second pass takes what it encodes from what the first one skipped."""
        busy = {
            "new": len(work.new),
            "changed": len(work.changed),
            "retried": len(work.retried),
            "resumed": len(work.resumed),
        }
        if split in self.planned:
            for why, count in busy.items():
                self.planned[split][why] += count
            self.planned[split]["skipped"] -= sum(busy.values())
            return
        skipped = len(work.manifest.utterances) - work.left_out - sum(busy.values())
        self.planned[split] = {**busy, "skipped": skipped} | ({"left out": work.left_out} if work.left_out else {})
        self.encoded[split] = 0

    @property
    def any_failed(self) -> bool:
        """Whether some utterance is not stored."""
        return any(self.failed.values())


class Bar:
    """Shows a build's progress, keeps its counts, and hands each shard on that is published."""

    def __init__(
        self, report: BuildReport, total: int | None, hand_on: Callable[[str], None], *, shown: bool = True
    ) -> None:
        self.report = report
        self.hand_on = hand_on
        self.skipped = sum(counts["skipped"] for counts in report.planned.values())
        self.failures = 0
        self.bar = tqdm(total=total, unit="utt", desc="encoding", dynamic_ncols=True, disable=total == 0 or not shown)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._show(refresh=True)
        self.bar.close()

    def encoded(self, split: str, key: str) -> None:
        self.report.encoded[split] += 1
        logger.debug("%s %s: encoded", split, key)
        self.bar.update()
        self._show()

    def failed(self, split: str, key: str, mouth: str, reason: str) -> None:
        self.failures += 1
        logger.warning("%s %s: not stored: %s: %s", split, key, mouth, reason)
        self.bar.update()
        self._show()

    def published(self, shard: str, stored_bytes: int, audio_bytes: int) -> None:
        self.report.shards += 1
        self.report.stored_bytes += stored_bytes
        self.report.audio_bytes += audio_bytes
        logger.debug("%s: published, %d bytes", shard, stored_bytes)
        self.hand_on(shard)

    def _show(self, refresh: bool = False) -> None:
        encoded = sum(self.report.encoded.values())
        self.bar.set_postfix(encoded=encoded, skipped=self.skipped, failed=self.failures, refresh=refresh)
