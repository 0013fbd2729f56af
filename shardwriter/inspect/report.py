"""What an inspection found, put together for people and for programs."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shardwriter.format.names import sorted_splits
from shardwriter.inspect.compare import Comparison, comparison_lines, comparison_problems
from shardwriter.inspect.export_embeddings import Exported
from shardwriter.inspect.inspected import InspectedStore
from shardwriter.inspect.recheck import Recheck, recheck_lines, recheck_problems
from shardwriter.inspect.sample import Sample, sample_lines
from shardwriter.inspect.summary import (
    SplitSummary,
    failure_lines,
    identity_lines,
    progress_lines,
    store_json,
    summarise,
    summary_table,
)
from shardwriter.inspect.verify import Verification


@dataclass(kw_only=True)
class InspectionReport:
    """All parts that were asked for; None or empty where they were not.

    Attributes:
        store: What was looked at.
        samples: Those of --key, where `key` was given.
        comparisons: With the corpus, split by split; `command` fixes what differs.
        checked: Utterances encoded again.
        picture: The file drawn.
        exported: What --export_embeddings wrote.
        others: Problems with what was asked for itself.
    """

    store: InspectedStore
    key: str | None = None
    samples: Sequence[Sample] = ()
    comparisons: dict[str, Comparison] | None = None
    command: str = ""
    verification: Verification | None = None
    checked: Sequence[Recheck] | None = None
    picture: Path | None = None
    exported: Exported | None = None
    others: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Everything that is wrong, one line each. Failed and unfinished utterances are a state, not a problem."""
        failed = [
            f"{sample.entry.split} {sample.entry.key}: is not stored: {sample.entry.error}"
            for sample in self.samples
            if sample.entry.error is not None
        ]
        return [
            *self._damage(),
            *self.others,
            *failed,
            *comparison_problems(self.comparisons or {}),
            *recheck_problems(self.checked or ()),
            *(self.exported.problems if self.exported is not None else ()),
        ]

    def _damage(self) -> list[str]:
        """What is wrong with files; --verify says the same of them, and more."""
        if self.verification is None:
            return self.store.problems
        found = self.verification.problems
        return [*(problem for problem in self.store.unreadable if problem not in found), *found]

    def summaries(self) -> dict[str, SplitSummary]:
        """Of all splits that the store has or was compared with."""
        found = {split: summarise(self.store, split) for split in self.store.splits}
        known = {**dict.fromkeys(self.comparisons or {}, SplitSummary()), **found}
        return {split: known[split] for split in sorted_splits(known)}

    def to_json(self) -> dict[str, Any]:
        """For programs. `problems` is empty if and only if the exit code is 0."""
        document: dict[str, Any] = {"store": store_json(self.store), "splits": {}, "problems": self.problems}
        for split, summary in self.summaries().items():
            document["splits"][split] = {**summary.to_json(), **self._compared(split)}
        if self.key is not None:
            document["samples"] = [sample.facts() for sample in self.samples]
        if self.verification is not None:
            document["notes"] = self.verification.notes
        if self.checked is not None:
            document["recheck"] = [asdict(item) for item in self.checked]
        if self.exported is not None:
            document["exported"] = self.exported.to_json()
        return document

    def _compared(self, split: str) -> dict[str, Any]:
        if self.comparisons is None:
            return {}
        found = self.comparisons.get(split)
        if found is None:
            return {"missing_keys": None, "stale_keys": None}
        return {
            "missing": len(found.missing),
            "stale": len(found.stale),
            "missing_keys": [item.key for item in found.missing],
            "stale_keys": [item.key for item in found.stale],
        }

    def to_text(self) -> str:
        """For people: the sample that was asked for, else the store; then what was checked, then what is wrong."""
        blocks = [sample_lines(sample) for sample in self.samples] if self.key is not None else self._store()
        if self.comparisons is not None:
            blocks.append(comparison_lines(self.comparisons, self.command))
        if self.checked is not None:
            blocks.append(recheck_lines(self.checked))
        if self.verification is not None:
            blocks.append(self.verification.lines())
        if self.exported is not None:
            blocks.append(self.exported.lines())
        if self.problems:
            blocks.append([f"Problems ({len(self.problems)}):", *(f"  {problem}" for problem in self.problems)])
        if self.picture is not None:
            blocks.append([f"picture: {self.picture}"])
        return "\n\n".join("\n".join(block) for block in blocks if block)

    def _store(self) -> list[list[str]]:
        summaries = self.summaries()
        return [
            summary_table(summaries, self.store.identity.fps).splitlines(),
            identity_lines(self.store),
            failure_lines(self.store),
            progress_lines(self.store, summaries),
        ]


def as_json(document: dict[str, Any]) -> str:
    """JSON text, indented for those who look at it all the same."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
