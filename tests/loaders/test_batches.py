"""Raw mode, a full store and a partial store see the same batches in the same order."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers.batches import batches, completed, data
from helpers.corpus import Corpus, make_corpus

from iianet.encoder.mouth import center_crop
from iianet.encoder.video_encoder import VideoEncoder
from iianet.errors import ManifestError, StoreError
from loaders.datamodule import SeparationData
from shardwriter.build.build import build
from shardwriter.build.options import BuildOptions
from shardwriter.storage.folder import Folder
from shardwriter.store.snapshot import Snapshot

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Mouths longer than the segment of 4 frames, as long, and one frame short of it."""
    return make_corpus(
        tmp_path_factory.mktemp("corpus"), {"train": 7, "val": 4, "test": 2}, frames=(7, 4, 3, 9), num_samples=4 * 640
    )


@pytest.fixture(scope="module")
def stores(corpus: Corpus) -> dict[str, Path]:
    """Full ones in both precisions, and one that lacks utterances of both splits."""
    paths = {name: corpus.root / name for name in ("float32", "float16", "partial")}
    for name, limit in (("float32", None), ("float16", None), ("partial", 3)):
        dtype = "float16" if name == "float16" else "float32"
        build(corpus.config(), Folder(paths[name]), BuildOptions(device=CPU, dtype=dtype, limit=limit))
    return paths


@pytest.mark.parametrize("mode", ["float32", "float16", "partial"])
def test_a_store_gives_the_batches_of_raw_mode(corpus: Corpus, stores: dict[str, Path], mode: str) -> None:
    raw, stored = batches(data(corpus, None)), batches(data(corpus, stores[mode]))
    assert [batch.keys for batch in raw] == [batch.keys for batch in stored]
    for ours, theirs in zip(raw, stored, strict=True):
        assert torch.equal(ours.mixture, theirs.mixture)
        assert torch.equal(ours.target, theirs.target)
    for ours, theirs in zip(completed(corpus, raw), completed(corpus, stored), strict=True):
        tolerance = 1e-3 if mode == "float16" else 1e-6
        assert (ours - theirs).abs().max() <= tolerance * ours.abs().max()
        assert ours.abs().max() > 0


@pytest.mark.parametrize("mode", [None, "float32", "partial"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_do_not_depend_on_the_workers(
    corpus: Corpus, stores: dict[str, Path], mode: str | None, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    store = stores[mode] if mode else None
    alone = batches(data(corpus, store))
    setting = f"datamodule.data_config.num_workers={workers}"
    shared = batches(data(corpus, store, setting, "datamodule.data_config.persistent_workers=true"))
    assert [batch.keys for batch in alone] == [batch.keys for batch in shared]
    assert all(torch.equal(one.embedding, two.embedding) for one, two in zip(alone, shared, strict=True))


def test_a_full_store_brings_no_mouths_and_loads_no_encoder(
    corpus: Corpus, stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VideoEncoder, "__init__", lambda *_: pytest.fail("the encoder was loaded"))
    found = batches(data(corpus, stores["float32"]))
    assert all(not batch.mouth_lengths and not len(batch.mouths) for batch in found)
    assert completed(corpus, found)


def test_a_partial_store_mixes_both_kinds_of_rows_in_one_batch(corpus: Corpus, stores: dict[str, Path]) -> None:
    found = batches(data(corpus, stores["partial"]))
    assert any(0 < len(batch.mouth_lengths) < len(batch) for batch in found)


def test_a_short_mouth_has_its_last_column_repeated(corpus: Corpus, stores: dict[str, Path]) -> None:
    for mode in (None, stores["float32"]):
        found = batches(data(corpus, mode), epochs=1)
        rows = [
            embedding[row]
            for batch, embedding in zip(found, completed(corpus, found), strict=True)
            for row, key in enumerate(batch.keys)
            if key in ("tr_002", "tr_006")  # 3 frames for a segment of 4
        ]
        assert rows
        for row in rows:
            assert torch.equal(row[:, 2], row[:, 3])
            assert not torch.equal(row[:, 1], row[:, 2])


def test_audio_and_embedding_are_of_the_same_segment(corpus: Corpus, stores: dict[str, Path]) -> None:
    """The embedding is cut after encoding: its last columns have seen the frames after the segment."""
    encoder = corpus.config().encoder_source().load(CPU)
    batch = next(iter(data(corpus, stores["float32"]).val_dataloader()))
    for row, key in enumerate(batch.keys):
        with np.load(corpus.mouth(key), allow_pickle=False) as npz:
            whole = encoder.encode([center_crop(torch.from_numpy(npz["data"]))])[0]
        length = min(whole.shape[1], 4)
        assert torch.allclose(
            batch.embedding[row][:, :length], whole[:, :4], rtol=0, atol=1e-6 * float(whole.abs().max())
        )


def test_static_mixing_reads_the_mixture_and_its_source(corpus: Corpus) -> None:
    batch = next(iter(data(corpus, None).val_dataloader()))
    mix = {Path(row[0]).name: row[0] for row in corpus.rows("val", "mix")}
    wavs = [soundfile.read(corpus.root / path, dtype="float32")[0] for path in mix.values()]
    for row in batch.mixture.numpy():
        assert any(np.array_equal(row, wav) for wav in wavs)


def test_dynamic_mixing_adds_a_source_of_another_video(corpus: Corpus) -> None:
    sources = {str(row[1]): [] for kind in ("s1", "s2") for row in corpus.rows("train", kind)}
    for kind in ("s1", "s2"):
        for wav, mouth, _ in corpus.rows("train", kind):
            sources[mouth].append(soundfile.read(corpus.root / wav, dtype="float32")[0])
    found = list(data(corpus, None).train_dataloader())
    assert found
    for batch in found:
        for mixture, target, key in zip(batch.mixture.numpy(), batch.target.numpy(), batch.keys, strict=True):
            others = [wav for mouth, wavs in sources.items() if Path(mouth).stem != key for wav in wavs]
            assert any(np.array_equal(mixture, target + other) for other in others)


def test_training_can_be_mixed_statically(corpus: Corpus) -> None:
    mixtures = [soundfile.read(corpus.root / row[0], dtype="float32")[0] for row in corpus.rows("train", "mix")]
    found = list(data(corpus, None, "datamodule.data_config.train_mixing=static").train_dataloader())
    assert found
    for batch in found:
        for mixture in batch.mixture.numpy():
            assert any(np.array_equal(mixture, wav) for wav in mixtures)


def test_normalised_mixtures_have_no_mean_and_unit_variance(corpus: Corpus) -> None:
    batch = next(iter(data(corpus, None, "datamodule.data_config.normalize_audio=true").val_dataloader()))
    assert batch.mixture.mean(1).abs().max() < 1e-6
    assert torch.allclose(batch.mixture.std(1), torch.ones(len(batch)), atol=1e-4)
    assert batch.target.mean(1).abs().max() < 1e-6
    assert (batch.target.std(1) < 1).all()


def test_raw_training_is_augmented_and_validation_is_not(corpus: Corpus) -> None:
    augmented = SeparationData(corpus.config(), [], "")
    plain = data(corpus, None)

    def mouths(source: SeparationData) -> list[torch.Tensor]:
        return [batch.mouths for batch in source.train_dataloader()]

    def any_differs(one: SeparationData, two: SeparationData) -> bool:
        return any(not torch.equal(a, b) for a, b in zip(mouths(one), mouths(two), strict=True))

    assert any_differs(augmented, plain)
    assert not any_differs(augmented, SeparationData(corpus.config(), [], ""))
    assert any_differs(augmented, SeparationData(corpus.config("training.seed=1"), [], ""))
    for ours, theirs in zip(augmented.val_dataloader(), plain.val_dataloader(), strict=True):
        assert torch.equal(ours.mouths, theirs.mouths)


def test_every_validation_example_comes_once(corpus: Corpus, stores: dict[str, Path]) -> None:
    found = list(data(corpus, stores["float32"]).val_dataloader())
    assert sum(len(batch) for batch in found) == 2 * len(corpus.rows("val", "mix"))
    assert all(batch.weight.min() == 1 for batch in found)


def test_mixtures_shorter_than_the_segment_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = make_corpus(tmp_path, {"train": 5, "val": 2, "test": 0}, frames=(4, 4, 2, 4, 4))
    source = data(corpus, None, "datamodule.data_config.segment=0.16")
    with caplog.at_level("INFO"):
        keys = {key for batch in source.train_dataloader() for key in batch.keys}
    assert keys == {"tr_000", "tr_001", "tr_003", "tr_004"}
    assert "train: 4 of 8 examples" in caplog.text


def test_a_segment_longer_than_every_mixture_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ManifestError, match="none of its"):
        data(corpus, None, "datamodule.data_config.segment=2.0").prepare_splits()


def test_a_batch_larger_than_the_training_set_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ManifestError, match="do not fill one batch"):
        data(corpus, None, "datamodule.data_config.batch_size=100").train_dataloader()


def test_missing_utterances_are_said_once_with_the_command(
    corpus: Corpus, stores: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    source = data(corpus, stores["partial"])
    with caplog.at_level("INFO"):
        source.prepare_splits()
        batches(source)
    said = [record.getMessage() for record in caplog.records if "not in" in record.getMessage()]
    assert len(said) == 2  # train and val
    assert "train: 4 of 7 utterances" in said[0]
    assert "build-shards ..." in said[0]


def test_on_missing_skip_leaves_rows_out_and_keeps_the_order(corpus: Corpus, stores: dict[str, Path]) -> None:
    everything = batches(data(corpus, stores["float32"]))
    skipped = batches(data(corpus, stores["partial"], "datamodule.data_config.on_missing=skip"))
    held = set(Snapshot.open(Folder(stores["partial"])).split("train").newest) | set(
        Snapshot.open(Folder(stores["partial"])).split("val").newest
    )
    for whole, rest in zip(everything, skipped, strict=True):
        kept = tuple(key for key in whole.keys if key in held)
        assert rest.keys == (kept or ("",))
        assert {drop.key for drop in rest.dropped} == set(whole.keys) - held
    assert any(rest.dropped for rest in skipped)


def test_on_missing_error_refuses_to_start_and_names_them(corpus: Corpus, stores: dict[str, Path]) -> None:
    with pytest.raises(StoreError, match=r"4 of 7 utterances.*tr_00"):
        data(corpus, stores["partial"], "datamodule.data_config.on_missing=error").prepare_splits()


def test_a_row_that_cannot_be_had_is_dropped_and_named(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, frames=4)
    corpus.mouth("tr_001").write_bytes(b"not a zip")
    corpus.mouth("tr_004").unlink()
    found = list(data(corpus, None).train_dataloader())
    dropped = {drop.key: drop.reason for batch in found for drop in batch.dropped}
    assert set(dropped) == {"tr_001", "tr_004"}
    assert "tr_001.npz" in dropped["tr_001"]
    assert all(not {"tr_001", "tr_004"} & set(batch.keys) for batch in found)
    assert all(len(batch) == len(batch.mixture) == len(batch.embedding) == len(batch.weight) for batch in found)


def test_a_missing_wav_drops_its_row_and_a_wrong_folder_is_an_error(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, frames=4)
    (corpus.root / corpus.rows("val", "s1")[0][0]).unlink()
    dropped = [drop for batch in data(corpus, None).val_dataloader() for drop in batch.dropped]
    assert [drop.key for drop in dropped] == ["cv_000"]
    (corpus.root / "audio").rename(corpus.root / "elsewhere")
    with pytest.raises(ManifestError, match=r"none of the first .* --data_root"):
        data(corpus, None).prepare_splits()


def test_without_a_manifest_the_stores_own_lists_decide(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", frames=4)
    store = tmp_path / "store"
    build(corpus.config(), Folder(store), BuildOptions(device=CPU))
    known = batches(data(corpus, store))
    (corpus.root / "json").rename(tmp_path / "gone")
    found = batches(data(corpus, store))
    assert [batch.keys for batch in found] == [batch.keys for batch in known]
    assert all(torch.equal(one.mixture, two.mixture) for one, two in zip(found, known, strict=True))


def test_a_position_is_resumed_and_the_end_of_an_epoch_is_the_start_of_the_next(
    corpus: Corpus, stores: dict[str, Path]
) -> None:
    source = data(corpus, stores["float32"])
    through = [batch.keys for batch in batches(source)]
    loader = source.train_dataloader()
    steps = len(loader)
    stream = iter(loader)
    for _ in range(2):
        next(stream)
    middle = loader.state_dict()
    assert middle == {"epoch": 0, "batch": 2}
    again = source.train_dataloader()
    again.load_state_dict(middle)
    assert [batch.keys for batch in again] == through[2:steps]
    assert again.state_dict() == {"epoch": 1, "batch": 0}
    assert [batch.keys for batch in again] == through[steps : 2 * steps]
    at_end = source.train_dataloader()
    at_end.load_state_dict({"epoch": 0, "batch": steps})
    assert [batch.keys for batch in at_end] == through[steps : 2 * steps]


def test_an_epoch_left_early_is_followed_by_the_next(corpus: Corpus, stores: dict[str, Path]) -> None:
    source = data(corpus, stores["float32"])
    through = [batch.keys for batch in batches(source)]
    loader = source.train_dataloader()
    next(iter(loader))
    assert [batch.keys for batch in loader] == through[len(loader) : 2 * len(loader)]


def test_fewer_workers_than_wished_are_said_once(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(1))
    caplog.set_level("INFO")
    source = data(corpus, None, "datamodule.data_config.num_workers=3")
    source.train_dataloader(), source.val_dataloader()
    assert caplog.text.count("num_workers is 3; there are 1 cores, so 1 are started") == 1
