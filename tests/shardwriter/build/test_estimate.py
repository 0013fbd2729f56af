"""What --check expects a build to take, against what it took."""

from pathlib import Path

import pytest
from helpers.builds import CPU, build_store, opened
from helpers.corpus import Corpus, make_corpus

from iianet.encoder.clip_encoder import ClipEncoder
from shardwriter.build.build import prepare
from shardwriter.build.check import count_frames, stored_bytes
from shardwriter.build.difference import Difference
from shardwriter.build.options import BuildOptions, Stored
from shardwriter.storage.folder import Folder

pytestmark = pytest.mark.usefixtures("quick")

SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), {"train": 12, "val": 4}, frames=50)


def survey(corpus: Corpus, store: Path, options: BuildOptions, *overrides: str) -> dict[str, Difference]:
    return prepare(corpus.config(*overrides), Folder(store), options).survey()


def count(found: dict[str, Difference]) -> int:
    return sum(difference.count for difference in found.values())


def frames(found: dict[str, Difference]) -> float:
    return sum(count_frames(difference) for difference in found.values())


def size(found: dict[str, Difference], held: Stored) -> float:
    return sum(stored_bytes(split, difference, held, ClipEncoder.dim) for split, difference in found.items())


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("audio", ["path", "embed"])
@pytest.mark.parametrize("views", [0, 2])
def test_bytes_are_near_those_of_the_store(corpus: Corpus, tmp_path: Path, dtype: str, audio: str, views: int) -> None:
    options = BuildOptions(splits=SPLITS, device=CPU, dtype=dtype, audio=audio)
    found = survey(corpus, tmp_path, options, f"shardwriter.views={views}")
    report = build_store(corpus, tmp_path, f"shardwriter.views={views}", splits=SPLITS, dtype=dtype, audio=audio)
    assert count(found) == sum(report.stored.values()) == 16 + 12 * views
    assert frames(found) == 50 * count(found)
    held = sum(path.stat().st_size for path in tmp_path.iterdir() if path.is_file())
    assert held == pytest.approx(size(found, Stored(dtype, audio)), rel=0.2)


def test_complete_store_takes_nothing_more(corpus: Corpus, tmp_path: Path) -> None:
    build_store(corpus, tmp_path, splits=SPLITS, audio="embed")
    options = BuildOptions(splits=SPLITS, device=CPU)
    found = survey(corpus, tmp_path, options)
    held = options.stored(corpus.config(), opened(tmp_path).identity)
    assert held.audio == "embed"
    assert count(found) == frames(found) == size(found, held) == 0
    again = BuildOptions(splits=SPLITS, device=CPU, overwrite=True)
    assert count(survey(corpus, tmp_path, again)) == 16
