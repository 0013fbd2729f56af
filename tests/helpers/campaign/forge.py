"""Stores that somebody made to do harm: changed, and with right digests of what they then say.

What such a store holds may be anything. It may not end a command in a traceback, and not reach out of its folder.
"""

import io
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from helpers.campaign.damage import Change
from helpers.campaign.documents import change_value
from shardwriter.format.digest import digest_table
from shardwriter.format.table import add_digests

METADATA = b"iianet-shards"
DIGEST = "digest"


def forge_record(chance: random.Random, content: bytes) -> bytes:
    """A changed store.json with a right digest."""
    return seal_document(change_value(chance, json.loads(content)))


def forging(change: Change) -> Change:
    """A change of an index after which its digests are right again."""

    def forge(chance: random.Random, content: bytes) -> bytes:
        return seal_table(change(chance, content))

    forge.__name__ = f"forge {change.__name__}"
    return forge


def seal_document(document: Any) -> bytes:
    """A document as JSON, with a right digest where it had one."""
    return (json.dumps(_sealed(document), indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def seal_table(content: bytes) -> bytes:
    """A Parquet file whose facts have right digests again, where they had some."""
    try:
        table = pq.read_table(io.BytesIO(content))
        facts = json.loads((table.schema.metadata or {})[METADATA])
    except (pa.ArrowException, OSError, LookupError, ValueError, RecursionError):
        return content
    return _encode(table, facts)


def forge_plan(chance: random.Random, path: Path, change: Change) -> Callable[[], None]:
    """A changed plan under the name that its content gives it, in a store that names it so, and its shards too."""
    content = seal_table(change(chance, path.read_bytes()))

    def do() -> None:
        new = _identified(content)
        old = path.name.removeprefix("plan-").partition(".")[0]
        for file in sorted(path.parent.glob(f"*{old}*")):
            file.rename(file.with_name(file.name.replace(old, new[0])))
        path.with_name(f"plan-{new[0]}.parquet").write_bytes(new[1])
        for file in path.parent.glob("*.index"):
            table = pq.read_table(file)
            facts = (table.schema.metadata or {})[METADATA].decode().replace(old, new[0])
            file.write_bytes(_encode(table, json.loads(facts)))
        record = path.with_name("store.json")
        record.write_bytes(seal_document(json.loads(record.read_text().replace(old, new[0]))))

    return do


def _identified(content: bytes) -> tuple[str, bytes]:
    """The id that a plan's content gives it, and the content with that id."""
    try:
        table = pq.read_table(io.BytesIO(content))
        facts = json.loads((table.schema.metadata or {})[METADATA])
        named = {name: value for name, value in facts.items() if name not in ("id", DIGEST, "version", "num_rows")}
        plan_id = digest_facts(named)[:10]
        return plan_id, _encode(table, {**facts, "id": plan_id})
    except (pa.ArrowException, OSError, LookupError, ValueError, RecursionError, AttributeError, TypeError):
        return "0" * 10, content


def _encode(table: pa.Table, facts: Any) -> bytes:
    if isinstance(facts, dict) and isinstance(facts.get("columns"), dict):
        facts["columns"] = {name: digest_table(table.select([name])) for name in dict.fromkeys(table.schema.names)}
    sealed = json.dumps(_sealed(facts)).encode()
    buffer = io.BytesIO()
    described = table.replace_schema_metadata({METADATA: sealed})
    pq.write_table(described, buffer, compression="zstd", use_dictionary=False, write_page_checksum=True)
    return add_digests(buffer.getvalue())


def _sealed(document: Any) -> Any:
    if not isinstance(document, dict) or DIGEST not in document:
        return document
    facts = {name: value for name, value in document.items() if name != DIGEST}
    return {**facts, DIGEST: digest_facts(facts)}


def digest_facts(facts: Mapping[str, Any]) -> str:
    """Digest of facts, as the format has it: of their JSON with sorted names and no blanks."""
    content = json.dumps(facts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(content.encode("utf-8", "surrogatepass"))
