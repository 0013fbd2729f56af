"""Places in a configuration: which keys a schema has, and how a key's place is spelled."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

KeyPath = tuple[str, ...]
"""A key and the sections it is in, outermost first."""
Place = tuple[str | int, ...]
"""A key path that may continue into the items of a list."""


def dotted(place: Iterable[str | int]) -> str:
    """A place as errors and overrides spell it, such as `training.gpus[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def known_paths(schema: type[BaseModel]) -> dict[KeyPath, FieldInfo]:
    """Every key that a schema has, sections included."""
    paths: dict[KeyPath, FieldInfo] = {}
    for name, field in schema.model_fields.items():
        paths[(name,)] = field
        section = section_of(field)
        if section is not None:
            paths.update({(name, *rest): inner for rest, inner in known_paths(section).items()})
    return paths


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The schema of the section that a field holds, None where it holds a value."""
    kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
    sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return sections[0] if sections else None


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of nested mappings by dotted key; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        is_inner = isinstance(value, dict) and value
        found |= flattened(value, f"{prefix}{name}.") if is_inner else {f"{prefix}{name}": value}
    return found
