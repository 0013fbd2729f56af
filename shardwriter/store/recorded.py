"""What is left to say of a store or of a sample when its plan is lost: store.json, older plans, the json members."""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from iianet.encoder.mouth import FPS
from iianet.errors import StoreError
from shardwriter.corpus.embedding_npz import embedding_path
from shardwriter.format.names import Identity, escape_key, plan_number, split_view_key, unescape_key
from shardwriter.format.plan import read_plan
from shardwriter.store.catalog import is_store, read_store_record
from shardwriter.store.identity import is_imported, is_reindexed

logger = logging.getLogger(__name__)

UNKNOWN_ENCODER: Mapping[str, Any] = {"name": "unknown", "imported": True, "reindexed": True, "fingerprint": None}
"""Of embeddings that nothing tells the encoder of; `imported` asks training for --trust_imported."""
AUDIO_FIELDS: Mapping[str, type] = {"mixture": str, "source": str, "speaker": int, "num_samples": int}


class Recorded(NamedTuple):
    """What a folder still says of its embeddings; None where it does not."""

    identity: Identity | None
    data_root: str | None


def read_recorded(folder: Path) -> Recorded:
    """Read store.json and whatever plans are there, whether they count or not.

    Raises:
        StoreError: They speak of different embeddings: then nothing tells which tars are which.
    """
    record = read_store_record(folder) if is_store(folder) else None
    identities = {"store.json": record.identity} if record else {}
    for path in sorted(folder.glob("plan-*.parquet")):
        if plan_number(path.name) is None:
            continue
        try:
            identities[path.name] = read_plan(folder, path.name).identity
        except StoreError as error:
            logger.warning("%s; it is left out", error)
    names = list(identities)
    for name in names[1:]:
        if identities[name] != identities[names[0]]:
            raise StoreError(
                f"{folder}: {names[0]} and {name} speak of embeddings that were made differently, so which tars are "
                f"whose cannot be told. Take away {name} and the shards that it lists, or write them with --into DIR."
            )
    return Recorded(identities[names[0]] if names else None, record.data_root if record else None)


def with_layout(identity: Identity | None, *, dtype: str, dim: int, fps: float, audio: str) -> Identity:
    """The identity of embeddings that lie as told, and were made as `identity` says, if it is known."""
    known = identity or Identity(encoder=UNKNOWN_ENCODER, dtype=dtype, dim=dim, fps=fps)
    return replace(known, dtype=dtype, dim=dim, fps=fps, audio=audio)


def fps_of(metadata: Mapping[str, Any]) -> float:
    """Frames per second as a sample's json tells them, IIANet's where it does not."""
    fps = metadata.get("fps", FPS)
    return fps if type(fps) in (int, float) and 0 < fps < math.inf else FPS


def parse_metadata(content: bytes) -> dict[str, Any]:
    """Read a json member. Raises ValueError where it is no JSON object."""
    try:
        metadata = json.loads(content, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"a {type(metadata).__name__}; expected an object")
    return metadata


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is none of JSON's values")


def audio_entries(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The `audio` list of a json member, without fields that are not ours; [] where it has none.

    Raises:
        ValueError: There is one, and it is not as stores write it.
    """
    entries = metadata.get("audio", [])
    if not isinstance(entries, list):
        raise ValueError(f"audio is a {type(entries).__name__}; expected a list")
    for entry in entries:
        if not isinstance(entry, dict) or any(type(entry.get(name)) is not kind for name, kind in AUDIO_FIELDS.items()):
            raise ValueError(f"audio has the entry {str(entry)[:100]}; expected {', '.join(AUDIO_FIELDS)}")
        if entry["speaker"] not in (1, 2) or entry["num_samples"] < 1:
            raise ValueError(f"audio has the entry {str(entry)[:100]}; expected speaker 1 or 2, and samples")
    return [{name: entry[name] for name in AUDIO_FIELDS} for entry in entries]


def utterance_name(key: str, metadata: Mapping[str, Any]) -> str:
    """The utterance of a store's own key."""
    base = split_view_key(key)[0]
    name = metadata.get("utterance")
    return name if isinstance(name, str) and escape_key(name) == base else unescape_key(base)


def plan_row(split: str, shard: str, key: str, utterance: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A sample's row of `PLAN_SCHEMA`. Raises ValueError where its audio list is none."""
    mouth = metadata.get("mouth")
    return {
        "split": split,
        "shard": shard,
        "key": key,
        "utterance": utterance,
        "mouth": mouth if isinstance(mouth, str) else "",
        "audio": audio_entries(metadata),
    }


def source_file(metadata: Mapping[str, Any], identity: Identity) -> str | None:
    """The file that `source_digest` is of: the mouth npz, or the embedding beside it that was imported."""
    mouth = metadata.get("mouth")
    if not isinstance(mouth, str) or not mouth:
        return None
    return embedding_path(mouth) if is_imported(identity) and not is_reindexed(identity) else mouth
