"""What inspect-shards shows: views of a store, put together for people and for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class View:
    """One thing that was asked for. ADD A VIEW: a file with a function that makes one, called in `inspect_cli.py`.

    Attributes:
        text: For people, problems apart; empty where there is nothing to say.
        fields: For programs, problems apart.
        problems: What is wrong, one line each. Failed and unfinished utterances are a state, not a problem.
    """

    text: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    problems: Sequence[str] = ()


def problems_of(views: Sequence[View]) -> list[str]:
    """Everything that is wrong."""
    return [problem for view in views for problem in view.problems]


def as_text(views: Sequence[View]) -> str:
    """All views for people, then what is wrong."""
    problems = problems_of(views)
    listed = "\n  ".join([f"Problems ({len(problems)}):", *problems]) if problems else ""
    return "\n\n".join(filter(None, [*(view.text for view in views), listed]))


def as_json(views: Sequence[View]) -> str:
    """All views for programs. `problems` is empty if and only if the exit code is 0."""
    document = {name: value for view in views for name, value in view.fields.items()}
    return json.dumps({**document, "problems": problems_of(views)}, indent=2, ensure_ascii=False, allow_nan=False)
