"""A config file as it is: its values, and the lines of its keys.

Unlike in PyYAML, a key that appears twice in a mapping is an error, text that looks like a date stays text, what YAML
1.1 reads as something else than it looks like is refused, and so is what grows or nests beyond all configs.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from iianet.config.key_paths import Place
from iianet.config.published import USUAL_FOLDERS, published_configs
from iianet.errors import ConfigError
from iianet.regular_file import content_of
from iianet.wording import nearest, show

MOST_BYTES = 2**18
"""Bytes of a config; the published ones have 2,000."""
MOST_NODES = 100_000
"""Values of a config, its aliases written out."""
MOST_LEVELS = 32
"""Mappings and lists that are nested in each other."""
TAG_PREFIX = "tag:yaml.org,2002:"
TIMESTAMP_TAG = f"{TAG_PREFIX}timestamp"
PLAIN_TAGS = ("!", *(f"{TAG_PREFIX}{kind}" for kind in ("str", "seq", "map")))
"""Tags that may be written out; others make types that no key has, or fail with errors of Python's own."""
_AS_BOOL = re.compile("yes|no|on|off", re.IGNORECASE)
_AS_NUMBER = re.compile(r"[-+]?0[0-7]+|.*[_:].*")
"""Octal without its o, 1_000, and 1:30, which is 90: of base 60."""


class StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader with bounds, that refuses duplicate keys and surprising scalars, and knows no dates."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._levels = 0
        self._nodes = 0
        self._sizes: dict[Node, int] = {}
        """Values that a whole node stands for."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own class attribute)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP_TAG]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Node | None:
        """Compose as PyYAML does, within the bounds of depth and size."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        before = self._nodes
        self._levels += 1
        tag: str | None = getattr(event, "tag", None)
        if tag is not None and tag not in PLAIN_TAGS:
            name = tag.replace(TAG_PREFIX, "!!")
            raise _marked(f"found the tag {name}; a config has plain values, so leave it out", event.start_mark)
        if self._levels > MOST_LEVELS:
            raise _marked(f"nested more than {MOST_LEVELS} deep, which no config is", event.start_mark)
        node: Node | None = super().compose_node(parent, index)
        self._levels -= 1
        if isinstance(event, AliasEvent) and node not in self._sizes:
            raise _marked(
                f"the alias {event.anchor} stands for a value that holds it; write the value out", event.start_mark
            )
        self._nodes += self._sizes[node] if isinstance(event, AliasEvent) and node is not None else 1
        if self._nodes > MOST_NODES:
            raise _marked(
                f"more than {MOST_NODES:,} values, with its aliases written out; a config has some hundred",
                event.start_mark,
            )
        if node is not None and node not in self._sizes:
            self._sizes[node] = self._nodes - before
        return node

    def compose_scalar_node(self, anchor: Any) -> ScalarNode:
        """Compose as PyYAML does, and refuse what is read as another value than it looks like."""
        node: ScalarNode = super().compose_scalar_node(anchor)
        if any(0xD800 <= ord(letter) < 0xE000 for letter in node.value):
            raise _marked("half of a character of UTF-16, which stands for none; write the whole", node.start_mark)
        kind, is_plain = node.tag.rpartition(":")[2], node.style is None
        if is_plain and kind == "bool" and _AS_BOOL.fullmatch(node.value):
            read = str(self.construct_yaml_bool(node)).lower()
            raise _marked(f"found {node.value}, which YAML 1.1 reads as {read}; {_cure(read)}", node.start_mark)
        if is_plain and kind in {"int", "float"} and _AS_NUMBER.fullmatch(node.value):
            read = str(self.construct_yaml_int(node) if kind == "int" else self.construct_yaml_float(node))
            text = f"found {node.value}, which YAML 1.1 reads as the number {read}; {_cure(read)}"
            raise _marked(text, node.start_mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """Compose as PyYAML does, then compare the keys: later, merges (`<<`) would look like duplicates."""
        node: MappingNode = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                continue  # construction refuses it
            name = (key.tag, key.value)
            if name in seen:
                raise _marked(f"{key.value} appears twice, first on line {seen[name]}; keep one", key.start_mark)
            seen[name] = key.start_mark.line + 1
        return node


def _cure(read: str) -> str:
    return f"write {read}, or quote it if it is meant as text"


def _marked(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A config file that was read: its top-level mapping, and the node tree it was made from."""

    values: dict[str, Any]
    root: Node

    def line(self, place: Place) -> int | None:
        """Line of a key, from 1; of the section it is in where the file does not have it."""
        node, line = self.root, None
        for part in place:
            step = _step(node, part)
            if step is None:
                break
            node, line = step
        return line


def _step(node: Node, part: str | int) -> tuple[Node, int] | None:
    """The value under a key or an index of a node, and the line where it begins."""
    if isinstance(node, MappingNode):
        for key, value in reversed(node.value):
            if key.value == str(part):
                return value, key.start_mark.line + 1
    if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part].start_mark.line + 1
    return None


def parse(text: str, where: str) -> tuple[Any, Node | None]:
    """Read YAML text.

    Args:
        text: One YAML document.
        where: What an error names as the text's place.

    Returns:
        The value and its node; both None where the text is empty.

    Raises:
        ConfigError: The syntax is wrong, or a key appears twice in a mapping.
    """
    try:
        loader = StrictLoader(text)
        try:
            node: Node | None = loader.get_single_node()
            return (None if node is None else loader.construct_document(node)), node
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: {_explain(error, text)}") from error


def _explain(error: Exception, text: str) -> str:
    """Place and cause of an error of PyYAML's, on one line."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        return place + ", ".join(part for part in (error.context, error.problem) if part)
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        return f"line {line}, column {column}: a character that YAML does not allow, {chr(error.character)!r}"
    return f"a value cannot be read, {error}; quote it if it is meant as text"


def read_document(path: Path) -> Document:
    """Read a config file.

    Raises:
        ConfigError: There is no such file, or it does not hold one YAML mapping.
    """
    try:
        text = content_of(path, MOST_BYTES)[0].decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file{_beside(path)}") from error
    except OSError as error:
        there = _in_folder(path / path.name) if path.is_dir() else ""
        raise ConfigError(f"{path}: cannot be read as a config: {error.strerror or error}{there}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read as a config, {error}; expected YAML in UTF-8") from error
    values, root = parse(text, str(path))
    if root is None or values is None:
        raise ConfigError(f"{path}: is empty, expected the sections of a config, as {_published()} have them")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found {show(values)}, expected a mapping with the sections of a config")
    return Document(values=values, root=root)


def _beside(path: Path) -> str:
    """What there is instead of a missing file: in its folder, and among the published configs."""
    return f"{_in_folder(path)} Found from any folder: {_published()}"


def _published() -> str:
    return ", ".join(published_configs()) or "no published config: they are missing from this installation"


def _in_folder(path: Path) -> str:
    """The file most like a missing one, else all configs of its folder."""
    if not path.parent.is_dir():
        return f", nor is there a folder {path.parent}."
    names = sorted(file.name for file in path.parent.iterdir() if file.suffix in {".yml", ".yaml"})
    near = nearest(path.name, [*names, *(published_configs() if path.parent in USUAL_FOLDERS else ())])
    if near is not None:
        return f"; did you mean {path.with_name(near) if near in names else near}?"
    return f"; {path.parent.absolute()} holds {', '.join(names) or 'no .yml files'}."
