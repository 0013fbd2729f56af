"""Coverage-guided fuzzing of one parser, with atheris: from bytes come what they say, or an error of ours.

    make fuzz                                                     each parser for five minutes
    build/fuzz-venv/bin/python benchmarks/fuzz.py index [FOLDER] [-max_total_time=300 -max_len=8192 ...]
    build/fuzz-venv/bin/python benchmarks/fuzz.py index FILE      one input again

PARSER is npy, npz, tar, record, index, plan, lists or config. Inputs that cover something new are kept in FOLDER, by
default build/fuzz/PARSER, which starts with a few right ones; an input that fails is written to the working directory.
"""

import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "tests"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import atheris

with atheris.instrument_imports(include=["shardwriter", "iianet.config", "tarfile", "zipfile", "yaml", "json"]):
    from iianet.config.schema import load_config
    from shardwriter.corpus.lists import read_lists
    from shardwriter.corpus.mouth_npz import read_mouth_npz
    from shardwriter.format.index import decode_index
    from shardwriter.format.npy import read_npy
    from shardwriter.format.plan import decode_header, decode_plan
    from shardwriter.storage.folder import Folder
    from shardwriter.storage.tar_samples import read_samples
    from shardwriter.store.snapshot import read_record

from helpers.campaign.place import make_place

from iianet.errors import FeatureStoreError

SCRATCH = Path(tempfile.mkdtemp(prefix="fuzz-"))


def _file(name: str, content: bytes) -> Path:
    path = SCRATCH / name
    path.write_bytes(content)
    return path


def _plan(content: bytes) -> None:
    decode_header(io.BytesIO(content), "store/plan-0123456789.parquet")
    decode_plan(io.BytesIO(content), "store/plan-0123456789.parquet")


def _record(content: bytes) -> None:
    _file("store.json", content)
    read_record(Folder(SCRATCH))


def _lists(content: bytes) -> None:
    for name in ("mix", "s1", "s2"):
        _file(f"{name}.json", content)
    read_lists(SCRATCH)


PARSERS: dict[str, tuple[Callable[[bytes], object], str]] = {
    "npy": (lambda content: read_npy(content, "x.npy"), ""),
    "npz": (lambda content: read_mouth_npz(_file("x.npz", content)), "corpus/mouths/*0.npz"),
    "tar": (lambda content: list(read_samples([str(_file("x.tar", content))])), "*/*.tar"),
    "record": (_record, "*/store.json"),
    "index": (lambda content: decode_index(io.BytesIO(content), "store/x.index"), "*/*.index"),
    "plan": (_plan, "*/plan-*"),
    "lists": (_lists, "corpus/json/*/*.json"),
    "config": (lambda content: load_config(_file("x.yml", content)), "corpus/config.yml"),
}
"""Each parser, and where files for it lie in the campaign's folder."""


def main() -> None:
    """Fuzz until libFuzzer's own options say to stop."""
    if len(sys.argv) < 2 or sys.argv[1] not in PARSERS:
        sys.exit(f"expected one of {', '.join(PARSERS)}\n{__doc__}")
    parse, pattern = PARSERS[sys.argv[1]]
    words = sys.argv[2:]
    if not words or words[0].startswith("-"):
        words.insert(0, str(Path("build", "fuzz", sys.argv[1])))
    if not Path(words[0]).is_file():
        _sow(Path(words[0]), sys.argv[1], pattern)

    def try_one(content: bytes) -> None:
        try:
            parse(content)
        except FeatureStoreError as error:
            assert str(error)

    atheris.Setup([sys.argv[0], *words], try_one)
    atheris.Fuzz()


def _sow(folder: Path, parser: str, pattern: str) -> None:
    """Write a few right inputs, to start from."""
    folder.mkdir(parents=True, exist_ok=True)
    if parser == "npy":
        from helpers.foreign_tars import embedding, npy

        found: Iterable[bytes] = [npy(embedding(1)), npy(embedding(2, dtype="int8"))]
    else:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
            place = make_place(Path(name))
            paths = sorted(place.pristine.glob(pattern))[:6]
            found = [path.read_bytes() for path in paths]
            if parser == "lists":
                found = [json.dumps(json.loads(content)[:1]).encode() for content in found]
    for number, content in enumerate(found):
        (folder / f"right-{number}").write_bytes(content)


if __name__ == "__main__":
    main()
