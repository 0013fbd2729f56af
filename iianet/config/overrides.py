"""Single values set over a config file: `dotted.path=value`, with the value in YAML."""

from dataclasses import dataclass
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from iianet.config.document import parse
from iianet.config.key_paths import KeyPath, dotted, known_paths, section_of
from iianet.errors import ConfigError
from iianet.wording import did_you_mean, either, nearest, show


@dataclass(frozen=True, kw_only=True)
class Override:
    """One value set over a config file."""

    text: str
    """As it was given, for errors."""
    path: KeyPath
    value: Any


def parse_override(text: str, schema: type[BaseModel]) -> Override:
    """Read one override.

    Args:
        text: `dotted.path=value`.
        schema: What the path is looked up in.

    Raises:
        ConfigError: It is malformed, or there is no such key.
    """
    name, equals, value = text.partition("=")
    path = tuple(part.strip() for part in name.split("."))
    if not equals or not all(path) or not value.strip():
        cure = "; write null for no value" if equals and all(path) else ""
        raise ConfigError(f"override {text!r}: expected key=value, such as training.epochs=10{cure}")
    known = known_paths(schema)
    if path not in known and not _is_open(path, known):
        raise ConfigError(f"override {text!r}: there is no key {dotted(path)}{_meant(path, known)}")
    return Override(text=text, path=path, value=parse(value, f"override {text!r}")[0])


def _is_open(path: KeyPath, known: dict[KeyPath, FieldInfo]) -> bool:
    """Whether a path leads into a mapping of any keys; whoever validates that mapping judges them."""
    for end in range(1, len(path)):
        field = known.get(path[:end])
        if field is None:
            return False
        section = section_of(field)
        if get_origin(field.annotation) is dict or (section and section.model_config.get("extra") == "allow"):
            return True
    return False


def _meant(path: KeyPath, known: dict[KeyPath, FieldInfo]) -> str:
    """The keys of that name elsewhere, else the key whose path is most like the given one."""
    elsewhere = [dotted(other) for other in known if other[-len(path) :] == path]
    if elsewhere:
        return f"; did you mean {either(elsewhere)}?"
    near = nearest(dotted(path), map(dotted, known))
    return f"; did you mean {near}?" if near else did_you_mean(path[0], (other[0] for other in known))


def apply_override(values: dict[str, Any], override: Override, schema: type[BaseModel]) -> dict[str, Any]:
    """Set the value in a copy of a config file's mapping.

    A section that the file leaves out is set over its default, which may hold more than the defaults of its keys.

    Raises:
        ConfigError: The file holds something else than a mapping where the path leads through.
    """
    section = override.path[0]
    default = schema.model_fields[section].get_default(call_default_factory=True, validated_data={})
    if section not in values and isinstance(default, BaseModel):
        values = {**values, section: default.model_dump()}
    return _with_value(values, override, depth=0)


def _with_value(values: dict[str, Any], override: Override, depth: int) -> dict[str, Any]:
    """A copy with the value set at the rest of the override's path; what is not on the path is shared."""
    key = override.path[depth]
    if depth == len(override.path) - 1:
        return {**values, key: override.value}
    inner = values.get(key)
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        place = dotted(override.path[: depth + 1])
        raise ConfigError(f"override {override.text!r}: the file has {place} {show(inner)}, expected a mapping")
    return {**values, key: _with_value(inner, override, depth + 1)}
