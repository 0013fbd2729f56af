"""What an evaluation found: mean, standard deviation, median and number of each figure, as a table and as JSON."""

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from iianet.inference.record import EvaluatedRow
from iianet.run_folder import replacing
from iianet.wording import counted

SUMMARY_FILE = "summary.json"
NAMES = {
    "si_snr": "SI-SNR (dB)",
    "si_snri": "SI-SNRi (dB)",
    "sdr": "SDR (dB)",
    "sdri": "SDRi (dB)",
    "sdr_published": "SDR, estimate and target swapped (dB)",
    "sdri_published": "SDRi, estimate and target swapped (dB)",
    "mixture_snr": "SNR of the mixture (dB)",
    "pesq": "PESQ, wide band",
    "stoi": "STOI",
    "estoi": "extended STOI",
}
"""Figure -> how a table names it."""
FINE = {"stoi", "estoi"}
"""Figures whose third digit matters."""
NAMED = 5
"""Examples that a message names."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of one figure over all examples that have it.

    Attributes:
        mean: Mean.
        std: Standard deviation of the sample; 0 of one example.
        median: Median.
        number: Examples that have the figure.
    """

    mean: float
    std: float
    median: float
    number: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Statistics | None":
        """Sum values up; None where there are none."""
        if not values:
            return None
        std = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(mean=statistics.fmean(values), std=std, median=statistics.median(values), number=len(values))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All that an evaluation found.

    Attributes:
        figures: Statistics of each figure, by name; None where no example has it.
        examples: Examples of the split.
        evaluated: Examples that were evaluated.
        too_short: Names of examples that are shorter than the segment, and so left out.
        skipped: Number of examples that are not in the store, and were to be skipped.
        unreadable: Examples that could not be read, by name, each with the reason.
        no_figure: Number of examples that lack a figure, by "figure: reason".
    """

    figures: Mapping[str, Statistics | None]
    examples: int
    evaluated: int
    too_short: Sequence[str] = ()
    skipped: int = 0
    unreadable: Mapping[str, str] = field(default_factory=dict)
    no_figure: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        rows: Sequence[EvaluatedRow],
        columns: Sequence[str],
        examples: int,
        too_short: Sequence[str],
        unreadable: Mapping[str, str],
        skipped: int = 0,
    ) -> "Summary":
        """Sum up the rows of an evaluation; a figure that an example lacks does not count for it."""
        values = {name: [row.figures.values[name] for row in rows if name in row.figures.values] for name in columns}
        lacking = Counter(f"{name}: {reason}" for row in rows for name, reason in row.figures.missing.items())
        return cls(
            figures={name: Statistics.of(found) for name, found in values.items()},
            examples=examples,
            evaluated=len(rows),
            too_short=too_short,
            skipped=skipped,
            unreadable=unreadable,
            no_figure=dict(lacking.most_common()),
        )

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Write summary.json: what was evaluated, and this."""
        with replacing(folder / SUMMARY_FILE) as stream:
            stream.write(json.dumps({**facts, **asdict(self)}, indent=2, ensure_ascii=False).encode())

    def table(self) -> str:
        """A line for each figure, and lines on what is not in them."""
        rows = [
            [NAMES.get(name, name), *_shown(name, found), found.number]
            if found
            else [NAMES.get(name, name), "-", "-", "-", 0]
            for name, found in self.figures.items()
        ]
        table = tabulate(rows, headers=["figure", "mean", "std", "median", "examples"], disable_numparse=True)
        return "\n".join([table, "", *self._remarks()])

    def _remarks(self) -> list[str]:
        lines = [f"{self.evaluated} of {counted(self.examples, 'example')} evaluated"]
        if self.too_short:
            lines.append(f"{len(self.too_short)} shorter than the segment, left out: {_some(self.too_short)}")
        if self.skipped:
            lines.append(f"{self.skipped} not in the store, left out: --on_missing is skip")
        if self.unreadable:
            lines.append(f"{len(self.unreadable)} could not be read:")
            lines += [f"  {name}: {reason}" for name, reason in list(self.unreadable.items())[:NAMED]]
            lines += [f"  and {len(self.unreadable) - NAMED} more"] if len(self.unreadable) > NAMED else []
        lines += [f"{counted(number, 'example')} without {what}" for what, number in self.no_figure.items()]
        return lines


def _shown(name: str, found: Statistics) -> list[str]:
    digits = 3 if name in FINE else 2
    return [f"{round(value, digits) + 0.0:.{digits}f}" for value in (found.mean, found.std, found.median)]  # no -0.00


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
