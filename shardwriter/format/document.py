"""JSON objects out of files: bounded, sealed with a digest of themselves, and taken apart into values of known types.

Whoever reads one gets values that are as expected, or a ValueError that says what was found.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import xxhash

from iianet.wording import show

MOST_BYTES: Final = 32 << 20
"""Longest document that is parsed: the records of 300,000 shards."""
MOST_COUNT: Final = 1 << 53
"""Largest integer that every reader of JSON has exactly."""
_WORDS: Final = {str: "text", list: "a list", dict: "an object", int: "an integer"}
_DIGEST = "digest"

T = TypeVar("T", str, list[Any], dict[str, Any])


def parse_object(content: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError where it is something else, too long or too deep."""
    if len(content) > MOST_BYTES:
        raise ValueError(f"{len(content):,} bytes of JSON; expected at most {MOST_BYTES:,}")
    try:
        found = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}; expected an object")
    return found


def seal(facts: Mapping[str, Any], indent: int | None = None) -> bytes:
    """Facts as JSON, with a digest of themselves."""
    text = json.dumps({**facts, _DIGEST: digest_facts(facts)}, indent=indent, ensure_ascii=False)
    return f"{text}\n".encode("utf-8", "backslashreplace")  # which JSON undoes: paths may be no UTF-8


def refuse_broken_seal(facts: Mapping[str, Any]) -> None:
    """Raise ValueError where facts are no longer what was sealed."""
    expected, found = digest_facts({name: facts[name] for name in facts if name != _DIGEST}), facts.get(_DIGEST)
    if found != expected:
        raise ValueError(
            f"its digest is {expected}, and it says {show(found)}: it was damaged, or changed by something else"
        )


def digest_facts(facts: Mapping[str, Any]) -> str:
    """Digest of what facts say, however JSON lays it out: xxh3_128 in 32 hexadecimal digits."""
    content = json.dumps(facts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return str(xxhash.xxh3_128_hexdigest(content.encode("utf-8", "surrogatepass")))


def take(facts: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """A value of a type. Raises ValueError where it is missing, or of another type."""
    value = facts.get(name)
    if type(value) is not kind:
        raise ValueError(f"{name} is {show(value) if name in facts else 'missing'}; expected {_WORDS[kind]}")
    return value


def take_count(facts: Mapping[str, Any], name: str, least: int = 0) -> int:
    """An integer that is not below `least`. Raises ValueError where it is not."""
    value = facts.get(name)
    if type(value) is not int or not least <= value <= MOST_COUNT:
        raise ValueError(f"{name} is {show(value) if name in facts else 'missing'}; expected an integer from {least}")
    return value


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not a JSON value")
