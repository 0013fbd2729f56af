"""Words that messages share: how a found value is shown, what was perhaps meant, and how many there are."""

import difflib
import reprlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")

LISTED = 12
"""Known names that an error lists at most, where none of them is near."""


def show(value: Any) -> str:
    """A found value as YAML spells it, shortened, with its Python type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"{str(value).lower()} (bool)"
    return f"{reprlib.repr(value)} ({type(value).__name__})"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one known name that begins so, else the name most like `word`, whatever the case; None where none is near."""
    by_lower = {name.lower(): name for name in known}
    longer = [name for name in by_lower if word and name.startswith(word.lower())]
    matches = longer if len(longer) == 1 else difflib.get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[matches[0]] if matches else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """What an error about an unknown `word` ends with: the nearest known name, else a list of the known ones."""
    names = sorted(set(known))
    near = nearest(word, names)
    if near is not None:
        return f"; did you mean {near}?"
    if not names:
        return ""
    more = ", ..." if len(names) > LISTED else ""
    return f"; known: {', '.join(names[:LISTED])}{more}"


def counted(count: int, noun: str) -> str:
    """`1 shard`, `2,000 shards`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listing(
    title: str, items: Sequence[Item], rest: str, show: Callable[[Item], str] = str, shown: int = 10
) -> list[str]:
    """Lines that show the first of some items under a title, none where there are none.

    Args:
        title: With a place for their number.
        items: In the order to be shown.
        rest: Where the others are.
        show: Text of an item.
        shown: How many are shown at most.
    """
    more = [f"  ... and {len(items) - shown:,} more, {rest}"] if len(items) > shown else []
    return ["", title.format(f"{len(items):,}"), *(f"  {show(item)}" for item in items[:shown]), *more] if items else []


def either(names: Iterable[str]) -> str:
    """Alternatives in words: `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def readable_bytes(count: float) -> str:
    """Bytes with a decimal unit, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB" if count < 999.5 else f"{count:,.0f} TB"


def duration(seconds: float) -> str:
    """`12 s`, `3 min`, `2 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def printable(text: object, keep: str = "\n\t") -> str:
    """Text with what a terminal would obey, or could not encode, as escapes: `\\x1b`, `\\u202e`, `\\udcff`.

    Names, keys and texts of errors come out of files that anybody may have written. Control characters of C0 and C1,
    characters that turn the direction of writing or are not seen, separators of lines, and the surrogates that stand
    for bytes that are not UTF-8 are escaped; what is a letter anywhere in the world stays.

    Args:
        text: What is to be shown.
        keep: Control characters that stay as they are: line ends and tabs of our own layout.
    """
    return "".join(
        character if character in keep or unicodedata.category(character) not in _UNSEEN else ascii(character)[1:-1]
        for character in str(text)
    )


_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode's categories of what is obeyed or not seen, or may be tomorrow."""
