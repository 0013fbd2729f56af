"""What --check expects a build to take, against what it took."""

from pathlib import Path

import pytest
from helpers.builds import CPU, build_store
from helpers.corpus import Corpus, make_corpus

from shardwriter.build.estimate import count_embeddings, count_frames, stored_bytes
from shardwriter.build.options import BuildOptions
from shardwriter.build.survey import survey
from shardwriter.store.catalog import read_store_record

pytestmark = pytest.mark.usefixtures("quick")

SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), {"train": 12, "val": 4}, frames=50)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("audio", ["path", "embed"])
@pytest.mark.parametrize("views", [0, 2])
def test_bytes_are_near_those_of_the_store(corpus: Corpus, tmp_path: Path, dtype: str, audio: str, views: int) -> None:
    config = corpus.config(f"shardwriter.dtype={dtype}", f"shardwriter.audio={audio}", f"shardwriter.views={views}")
    options = BuildOptions(splits=SPLITS, device=CPU, dtype=dtype, audio=audio)
    work = survey(config, tmp_path, options)
    report = build_store(corpus, tmp_path, f"shardwriter.views={views}", splits=SPLITS, dtype=dtype, audio=audio)
    assert count_embeddings(work) == sum(report.encoded.values()) == 16 + 12 * views
    assert count_frames(work) == 50 * count_embeddings(work)
    held = sum(path.stat().st_size for path in tmp_path.iterdir() if path.is_file())
    assert held == pytest.approx(stored_bytes(work, options.storage(config, None)), rel=0.2)


def test_complete_store_takes_nothing_more(corpus: Corpus, tmp_path: Path) -> None:
    build_store(corpus, tmp_path, splits=SPLITS, audio="embed")
    options = BuildOptions(splits=SPLITS, device=CPU)
    work = survey(corpus.config(), tmp_path, options)
    storage = options.storage(corpus.config(), read_store_record(tmp_path).identity)
    assert storage.audio == "embed"
    assert count_embeddings(work) == count_frames(work) == stored_bytes(work, storage) == 0
    again = BuildOptions(splits=SPLITS, device=CPU, overwrite=True)
    assert count_embeddings(survey(corpus.config(), tmp_path, again)) == 16
