"""Changes of documents that people and programs write: JSON, YAML, lists. The result is a document again, as a rule."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import yaml

from helpers.campaign.damage import Change

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**400,
    1e308,
    0.5,
    float("nan"),
    float("inf"),
    "",
    " ",
    ".",
    "..",
    "/",
    "../victim/data",
    "../victim/data.tar",
    "/etc/passwd",
    "~",
    "$NOT_SET/a",
    "a\nb",
    "a\0b",
    "\x1b[31mred\x1b]0;title\x07",
    "\u202egnp.exe",
    "\ud800",
    "x" * 5000,
    "int16",
    "object",
    "plan-0000000000.parquet",
    "train",
    "-",
    "pipe:touch owned",
    "{0..99999999}",
    [],
    {},
    [[]],
    [None],
    {"": None},
    list(range(50)),
)
DEEP = 100_000
"""Brackets in a document that asks for as many calls."""


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values lie in a document."""
    if not isinstance(document, dict | list):
        return
    for name, value in document.items() if isinstance(document, dict) else enumerate(document):
        yield (*path, name)
        if isinstance(value, dict | list):
            yield from places(value, (*path, name))


def change_value(chance: random.Random, document: Any) -> Any:
    """Change one value, name or place of a document."""
    found = list(places(document))
    if not found or chance.random() < 0.03:
        return chance.choice(HOSTILE)
    changed = copy.deepcopy(document)
    path = chance.choice(found)
    parent = changed
    for name in path[:-1]:
        parent = parent[name]
    name, value = path[-1], parent[path[-1]]
    kind = chance.randrange(8)
    if kind == 0:
        del parent[name]
    elif kind == 1 and isinstance(parent, dict):
        parent[chance.choice([str(name) + "x", "", "dtype", "path"])] = parent.pop(name)
    elif kind == 2 and isinstance(parent, list):
        parent.insert(name, copy.deepcopy(chance.choice(parent)))
    elif kind == 3:
        parent[name] = [value]
    elif kind == 4:
        parent[name] = _near(chance, value)
    elif kind == 5:
        other = chance.choice(found)
        taken: Any = document
        for step in other:
            taken = taken[step]
        parent[name] = copy.deepcopy(taken)
    else:
        parent[name] = chance.choice(HOSTILE)
    return changed


def _near(chance: random.Random, value: Any) -> Any:
    """A value of the same type, a little off."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + chance.choice([-1, 1, 7, -value - 1, value])
    if isinstance(value, float):
        return value * chance.choice([-1.0, 2.0, 1e300])
    if isinstance(value, str) and value:
        place = chance.randrange(len(value))
        return value[:place] + chance.choice(["", "0", "f", "/", "..", "\x1b", "é", "\n"]) + value[place + 1 :]
    if isinstance(value, list):
        return value[::-1] + value[:1]
    return value


def edit_json(chance: random.Random, content: bytes) -> bytes:
    return _dump(change_value(chance, json.loads(content)))


def edit_json_twice(chance: random.Random, content: bytes) -> bytes:
    return _dump(change_value(chance, change_value(chance, json.loads(content))))


def repeat_json_key(chance: random.Random, content: bytes) -> bytes:
    """Give a key twice; parsers differ in which one they take."""
    lines = content.split(b"\n")
    number = chance.randrange(len(lines))
    return b"\n".join([*lines[: number + 1], *lines[number:]])


def write_otherwise(chance: random.Random, content: bytes) -> bytes:
    """The same text in another encoding, or with a byte order mark."""
    text = content.decode("utf-8", "replace")
    return chance.choice(
        [
            b"\xef\xbb\xbf" + content,
            text.encode("utf-16"),
            text.encode("utf-32-le"),
            content.replace(b"\n", b"\r\n"),
            content.replace(b"a", b"\xe9", 1),
            content.replace(b"/", b"\\\\"),
            b"\xff" + content,
        ]
    )


def nest(chance: random.Random, content: bytes) -> bytes:
    """A document as deep as it is long."""
    opening, closing = chance.choice([(b"[", b"]"), (b'{"a":', b"}")])
    depth = chance.choice([500, 5_000, DEEP])
    return chance.choice([opening * depth + b"1" + closing * depth, opening * depth, content + opening * depth])


def grow(chance: random.Random, content: bytes) -> bytes:
    """A document of some ten megabytes."""
    filler = chance.choice([b" ", b"9", b"\n", b"[],"])
    return content[:1] + filler * (10_000_000 // len(filler)) + content[1:]


JSON: tuple[Change, ...] = (
    *(edit_json,) * 12,
    *(edit_json_twice,) * 3,
    repeat_json_key,
    write_otherwise,
    nest,
    grow,
)


def edit_yaml(chance: random.Random, content: bytes) -> bytes:
    return yaml.safe_dump(change_value(chance, yaml.safe_load(content)), sort_keys=False).encode("utf-8", "replace")


def edit_yaml_line(chance: random.Random, content: bytes) -> bytes:
    """Spell a value as YAML reads it in ways that surprise."""
    lines = content.decode().split("\n")
    numbers = [number for number, line in enumerate(lines) if ":" in line]
    number = chance.choice(numbers)
    name = lines[number].partition(":")[0]
    spelling = chance.choice(
        ["1:30", "1_0", "0o17", "017", "yes", "no", "2026-01-01", "1e3", ".inf", ".nan", "~", "!!python/object:os.x {}",
         "!!binary QQ==", "&a [*a]", "*nothing", "[1, 2", "{a: b", "'open", "@at", "\t1", "|", "? x", "<<: *a", "0x1F",
         "1000000000", "-1", "''", "[]", "a: b", "%YAML 9", "!!set {a}", "!!omap [a: b]", "\x1b[31m", "2001-13-45"]
    )  # fmt: skip
    lines[number] = f"{name}: {spelling}"
    return "\n".join(lines).encode()


def move_yaml_line(chance: random.Random, content: bytes) -> bytes:
    """Indent, repeat, drop or exchange lines."""
    lines = content.decode().split("\n")
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    kind = chance.randrange(4)
    if kind == 0:
        lines[one] = chance.choice([" ", "  ", "\t", "    "]) + lines[one]
    elif kind == 1:
        lines.insert(one, lines[other])
    elif kind == 2:
        del lines[one]
    else:
        lines[one], lines[other] = lines[other], lines[one]
    return "\n".join(lines).encode()


def bomb_yaml(chance: random.Random, content: bytes) -> bytes:
    """Aliases that name each other, so that a kilobyte means gigabytes; or many nested mappings."""
    if chance.random() < 0.5:
        levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 11))
        return content + b"\nl0: &l0 [x, x]\n" + levels.encode()
    depth = chance.choice([500, 3000])
    return content + b"\ndeep: " + b"{a: " * depth + b"1" + b"}" * depth + b"\n"


YAML: tuple[Change, ...] = (
    *(edit_yaml,) * 8,
    *(edit_yaml_line,) * 6,
    *(move_yaml_line,) * 3,
    write_otherwise,
    bomb_yaml,
)


def _dump(document: Any) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()
