"""What build-shards prints when it ends."""

import logging
from pathlib import Path

from tabulate import tabulate

from iianet.wording import counted
from shardwriter.build.build import Build
from shardwriter.build.report import BuildReport
from shardwriter.format.names import parse_view_split
from shardwriter.storage.mirror import store_name

SHOWN_FAILURES = 10

logger = logging.getLogger(__name__)


def show(store: Path, report: BuildReport, log: Path) -> None:
    """Print what a build did, and what could not be stored."""
    reasons = [why for why in ("new", "changed", "retried", "resumed", "skipped", "left out") if _any(report, why)]
    rows = [
        (split, *(planned.get(why, 0) for why in reasons), report.encoded[split], len(report.failed.get(split, [])))
        for split, planned in report.planned.items()
    ]
    print(tabulate(rows, headers=["split", *reasons, "encoded", "not stored"]))
    failures = [failure for split in report.failed.values() for failure in split]
    for failure in failures:
        logger.debug("not stored: %s %s: %s: %s", *failure)
    if failures:
        print(
            f"\nNot stored ({len(failures)}); mend the npz and build again, with --retry_failed for a wav or an import:"
        )
        for failure in failures[:SHOWN_FAILURES]:
            print(f"  {failure.split} {failure.mouth}: {failure.reason}")
        if len(failures) > SHOWN_FAILURES:
            print(f"  ... and {len(failures) - SHOWN_FAILURES} more, in the log")
    if report.waiting:
        print(f"\n{report.waiting}, the --overwrite, is not complete, so the old store serves; build all splits")
    print(f"\n{totals(report)}")
    print(f"store: {store_name(store)}\nlog:   {log}")


def show_stopped(build: Build) -> None:
    """Say what a signal left of a build."""
    report, left = build.report, build.unpublished()
    print(
        f"\nStopped. Published: {counted(report.shards, 'shard')}, {report.stored_bytes / 1e6:.1f} MB, "
        f"{report.seconds:.1f} s. Left: {counted(len(left), 'shard')} with "
        f"{counted(sum(len(task.rows) for task in left), 'utterance')}; what was encoded of these is lost. Every "
        f"published shard is whole, and the same command goes on.\nstore: {store_name(build.store)}"
    )


def totals(report: BuildReport) -> str:
    """What was encoded and stored, in one line."""
    encoded = sum(report.encoded.values())
    views = sum(count for split, count in report.encoded.items() if parse_view_split(split)[1])
    what = counted(encoded - views, "utterance") + (f" and {counted(views, 'view')}" if views else "")
    rate = f" ({encoded / report.seconds:.1f} {'embeddings' if views else 'utterances'}/s)" if encoded else ""
    audio = f" ({report.audio_bytes / 1e6:.1f} MB of it audio)" if report.audio_bytes else ""
    stored = f"{report.stored_bytes / 1e6:.1f} MB{audio}"
    return f"{what} in {counted(report.shards, 'shard')}, {stored}, {report.seconds:.1f} s{rate}"


def _any(report: BuildReport, why: str) -> bool:
    return any(planned.get(why) for planned in report.planned.values())
