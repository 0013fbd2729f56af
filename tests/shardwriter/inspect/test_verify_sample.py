"""Each member of a sample is compared with its index and with what the store is."""

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers.foreign_tars import npy

from shardwriter.format.index import INDEX_SCHEMA, MEMBER_COLUMNS, Entry
from shardwriter.format.record import Identity
from shardwriter.inspect.verify_shard import verify_sample

IDENTITY = Identity(dtype="int8", dim=6, fps=25, audio="embed")
FRAMES = 4
AUDIO = [{"num_samples": 10}, {"num_samples": 7}]
"""Each brings a source and a mixture."""
SOUND: Mapping[str, Any] = {
    "embedding.npy": np.ones((6, FRAMES), dtype=np.int8),
    "scale.npy": np.ones(6, dtype=np.float32),
    "json": {"frames": FRAMES, "fps": 25, "audio": AUDIO},
    "audio.npy": np.ones(34, dtype=np.int16),
}


def content(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, np.ndarray):
        return json.dumps(value).encode()
    stream = io.BytesIO()
    np.save(stream, value)
    return stream.getvalue()


def problems(members: Mapping[str, Any], identity: Identity = IDENTITY, cut: int = 0) -> list[str]:
    """Lay members into a file one after the other, without its last bytes, and verify them."""
    row: dict[str, Any] = dict.fromkeys(INDEX_SCHEMA.names)
    tar = io.BytesIO()
    for name, value in members.items():
        header = tarfile.TarInfo(f"gus.{name}")
        header.size = len(content(value))
        tar.write(header.tobuf(tarfile.USTAR_FORMAT))
        row[f"{MEMBER_COLUMNS[name]}_offset"] = tar.tell()
        row[f"{MEMBER_COLUMNS[name]}_length"] = tar.write(content(value))
    tar.truncate(tar.tell() - cut)
    entry = Entry(split="val", shard="val-0123456789-000000", **row | {"key": "gus", "frames": FRAMES})
    start = "val-0123456789-000000.tar: gus: "
    found = verify_sample(tar, entry, identity)
    assert all(problem.startswith(start) for problem in found)
    return [problem.removeprefix(start) for problem in found]


def test_a_sound_sample_has_no_problems() -> None:
    assert problems(SOUND) == []


def scaled(value: float) -> npt.NDArray[np.float32]:
    scale = np.ones(6, dtype=np.float32)
    scale[2] = value
    return scale


DAMAGE: list[tuple[str, Any, str]] = [
    ("embedding.npy", np.ones((6, 5), dtype=np.int8), "is (6, 5) int8; expected (6, 4) int8"),
    ("embedding.npy", np.ones((6, 4), dtype=np.float16), "is (6, 4) float16; expected (6, 4) int8"),
    ("scale.npy", np.ones((6, 1), dtype=np.float32), "is (6, 1) float32; expected (6,) float32"),
    ("scale.npy", np.ones(6), "is (6,) float64; expected (6,) float32"),
    ("scale.npy", scaled(np.nan), "has 1 values that are not finite"),
    ("scale.npy", scaled(0), "has 1 values that are not above 0"),
    ("json", {"frames": 9, "fps": 25, "audio": AUDIO}, "says frames 9; expected 4"),
    ("json", {"frames": 4, "fps": 30, "audio": AUDIO}, "says fps 30; expected 25"),
    ("audio.npy", np.ones((34, 1), dtype=np.int16), "is (34, 1) int16; expected 1 axis of int16, int32, float32"),
    ("audio.npy", np.ones(34), "is (34,) float64; expected 1 axis of int16, int32, float32"),
    ("audio.npy", np.ones(33, dtype=np.int32), "has 33 samples; expected 34, the sources and mixtures that json lists"),
    ("audio.npy", np.full(34, np.inf, dtype=np.float32), "has 34 values that are not finite"),
]


@pytest.mark.parametrize(("member", "value", "problem"), DAMAGE)
def test_a_member_that_is_not_as_it_should_be_is_found(member: str, value: Any, problem: str) -> None:
    assert problems({**SOUND, member: value}) == [f"{member}: {problem}"]


EMBEDDING = np.arange(6 * FRAMES, dtype=np.int8).reshape(6, FRAMES)
LAYOUTS = {
    "column by column": content(np.asfortranarray(EMBEDDING)),
    "version 2": npy(EMBEDDING, version=(2, 0)),
    "values further on": content(EMBEDDING)[:8] + (182).to_bytes(2, "little") + b" " * 64 + content(EMBEDDING)[10:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_embedding_that_readers_would_misread_is_found(layout: str) -> None:
    """They take the values from a fixed distance, row by row; NumPy reads all of these."""
    np.testing.assert_array_equal(np.load(io.BytesIO(LAYOUTS[layout])), EMBEDDING)
    found = problems({**SOUND, "embedding.npy": LAYOUTS[layout]})
    assert found == ["embedding.npy: an npy of another layout than stores have"]


@pytest.mark.parametrize("metadata", [{}, {"audio": [{}]}, {"audio": [{"num_samples": "many"}]}, {"audio": 3}])
def test_audio_of_unknown_length_is_found(metadata: dict[str, Any]) -> None:
    [problem] = problems({**SOUND, "json": metadata})
    assert problem == "audio.npy: has 34 samples, but json does not say how many there should be"


def test_a_member_that_is_cut_is_found() -> None:
    [problem] = problems(SOUND, cut=1)
    assert problem.startswith("audio.npy: the tar ends before byte")


def test_members_that_the_index_lacks_are_found() -> None:
    without = {name: value for name, value in SOUND.items() if name != "scale.npy"}
    assert problems(without) == [
        "its index lists embedding.npy, json, audio.npy; expected embedding.npy, scale.npy, json, audio.npy"
    ]


def test_members_that_the_store_should_not_have_are_found() -> None:
    [problem] = problems(SOUND, replace(IDENTITY, audio="path"))
    assert problem.endswith("json, audio.npy; expected embedding.npy, scale.npy, json")
