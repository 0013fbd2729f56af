"""Which clips are encoded together: so many, and fewer where they are long."""

from typing import Any

import numpy as np
import pytest

from shardwriter.encode import encoded
from shardwriter.encode.clips import Clip
from shardwriter.encode.encoded import packs
from shardwriter.format.sample import Failed, Source


def clip(frames: int) -> Clip:
    return Clip(source=Source(mouth="a.npz"), frames=np.zeros((frames, 1, 1), np.uint8))


def lengths(read: list[Clip | Failed], batch_size: int) -> list[list[int]]:
    """Frames of each clip of each pack; 0 for what could not be read."""
    rows: list[tuple[dict[str, Any], Clip | Failed]] = [({"key": str(number)}, one) for number, one in enumerate(read)]
    found = list(packs(iter(rows), batch_size))
    assert [row["key"] for pack in found for row, _ in pack] == [row["key"] for row, _ in rows]
    return [[len(one.frames) if isinstance(one, Clip) else 0 for _, one in pack] for pack in found]


def test_a_pack_has_as_many_clips_as_asked_for_and_the_last_what_is_left() -> None:
    assert lengths([clip(frames) for frames in (5, 1, 7, 2, 3)], 2) == [[5, 1], [7, 2], [3]]
    assert lengths([], 2) == []


def test_long_clips_do_not_meet_in_one_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "MOST_FRAMES", 10)
    failed = Failed(reason="gone", source=Source(mouth="b.npz"))
    assert lengths([clip(3), clip(120), clip(9), failed, clip(2), clip(30), clip(1)], 4) == [
        [3, 120],
        [9, 0, 2],
        [30],
        [1],
    ]
