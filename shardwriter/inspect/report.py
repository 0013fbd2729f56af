"""What inspect-shards shows: sections on a store, put together for people and for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Section:
    """One thing that was asked for. ADD A SECTION: a file with a function that makes one, called in `inspect_cli.py`.

    Attributes:
        text: For people, problems apart; empty where there is nothing to say.
        fields: For programs, problems apart.
        problems: What is wrong, one line each. Failed and unfinished utterances are a state, not a problem.
    """

    text: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    problems: Sequence[str] = ()


def problems_of(sections: Sequence[Section]) -> list[str]:
    """Everything that is wrong."""
    return [problem for section in sections for problem in section.problems]


def as_text(sections: Sequence[Section]) -> str:
    """All sections for people, then what is wrong."""
    problems = problems_of(sections)
    listed = "\n  ".join([f"Problems ({len(problems)}):", *problems]) if problems else ""
    return "\n\n".join(filter(None, [*(section.text for section in sections), listed]))


def as_json(sections: Sequence[Section]) -> str:
    """All sections for programs. `problems` is empty if and only if the exit code is 0."""
    document = {name: value for section in sections for name, value in section.fields.items()}
    text = json.dumps({**document, "problems": problems_of(sections)}, indent=2, allow_nan=False)
    return text.replace("\x7f", "\\u007f")  # the one ASCII letter that a terminal would obey and JSON leaves
