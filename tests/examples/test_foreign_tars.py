"""A store of tars that others made."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers.builds import opened, stored
from helpers.corpus import make_corpus
from helpers.foreign_tars import embedding, npy, traps, write_tar
from helpers.inspection import run

from examples.foreign_tars import main, samples
from iianet.errors import StoreError
from loaders.matching import refuse_other_encoder
from shardwriter.format.names import escape_key

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("sub/a", "ü" * 30, "c")
"""Of samples: in a folder, longer than USTAR has room for, and plain."""


def theirs(path: Path, names: tuple[str, ...] = NAMES, start: int = 0, **others: bytes) -> Path:
    """A tar as others write it: PAX headers, embeddings of `(frames, dim)`, and members that are of no use here."""
    members: dict[str, bytes] = {}
    for number, name in enumerate(names, start):
        members[f"{name}.jpg"] = b"\xff\xd8"
        members[f"{name}.lips.npy"] = npy(embedding(number).T)
        members[f"{name}.json"] = json.dumps({"speaker": number}).encode()
        members |= {f"{name}.{kind}": content for kind, content in others.items()}
    return write_tar(path, members, format=tarfile.PAX_FORMAT)


def test_every_sample_of_theirs_is_in_the_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(tmp_path / "store")
    main(store, "train", str(theirs(tmp_path / "a-0.tar")), str(theirs(tmp_path / "a-1.tar", ("d", "e"), start=3)))
    main(store, "val", str(theirs(tmp_path / "b.tar", ("f",), start=5)))
    assert "5 utterances in train" in capsys.readouterr().out
    found = stored(Path(store), "train") | stored(Path(store), "val")
    assert list(found) and found.keys() == {escape_key(name) for name in (*NAMES, "d", "e", "f")}
    for number, name in enumerate((*NAMES, "d", "e", "f")):
        np.testing.assert_array_equal(found[escape_key(name)], embedding(number))
    assert run(store, "--verify", "--key", "sub/a") == 0
    assert '"speaker": 0' in capsys.readouterr().out


def test_nothing_of_theirs_is_unpickled(tmp_path: Path) -> None:
    trap, objects = traps(tmp_path / "unpickled")
    assert len(list(samples([str(theirs(tmp_path / "a.tar", pyd=trap, pth=trap))]))) == len(NAMES)
    write_tar(tmp_path / "b.tar", {"a.lips.npy": objects, "a.json": b"{}"})
    with pytest.raises(ValueError, match="allow_pickle"):
        list(samples([str(tmp_path / "b.tar")]))
    assert not (tmp_path / "unpickled").exists()


def test_no_command_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        list(samples([f"pipe:touch {tmp_path}/ran"]))
    theirs(tmp_path / "pipe:touch ran")  # a file after all
    assert len(list(samples(["pipe:touch ran"]))) == len(NAMES)
    assert not (tmp_path / "ran").exists()


def test_training_takes_it_when_it_is_trusted(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"a.lips.npy": npy(embedding(0, dim=512).T), "a.json": b"{}"})
    main(str(tmp_path / "store"), "train", str(tar))
    snapshot, source = opened(tmp_path / "store"), make_corpus(tmp_path / "corpus").config().encoder_source()
    with pytest.raises(StoreError, match="--trust_imported"):
        refuse_other_encoder(snapshot, source)
    refuse_other_encoder(snapshot, source, trust_imported=True)


def test_it_runs_as_its_docstring_says(tmp_path: Path) -> None:
    theirs(tmp_path / "train-0.tar")
    done = subprocess.run(
        [sys.executable, ROOT / "examples/foreign_tars.py", "STORE", "train", "train-0.tar"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "STORE: 3 utterances in train\n"
    assert len(stored(tmp_path / "STORE", "train")) == 3
