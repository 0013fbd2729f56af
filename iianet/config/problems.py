"""From pydantic's errors to lines that name the key, what was found, what was expected, and what was perhaps meant."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from iianet.config.key_paths import KeyPath, Place, dotted, known_paths
from iianet.wording import did_you_mean, either, nearest, show

EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "none_required": "null",
    "finite_number": "a finite number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number not below {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number not above {le}",
    "string_too_short": "text that is not empty",
}
"""Kind of pydantic error -> what was expected."""


def raise_problems(problems: Mapping[str, str]) -> None:
    """Raise inside a section's validator what is wrong with several of its keys; nothing where there is nothing.

    Args:
        problems: Dotted key below the section -> what is wrong with it.
    """
    if problems:
        raise PydanticCustomError("arguments", "wrong values", {"problems": dict(problems)})


def problems(error: ErrorDetails, schema: type[BaseModel]) -> Iterator[tuple[Place, str]]:
    """Word one of pydantic's errors.

    Args:
        error: As `ValidationError.errors()` lists it.
        schema: What was validated.

    Yields:
        The key and what is wrong with it; several where the error came from `raise_problems`.
    """
    place, context = error["loc"], error.get("ctx", {})
    known = known_paths(schema)
    match error["type"]:
        case "arguments":
            for key, problem in context["problems"].items():
                yield (*place, *key.split(".")), problem
        case "extra_forbidden":
            yield place, f"unknown key{_meant(place, known)}"
        case "missing":
            yield place, f"missing; {_field(place, known).description or 'it has no default'}"
        case "value_error":
            yield place, str(context["error"])
        case "invalid_key":
            yield place[:-1], f"found the key {show(error['input'])}, expected text as keys"
        case "literal_error":
            yield place, _not_among(error["input"], context["expected"], _or_null(place, known))
        case kind:
            yield place, f"found {show(error['input'])}, expected {_expected(kind, error, _or_null(place, known))}"


def _meant(place: Place, known: dict[KeyPath, FieldInfo]) -> str:
    """The nearest key of the same section, else keys of that very name elsewhere, else the keys of the section."""
    key = str(place[-1])
    siblings = [path[-1] for path in known if path[:-1] == place[:-1]]
    elsewhere = [dotted(path) for path in known if path[-1] == key]
    if nearest(key, siblings) is None and elsewhere:
        return f"; did you mean {either(elsewhere)}?"
    return did_you_mean(key, siblings)


def _not_among(found: Any, expected: str, or_null: str) -> str:
    """Wording for a value outside a fixed set, which pydantic spells `0, 'b' or 'c'`."""
    allowed = [word.strip("'") for word in re.findall(r"'[^']*'|\d+", expected)]
    near = nearest(str(found), allowed) if isinstance(found, str) else None
    meant = f"; did you mean {near}?" if near else ""
    return f"found {show(found)}, expected {either(allowed)}{or_null}{meant}"


def _expected(kind: str, error: ErrorDetails, or_null: str) -> str:
    """What was expected by a kind of error that has no wording of its own."""
    expected = EXPECTED.get(kind, error["msg"]).format(**error.get("ctx", {}))
    quote = "; quote it" if kind == "string_type" and isinstance(error["input"], int | float) else ""
    return f"{expected}{or_null}{quote}"


def _or_null(place: Place, known: dict[KeyPath, FieldInfo]) -> str:
    field = _field(place, known)
    return " or null" if type(None) in getattr(field.annotation, "__args__", ()) else ""


def _field(place: Place, known: dict[KeyPath, FieldInfo]) -> FieldInfo:
    """The schema's entry for a key; an empty one for a list's item or a torch argument."""
    return known.get(tuple(map(str, place)), FieldInfo())
