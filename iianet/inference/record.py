"""The record of an evaluation: what is evaluated, and a row for each example that is done, by which it resumes."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iianet.errors import ConfigError
from iianet.inference.metrics import ExampleFigures
from iianet.run_folder import replacing

CSV_FILE = "metrics.csv"
FACTS_FILE = "evaluation.json"
NAMES = ("key", "mixture", "target")
SECONDS = "seconds"
MISSING = "no_figure"
"""Column that says of which figures there are none, and why."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedRow:
    """An example that was evaluated.

    Attributes:
        name: Key of the target utterance, path of the mixture's wav, path of the target's wav.
        seconds: Length that was evaluated.
        figures: Its figures.
    """

    name: tuple[str, str, str]
    seconds: float
    figures: ExampleFigures


class EvaluationRecord:
    """A folder with metrics.csv and evaluation.json.

    Each row is on disk before the next batch begins, and a row that a kill has cut is made again.

    Args:
        folder: Path of the folder; made where it is missing.
        facts: What is evaluated and how; rows of other facts would not belong together.
        columns: Names of the figures.

    Attributes:
        rows: Rows by name, as far as they are done.

    Raises:
        ConfigError: The folder holds another evaluation, or cannot be written to.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], columns: Sequence[str]) -> None:
        self.folder = folder
        self.columns = tuple(columns)
        self._header = [*NAMES, SECONDS, *columns, MISSING]
        self.rows: dict[tuple[str, str, str], EvaluatedRow] = {}
        facts = {**facts, "columns": list(columns)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._refuse_others(facts)
            done = self._read()
            self._write(done)  # without what a kill has cut
        except OSError as error:
            raise ConfigError(
                f"{folder}: cannot be written to: {error.strerror}; give another folder: --out DIR"
            ) from error
        self.rows = {row.name: row for row in done}

    @property
    def csv(self) -> Path:
        """Path of metrics.csv."""
        return self.folder / CSV_FILE

    def add(self, rows: Iterable[EvaluatedRow]) -> None:
        """Append rows."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for row in rows:
            writer.writerow(self._cells(row))
            self.rows[row.name] = row
        with self.csv.open("a", encoding="utf-8", newline="") as stream:
            stream.write(text.getvalue())

    def _refuse_others(self, facts: Mapping[str, Any]) -> None:
        path = self.folder / FACTS_FILE
        if self.csv.exists() or path.exists():
            found = _facts(path)
            differing = [name for name in {**found, **facts} if found.get(name) != facts.get(name)]
            if differing:
                name = differing[0]
                raise ConfigError(
                    f"{self.folder}: holds another evaluation, of which {name} is {_shown(found.get(name))}; here it "
                    f"is {_shown(facts.get(name))}. Give another folder with --out DIR, or delete this one"
                )
        with replacing(path) as stream:
            stream.write(json.dumps(facts, indent=2, ensure_ascii=False).encode())

    def _read(self) -> list[EvaluatedRow]:
        """The whole rows of metrics.csv, each example's last one."""
        if not self.csv.exists():
            return []
        text = self.csv.read_text(encoding="utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        reader = csv.reader(io.StringIO(whole, newline=""))
        if next(reader, self._header) != self._header:
            raise ConfigError(
                f"{self.csv}: its columns are others than evaluate.py writes; give another folder with --out DIR, or "
                "delete this one"
            )
        try:
            rows = [self._row(cells) for cells in reader]
        except (ValueError, csv.Error) as error:
            raise ConfigError(
                f"{self.csv}: a row is not as evaluate.py writes it: {error}; delete the row, or the file to begin anew"
            ) from error
        return list({row.name: row for row in rows}.values())

    def _write(self, rows: Sequence[EvaluatedRow]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self._header, *map(self._cells, rows)])
        with replacing(self.csv) as stream:
            stream.write(text.getvalue().encode())

    def _cells(self, row: EvaluatedRow) -> list[str]:
        figures = [repr(row.figures.values[name]) if name in row.figures.values else "" for name in self.columns]
        return [*row.name, f"{row.seconds:g}", *figures, json.dumps(row.figures.missing) if row.figures.missing else ""]

    def _row(self, cells: Sequence[str]) -> EvaluatedRow:
        if len(cells) != len(self._header):
            raise ValueError(f"found {len(cells)} cells, expected {len(self._header)}")
        key, mixture, target, seconds, *figures, missing = cells
        values = {name: float(cell) for name, cell in zip(self.columns, figures, strict=True) if cell}
        reasons = json.loads(missing) if missing else {}
        if not isinstance(reasons, dict):
            raise ValueError(f"found {missing!r} in {MISSING}, expected names and reasons")
        return EvaluatedRow(
            name=(key, mixture, target), seconds=float(seconds), figures=ExampleFigures(values=values, missing=reasons)
        )


def _shown(fact: object) -> str:
    return ", ".join(map(str, fact)) if isinstance(fact, list) else str(fact)


def _facts(path: Path) -> dict[str, Any]:
    """What evaluation.json says; nothing where it is damaged or missing, which differs from any facts."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
