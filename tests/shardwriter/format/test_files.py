"""Files that appear whole or not at all."""

from pathlib import Path

import pytest

from shardwriter.format.files import atomic_file


def test_atomic_file_leaves_the_old_content_when_writing_raises(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file", b"old")]
