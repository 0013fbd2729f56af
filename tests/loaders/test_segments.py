"""Random segments: audio, stored embedding and encoded mouth are of the same moment."""

from pathlib import Path

import pytest
import soundfile
import torch
from helpers.batches import batches, completed, data
from helpers.builds import build_store
from helpers.corpus import Corpus, make_corpus

from iianet.batch import fit_frames
from iianet.encoder.mouth import center_crop
from shardwriter.corpus.mouth_npz import read_mouth_npz

RANDOM = ("datamodule.data_config.segment_start=random", "datamodule.data_config.segment=0.12")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Mouths of 9 frames, and one a frame short of its audio, for a segment of 3."""
    return make_corpus(tmp_path_factory.mktemp("corpus"), frames=(9, 9, 8), num_samples=9 * 640)


@pytest.fixture(scope="module")
def stores(corpus: Corpus) -> dict[str, Path]:
    paths = {name: corpus.root / name for name in ("full", "partial")}
    build_store(corpus, paths["full"], dtype="float32")
    build_store(corpus, paths["partial"], dtype="float32", limit=3)
    return paths


@pytest.mark.parametrize("mode", [pytest.param("full", marks=pytest.mark.slow), "partial"])
def test_a_store_and_raw_mode_give_the_same_random_segments(corpus: Corpus, stores: dict[str, Path], mode: str) -> None:
    raw, stored = batches(data(corpus, None, *RANDOM)), batches(data(corpus, stores[mode], *RANDOM))
    for ours, theirs in zip(raw, stored, strict=True):
        assert ours.keys == theirs.keys
        assert torch.equal(ours.mixture, theirs.mixture)
    for ours, theirs in zip(completed(corpus, raw), completed(corpus, stored), strict=True):
        assert (ours - theirs).abs().max() <= 1e-6 * ours.abs().max()


def test_audio_and_embedding_start_at_the_same_frame(corpus: Corpus, stores: dict[str, Path]) -> None:
    encoder = corpus.config().encoder_source().load(torch.device("cpu"))
    source = data(corpus, stores["full"], *RANDOM, "datamodule.data_config.normalize_audio=false")
    manifest, order = source.splits["train"].manifest, source.order("train")
    starts = set()
    for number, batch in enumerate(source.train_dataloader()):
        for row, position in enumerate(order.positions(number, 0)):
            epoch = order.epoch(0)
            example, start = manifest.examples[int(epoch.example[position])], int(epoch.start[position])
            wav, _ = soundfile.read(manifest.data_root / example.source, dtype="float32")
            assert torch.equal(batch.target[row], torch.from_numpy(wav[640 * start : 640 * (start + 3)]))
            frames = read_mouth_npz(corpus.mouth(batch.keys[row])).frames
            whole = encoder.encode([center_crop(torch.from_numpy(frames))])[0]
            expected = fit_frames(whole[:, start:], 3)
            assert (batch.embedding[row] - expected).abs().max() <= 1e-6 * whole.abs().max()
            starts.add(start)
    assert len(starts) > 1
    assert max(starts) <= 6
