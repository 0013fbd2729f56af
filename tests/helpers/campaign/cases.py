"""What is tried: which file is damaged, how, who reads it then, and what may come of it."""

import difflib
import random
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from helpers.campaign import archives, damage, documents, forge, readers, tables
from helpers.campaign.damage import Change
from helpers.campaign.place import Place
from helpers.campaign.readers import Reader, Seen
from iianet.errors import FeatureStoreError

ALLOWED = ("equal", "refused", "listed", "not checked")
"""Outcomes that are right. `not checked`: input that a user may have meant so was read without any fault."""


ALL = ("train", "val", "test")


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: In words.
        find: Lists such files of a place.
        changes: Those that know what such a file holds.
        readers: By name.
        is_checked: Whether damage must be noticed: a store's files and checkpoints carry digests. What people write and
            record is read as it is, so that other values may come of it.
    """

    name: str
    find: Callable[[Place], list[Path]]
    changes: tuple[Change, ...]
    readers: tuple[str, ...]
    is_checked: bool = True


READERS: dict[str, Reader] = {
    "train": readers.train,
    "train raw": readers.train_raw,
    "ShardedEmbeddings": readers.embeddings,
    "stream": readers.stream,
    "weights": readers.weights,
    "inspect": readers.inspect(),
    "inspect --json": readers.inspect("--json"),
    "inspect --verify": readers.inspect("--verify"),
    "inspect --key": readers.inspect("--key", "tr_001"),
    "inspect --against": readers.inspect("--against", "CONFIG"),
    "inspect --recheck": readers.inspect("--against", "CONFIG", "--recheck", "4", "--device", "cpu"),
    "inspect --export_embeddings": readers.inspect("--export_embeddings", "OUT"),
    "inspect --plot": readers.inspect("--plot", "OUT.png", "--key", "tr_001"),
    "inspect tars": readers.inspect_foreign,
    "reindex": readers.reindex,
    "build": readers.build(splits=ALL),
    "build --dry_run": readers.build("--dry_run"),
    "build --check": readers.build("--check"),
    "build --overwrite": readers.build("--overwrite", splits=ALL),
    "build --retry_failed": readers.build("--retry_failed", "--verify_sources", splits=ALL),
    "build --compact": readers.build("--compact"),
    "build --abandon": readers.build("--abandon"),
    "build anew": readers.build(into="anew", splits=ALL),
    "build with audio": readers.build("--audio", "embed", into="anew", splits=ALL),
    "import": readers.build("--import_embeddings", "--data_split", "train", into="anew", splits=ALL[:1]),
    "resume": readers.resume,
}
WRITERS = ("reindex", "build", "import", "resume")
"""How readers begin that may change a store."""
_QUICK = ("train", "ShardedEmbeddings", "inspect", "inspect --json", "inspect --verify", "inspect --key")
_ON_STORES = (
    *("train", "ShardedEmbeddings", "train", "ShardedEmbeddings", "build", "build --compact", "build --dry_run"),
    *("inspect", "inspect --json", "inspect --verify", "inspect --verify", "inspect --key", "inspect --against"),
    *("inspect --recheck", "inspect --export_embeddings", "reindex", "build --overwrite", "build --retry_failed"),
    *("build --check", "build --abandon"),
)
_STORED = ("full", "full", "int8", "partial", "pending")


def _in_stores(pattern: str) -> Callable[[Place], list[Path]]:
    return lambda place: [path for store in _STORED for path in sorted(place.store(store).glob(pattern))]


def _below(folder: str, pattern: str) -> Callable[[Place], list[Path]]:
    return lambda place: sorted((place.root / folder).rglob(pattern))


def _own_names(place: Place) -> list[Path]:
    """What builds make beside shards."""
    return [place.store(store) / name for store in _STORED for name in (".lock", ".locked", "logs", "README.md")]


def _folders(place: Place) -> list[Path]:
    return [place.store(store) for store in _STORED]


_WRITING = ("build", "build --compact", "build --overwrite", "build --abandon", "build --retry_failed")
_OWN_TARS = (*archives.TARS, *(damage.flip_bit,) * 4)
KINDS: dict[Kind, int] = {
    Kind("store.json", _in_stores("store.json"), documents.JSON, _ON_STORES): 14,
    Kind("plan", _in_stores("plan-*"), tables.TABLES, _ON_STORES): 14,
    Kind("index", _in_stores("*-*.index"), tables.TABLES, _ON_STORES): 14,
    Kind("merged index", _in_stores("[tv]*[!0-9].index"), tables.TABLES, _ON_STORES): 8,
    Kind("tar", _in_stores("*.tar"), _OWN_TARS, _ON_STORES): 14,
    Kind("card", _in_stores("README.md"), (documents.write_otherwise,), ("build", "inspect", "build --compact")): 1,
    Kind(
        *("config", _below("corpus", "config.yml"), documents.YAML),
        ("train", "build", "build --check", "inspect --against", "build anew", "build --dry_run"),
        is_checked=False,
    ): 10,
    Kind(
        *("list", _below("corpus", "*.json"), documents.JSON),
        ("train", "train raw", "build --check", "inspect --against", "build anew", "build"),
        is_checked=False,
    ): 8,
    Kind(
        *("mouth", _below("corpus/mouths", "??_???.npz"), archives.ZIPS),
        ("train raw", "build anew", "build --check", "build --retry_failed", "inspect --recheck"),
        is_checked=False,
    ): 8,
    Kind(
        *("wav", _below("corpus/audio", "*.wav"), archives.WAVS),
        ("train", "train raw", "build with audio", "build --check", "inspect --plot"),
        is_checked=False,
    ): 6,
    Kind(
        *("embedding npz", _below("corpus/mouths", "*_embedding.npz"), archives.ZIPS),
        ("import",),
        is_checked=False,
    ): 3,
    Kind("checkpoint", _below("here", "last.ckpt"), archives.ZIPS, ("resume",)): 2,
    Kind("best_model.pth", _below("here", "best_model.pth"), archives.ZIPS, ("weights",)): 4,
    Kind(
        *("foreign tar", _below("foreign", "*.tar"), archives.TARS),
        ("stream", "stream", "inspect tars"),
        is_checked=False,
    ): 8,
    Kind("own name", _own_names, (), _WRITING, is_checked=False): 2,
    Kind("files of others", _folders, (), (*_WRITING, "reindex", "train")): 2,
}
"""Each kind, and how often it is chosen."""


_FORGED_TABLES = tuple(forge.forging(change) for change in tables.TABLES)
FORGED: dict[str, tuple[Change, ...]] = {
    "store.json": (forge.forge_record,),
    "plan": (),
    "index": _FORGED_TABLES,
    "merged index": _FORGED_TABLES,
}
"""Files that carry digests, and changes after which those are right."""


class Case(NamedTuple):
    """A case: what is done to which files, and who reads."""

    kind: Kind
    files: tuple[Path, ...]
    what: str
    do: Callable[[], None]
    reader: str
    store: str
    is_checked: bool
    is_forged: bool


class Outcome(NamedTuple):
    """What came of a case.

    Attributes:
        word: One of ALLOWED, or a fault.
        sign: What tells this fault from others: cases of one cause have one sign, as a rule.
        detail: Message, traceback or names.
    """

    word: str
    sign: str = ""
    detail: str = ""


def choose(place: Place, seed: int, number: int) -> Case:
    """The case of a number: the same for the same place."""
    chance = random.Random(f"{seed} {number}")
    kind = chance.choices(list(KINDS), weights=list(KINDS.values()))[0]
    files = kind.find(place)
    assert files, f"the place has no {kind.name}"
    path = chance.choice(files)
    reader = chance.choice(kind.readers)
    inside = path.relative_to(place.root).parts[0]
    store = inside if inside in _STORED else "full"
    if reader == "build --abandon" or (reader.startswith("build") and inside not in _STORED and chance.random() < 0.3):
        store = "pending" if reader == "build --abandon" and inside not in _STORED else store
    way = chance.random()
    others = [other for other in files if other != path]
    checked = kind.is_checked

    def case(what: str, do: Callable[[], None], files: tuple[Path, ...] = (path,)) -> Case:
        return Case(kind, files, what, do, reader, store, checked, what.startswith("forge"))

    if kind.name == "files of others":
        return case("put there", lambda: damage.put_others(path))
    if way < 0.05 or not kind.changes:
        checked = checked and kind.name != "index"  # without one its shard is not complete, as any build leaves it
        put = chance.choice(damage.ABSENT + damage.ELSE)
        return case(put.__name__, lambda: put(path, place.victim))
    if way < 0.15 and others:
        other = chance.choice(others)
        checked = checked and kind.name != "store.json"  # an older record of a store is one, too
        if chance.random() < 0.5:
            content = other.read_bytes()
            return case(f"copy of {other.name}", lambda: _write(path, content))
        return case(f"exchanged with {other.name}", lambda: _exchange(path, other), (path, other))
    if way < 0.3 and kind.name in FORGED:
        checked = False
        if kind.name == "plan":
            change = chance.choice(tables.TABLES)
            return case(f"forge {change.__name__}", forge.forge_plan(chance, path, change))
        change = chance.choice(FORGED[kind.name])
        content = change(chance, path.read_bytes())
        return case(change.__name__, lambda: _write(path, content))
    change = chance.choice(kind.changes if way < 0.6 else damage.GENERAL)
    checked = checked and not (change is archives.edit_member and kind.changes is archives.ZIPS)  # a user's own file
    content = change(chance, path.read_bytes())
    return case(change.__name__, lambda: _write(path, content))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _exchange(one: Path, other: Path) -> None:
    contents = one.read_bytes(), other.read_bytes()
    _write(one, contents[1])
    _write(other, contents[0])


def run(place: Place, case: Case, expected: Seen) -> Outcome:
    """Damage, read, judge, and undo everything."""
    case.do()
    try:
        found = READERS[case.reader](place, case.store)
    except FeatureStoreError as error:
        outcome = _refused(case, f"{readers.heard.getvalue()}{error}")
    except MemoryError:
        outcome = Outcome("memory", _frame(), traceback.format_exc())
    except Exception as error:
        outcome = Outcome("foreign", f"{type(error).__name__} at {_frame()}", traceback.format_exc())
    else:
        outcome = judge(case, found, expected)
    lost = damage.lost_of_others(case.files[0]) if case.kind.name == "files of others" else []
    changed = place.restore()
    allowed = {str(path.relative_to(place.root)) for path in case.files}
    if case.is_forged:
        changed = [name for name in changed if not name.startswith(f"{case.store}/") or "/.tmp-" in name]
    writes = case.reader.startswith(WRITERS)
    free = ("cache/", "out/", "here/", *([f"{case.store}/", "anew"] if writes else []))
    outside = [name for name in changed if name not in allowed and not name.startswith(free)]
    outside = [name for name in outside if not (name.endswith("/.lock") or "/logs/" in name)]
    left = [name for name in changed if "/.tmp-" in name or name.endswith(".partial")]
    if lost:
        return Outcome("lost of others", case.reader, ", ".join(lost))
    if case.kind.name == "files of others":
        outside = [name for name in outside if Path(name).name not in damage.OF_OTHERS]
        left = [name for name in left if Path(name).name not in damage.OF_OTHERS]
    if outside:
        return Outcome("outside", case.reader, ", ".join(outside))
    if left and outcome.word in ALLOWED:
        return Outcome("leftover", case.reader, ", ".join(left))
    return outcome


def judge(case: Case, found: Seen, expected: Seen) -> Outcome:
    """What a reader that ended by itself saw, beside what it sees in an undamaged place."""
    if found.is_shown and (escape := _OBEYED.search(found.text)):
        return Outcome("escape", case.reader, repr(found.text[max(escape.start() - 200, 0) : escape.end() + 50]))
    if "Traceback (most recent" in found.text:
        return Outcome("traceback", _last_frame(found.text), found.text)
    if case.is_forged:
        return Outcome("not checked")
    if wrong := [name for name, value in found.values.items() if not np.isfinite(value).all()]:
        return Outcome("not finite", case.reader, str(wrong[:3]))
    if not case.is_checked:
        return Outcome("not checked") if found.code in (0, 1, 3, expected.code) else _refused(case, found.text)
    wrong = [
        name
        for name, value in found.values.items()
        if name not in expected.values or _differs(value, expected.values[name])
    ]
    if wrong:
        return Outcome("other data", case.reader, f"code {found.code}: {wrong[:3]}\n{found.text[-1500:]}")
    lost = [name for name in expected.values if name not in found.values]
    if found.code == expected.code and not lost:
        if not case.reader.startswith("inspect") or _names(case, found.text):
            return Outcome("equal")
        lines = _difference(expected, found)
        if any(line[0] == "+" and re.search(r"\d of \d|^. Problems \(", line) for line in lines):
            return Outcome("listed")
        if not lines:
            return Outcome("equal")
        return Outcome("other text", case.reader, "\n".join(lines))
    if found.code in (0, 1, 3):
        unlisted = [name for name in lost if str(name[-1]) not in found.text]
        if not unlisted or _names(case, found.text):
            return Outcome("listed")
        return Outcome("lost", case.reader, f"code {found.code}: {unlisted[:3]}\n{found.text[-1500:]}")
    return _refused(case, found.text)


_OBEYED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\x1b(?!\\[A)")
"""What a terminal would obey, but for the line up of a progress bar."""


def _refused(case: Case, text: str) -> Outcome:
    if case.is_forged and case.store in text:
        return Outcome("refused")
    if _names(case, text):
        return Outcome("refused", detail=text[-300:])
    return Outcome("unnamed", f"{case.reader}: {_gist(text)}", text[-1500:])


def _names(case: Case, text: str) -> bool:
    """Whether a text names one of the damaged files.

    The store will do for store.json, and where something else lies in the place of a file. Of a config or a list the
    file will do that it leads to.
    """
    if case.kind.name == "config":
        return True  # its values are named by the keys that lead there, too
    names = {name for path in case.files for name in (path.name, path.stem)}
    is_of_store = case.kind.name == "store.json" or case.what.startswith("put_")
    names |= {str(path.parent) for path in case.files if is_of_store}
    names |= {"/corpus/"} if case.kind.name == "list" else set()
    return any(name in text for name in names)


def _difference(expected: Seen, found: Seen) -> list[str]:
    """Lines that one text has and the other has not."""
    lines = difflib.ndiff(_shown(expected).split("\n"), _shown(found).split("\n"))
    return [line for line in lines if line[0] in "+-" and line[2:].strip()]


def _shown(seen: Seen) -> str:
    """A text without progress bars, times and figures that differ in the last digits."""
    lines = [line for line in re.split("[\r\n]", seen.text) if "%|" not in line]
    return re.sub(r"\d\d:\d\d:\d\d|\d+\.\d+ s\b|\S*e-\d\d|\x1b\[A", "", "\n".join(lines))


def _differs(value: Any, other: Any) -> bool:
    return value.shape != other.shape or not np.allclose(value, other, atol=0.01)


def _frame() -> str:
    return _last_frame(traceback.format_exc())


def _last_frame(text: str) -> str:
    """The innermost line of our packages in a traceback."""
    found = re.findall(r'File "\S*?/((?:shardwriter|loaders|iianet|iianet_cli)/\S+?)", line (\d+)', text)
    return ":".join(found[-1]) if found else "nowhere"


def _gist(text: str) -> str:
    """The last line of a message without names and numbers."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return re.sub(r"\S*/\S+|\d+|'[^']*'", "_", lines[-1])[:90] if lines else "nothing"
