"""With the real encoder: a store of crop_rows: 50 holds what the network makes of the first 50 rows of each crop."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.builds import CPU, build_store, stored
from helpers.commands import run_main
from helpers.corpus import Corpus, make_corpus

from iianet.encoder.clip_encoder import ClipEncoder
from iianet.encoder.mouth import normalise, view_crop
from shardwriter import inspect_cli
from shardwriter.build.build import prepare
from shardwriter.build.options import BuildOptions
from shardwriter.corpus.mouth_npz import read_mouth_npz
from shardwriter.encode.encoded import EncodedClips
from shardwriter.format.names import view_split
from shardwriter.storage.folder import Folder

FIFTY = "videonet.videonet_config.crop_rows=50"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), {"train": 3, "val": 2, "test": 2}, frames=4)


@pytest.fixture(scope="module")
def store(corpus: Corpus) -> Path:
    path = corpus.root / "store"
    build_store(corpus, path, FIFTY, "shardwriter.views=1", dtype="float32")
    return path


@pytest.mark.parametrize("view", [0, 1])
def test_embeddings_are_of_the_first_rows_of_crops_and_views(corpus: Corpus, store: Path, view: int) -> None:
    network = ClipEncoder.load_network(None, seed=0)
    found = stored(store, view_split("train", view))
    assert len(found) == 3
    for name, embedding in found.items():
        frames = torch.from_numpy(view_crop(name, view).apply(read_mouth_npz(corpus.mouth(name)).frames))
        assert frames.shape == (4, 88, 88)
        expected = network(normalise(frames[:, :50])[None, None])[0].numpy()
        assert np.abs(embedding - expected).max() <= 2e-6 * np.abs(expected).max()


def test_inspection_encodes_the_same_rows_again_and_refuses_others(
    corpus: Corpus, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [store, "--against", corpus.config_file, "--recheck", "9"]
    assert run_main(inspect_cli.main, [*words, "--set", FIFTY], capsys).code == 0
    refused = run_main(inspect_cli.main, words, capsys)
    assert refused.code == 2 and "(crop_rows: 88 here, 50 there)" in refused.err
    compared = run_main(inspect_cli.main, words[:3], capsys)
    assert compared.code == 1 and "(crop_rows: 88 here, 50 there)" in compared.out


def test_a_process_that_is_sent_the_job_sees_the_same_rows(corpus: Corpus, store: Path) -> None:
    job = prepare(corpus.config(FIFTY), Folder(store), BuildOptions(device=CPU)).job()
    there = pickle.loads(pickle.dumps(job.source))
    assert isinstance(there, EncodedClips)
    assert there.open(CPU).encoder.crop_rows == 50
