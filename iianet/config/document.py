"""A config file as it is: its values, and the lines of its keys.

Unlike in PyYAML, a key that appears twice in a mapping is an error, and text that looks like a date stays text.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from iianet.config.key_paths import Place
from iianet.config.published import published_configs
from iianet.errors import ConfigError
from iianet.wording import nearest, show

TIMESTAMP_TAG = "tag:yaml.org,2002:timestamp"


class StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader that refuses duplicate keys and knows no dates."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own class attribute)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP_TAG]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """Compose as PyYAML does, then compare the keys: later, merges (`<<`) would look like duplicates."""
        node: MappingNode = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                continue  # construction refuses it
            name = (key.tag, key.value)
            if name in seen:
                problem = f"{key.value} appears twice, first on line {seen[name]}; keep one"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen[name] = key.start_mark.line + 1
        return node


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
    except (yaml.YAMLError, ValueError) as error:
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
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file{_beside(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a text file, {error}; expected YAML in UTF-8") from error
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
    near = nearest(path.name, names)
    if near is not None:
        return f"; did you mean {path.with_name(near)}?"
    return f"; {path.parent.absolute()} holds {', '.join(names) or 'no .yml files'}."
