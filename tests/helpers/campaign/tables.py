"""Changes of Parquet files that leave them readable: values, columns, rows, and the facts in their metadata."""

import io
import json
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from helpers.campaign.damage import Change
from helpers.campaign.documents import HOSTILE, change_value


def edit_value(chance: random.Random, content: bytes) -> bytes:
    """Change one value of one column, to something of its type."""
    table = _read(content)
    place = chance.randrange(table.num_columns)
    column = table.column(place)
    values = column.to_pylist()
    if not values:
        return edit_facts(chance, content)
    row = chance.randrange(len(values))
    kind = chance.randrange(3)
    if kind == 0:
        values[row] = chance.choice(values)
    elif pa.types.is_integer(column.type):
        old = values[row] or 0
        values[row] = chance.choice([0, -1, 1, old + 1, old - 1, old + 512, old * 2, 2**31 - 1, None])
    elif pa.types.is_string(column.type):
        old = values[row] or ""
        values[row] = chance.choice([v for v in HOSTILE if isinstance(v, str) and v != "\ud800"] + [old + "x", None])
    elif values[row]:
        values[row] = change_value(chance, values[row])
    return _write_values(table, place, values, content)


def exchange_values(chance: random.Random, content: bytes) -> bytes:
    """Exchange two values of a column."""
    table = _read(content)
    place = chance.randrange(table.num_columns)
    values = table.column(place).to_pylist()
    if len(values) < 2:
        return edit_facts(chance, content)
    one, other = chance.sample(range(len(values)), 2)
    values[one], values[other] = values[other], values[one]
    return _write_values(table, place, values, content)


def change_rows(chance: random.Random, content: bytes) -> bytes:
    """Drop, repeat or reorder rows."""
    table = _read(content)
    rows = list(range(len(table)))
    kind = chance.randrange(4)
    if kind == 0 and rows:
        del rows[chance.randrange(len(rows))]
    elif kind == 1 and rows:
        rows.append(chance.choice(rows))
    elif kind == 2:
        chance.shuffle(rows)
    else:
        rows = []
    return _write(table.take(pa.array(rows, pa.int64())))


def change_columns(chance: random.Random, content: bytes) -> bytes:
    """Drop, rename, repeat, retype or reorder columns."""
    table = _read(content)
    place = chance.randrange(table.num_columns)
    name = table.column_names[place]
    kind = chance.randrange(5)
    if kind == 0:
        return _write(table.remove_column(place))
    if kind == 1:
        return _write(table.rename_columns([*table.column_names[:place], "other", *table.column_names[place + 1 :]]))
    if kind == 2:
        return _write(table.append_column(chance.choice(["extra", name]), table.column(place)))
    if kind == 3:
        column = pa.array([str(value) for value in table.column(place).to_pylist()])
        return _write(table.set_column(place, name, column))
    names = list(table.column_names)
    chance.shuffle(names)
    return _write(table.select(names))


def edit_facts(chance: random.Random, content: bytes) -> bytes:
    """Change the JSON that lies in the metadata."""
    table = _read(content)
    facts = {key: value for key, value in (table.schema.metadata or {}).items() if not key.startswith(b"ARROW")}
    if not facts:
        return change_rows(chance, content)
    name = chance.choice(sorted(facts))
    kind = chance.randrange(6)
    if kind == 0:
        del facts[name]
    elif kind == 1:
        facts[name] = b"[" * chance.choice([10, 100_000])
    else:
        try:
            facts[name] = json.dumps(change_value(chance, json.loads(facts[name]))).encode()
        except ValueError:
            facts[name] = facts[name][::-1]
    return _write(table.replace_schema_metadata(facts))


def claim_rows(chance: random.Random, content: bytes) -> bytes:
    """A few kilobytes that stand for very many rows."""
    table = _read(content)
    count = chance.choice([10**5, 10**6])
    schema = table.schema
    columns = [pa.nulls(count, field.type) if field.nullable else _repeated(field, count) for field in schema]
    return _write(pa.table(columns, schema=schema))


def _repeated(field: pa.Field, count: int) -> pa.Array:
    value: Any = [] if pa.types.is_list(field.type) else "a" if pa.types.is_string(field.type) else 0
    return pa.repeat(pa.scalar(value, field.type), count)


TABLES: tuple[Change, ...] = (
    *(edit_value,) * 8,
    *(exchange_values,) * 4,
    *(change_rows,) * 4,
    *(change_columns,) * 3,
    *(edit_facts,) * 7,
    claim_rows,
)


def _read(content: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(content))


def _write(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def _write_values(table: pa.Table, place: int, values: list[Any], content: bytes) -> bytes:
    field = table.schema.field(place)
    try:
        column = pa.array(values, field.type)
        schema = table.schema.set(place, field.with_nullable(field.nullable or column.null_count > 0))
        changed = table.cast(schema).set_column(place, schema.field(place), column)
        return _write(changed.replace_schema_metadata(table.schema.metadata))
    except (pa.ArrowException, UnicodeEncodeError, TypeError, OverflowError):
        return content[:-20] + content[-8:]  # no such value fits: the footer is cut
