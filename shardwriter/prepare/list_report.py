"""What prepare-lists says: how much each split has, how evenly its utterances serve, and what is left out."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from tabulate import tabulate

from iianet.encoder.mouth import SAMPLE_RATE
from iianet.errors import ManifestError
from iianet.wording import counted, listing
from shardwriter.prepare.split_lists import LEFT_OUT_FILE, PROBLEMS, LeftOut, SplitLists

SHOWN = 3
"""Mixtures that are shown of each problem."""
HEADERS = ("split", "mixtures", "left out", "hours", "utterances", "examples of one: min", "median", "max")


def report_lines(lists: Sequence[SplitLists], out: Path) -> list[str]:
    """Lines for people: a table of the splits, then each problem with the first mixtures that have it."""
    lines = tabulate([_row(one) for one in lists], headers=HEADERS, floatfmt=".2f", intfmt=",").splitlines()
    for problem in PROBLEMS:
        lines += _problem_lines(lists, problem, out)
    return lines


def refuse_empty(lists: Sequence[SplitLists]) -> None:
    """Raise ManifestError where a split has no mixture that can be listed: that is no bad file, but a wrong folder or
    corpus."""
    for one in lists:
        if not one.mixtures:
            counts = Counter(reason.problem for reason in one.left_out)
            (problem, most), *_ = counts.most_common(1)
            first = next(reason for reason in one.left_out if reason.problem == problem)
            raise ManifestError(
                f"{one.split}: none of its {counted(len(one.recordings.all_names), 'mixture')} can be listed; {most:,} "
                f"are {problem}, e.g. {first.name}: {first.found}. Nothing was written. Correct --audio, --mouths or "
                "the name of the corpus (lrs2, lrs3, vox2)"
            )


def _row(one: SplitLists) -> tuple[object, ...]:
    served = Counter(chain.from_iterable(mixture.utterances for mixture in one.mixtures))
    times = np.array(list(served.values()))
    hours = sum(mixture.num_samples for mixture in one.mixtures) / SAMPLE_RATE / 3600
    left_out = len({reason.name for reason in one.left_out})
    return one.split, len(one.mixtures), left_out, hours, len(served), times.min(), f"{np.median(times):g}", times.max()


def _problem_lines(lists: Sequence[SplitLists], problem: str, out: Path) -> list[str]:
    """The mixtures of all splits that have one problem."""
    having = [(one.split, reason) for one in lists for reason in one.left_out if reason.problem == problem]
    mixtures = len({(split, reason.name) for split, reason in having})

    def show(item: tuple[str, LeftOut]) -> str:
        split, reason = item
        return f"{split} {reason.name}: {reason.found}"

    title = f"Left out ({mixtures:,}): mixtures {problem}"
    return listing(title, having, f"in {out}/*/{LEFT_OUT_FILE}", show, SHOWN)
