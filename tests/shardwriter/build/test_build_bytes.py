"""With the real encoder: what is stored is what it says of each clip alone, and the bytes depend on nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from helpers.builds import CPU, build_store, contents, index, opened, stored, tar
from helpers.corpus import Corpus, make_corpus

from iianet.encoder.clip_encoder import ClipEncoder
from iianet.encoder.mouth import center_crop
from iianet.encoder.source import EncoderSource
from shardwriter.build.report import BuildReport
from shardwriter.corpus.mouth_npz import read_mouth_npz
from shardwriter.encode.encoded import EncodedClips
from shardwriter.encode.write_shards import write_shards
from shardwriter.format.plan import ShardTask
from shardwriter.storage.folder import Folder

NAMES = {"train": 5, "val": 2}


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    return EncoderSource(None, 0).load(CPU)


@pytest.fixture(scope="module", autouse=True)
def one_encoder(encoder: ClipEncoder) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EncoderSource, "load", lambda *_: encoder)
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), NAMES, frames=(2, 1, 3))


@pytest.fixture(scope="module")
def store(corpus: Corpus) -> Path:
    build(corpus, corpus.root / "store")
    return corpus.root / "store"


def build(corpus: Corpus, store: Path, *overrides: str) -> BuildReport:
    return build_store(corpus, store, *overrides, splits=tuple(NAMES))


def tars(store: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(store).items() if name.endswith(".tar")}


def test_stored_embedding_is_the_encoders_own_of_that_clip_alone(
    corpus: Corpus, store: Path, encoder: ClipEncoder
) -> None:
    found = stored(store, "train")
    assert set(found) == set(corpus.names["train"])
    for key, embedding in found.items():
        frames = torch.from_numpy(read_mouth_npz(corpus.mouth(key)).frames)
        alone = encoder.encode([center_crop(frames)])[0].numpy()
        assert embedding.dtype == np.float16 and embedding.shape == (512, len(frames))
        np.testing.assert_allclose(embedding, alone, rtol=2e-3, atol=2e-4 * np.abs(alone).max())


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("members", [(), ("shardwriter.dtype=int8", "shardwriter.audio=embed", "shardwriter.views=1")])
def test_bytes_do_not_depend_on_workers(
    corpus: Corpus, tmp_path: Path, members: tuple[str, ...], num_workers: int
) -> None:
    build(corpus, tmp_path / "one", *members)
    build(corpus, tmp_path / "other", *members, f"shardwriter.num_workers={num_workers}")
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_bytes_do_not_depend_on_the_order_of_the_shards(
    corpus: Corpus, store: Path, tmp_path: Path, encoder: ClipEncoder
) -> None:
    snapshot = opened(store)
    (header,) = snapshot.active
    backwards = list(snapshot.plan(header).tasks())[::-1]
    assert len(backwards) == 3

    def write(to: Path, tasks: list[ShardTask], *overrides: str) -> None:
        to.mkdir()
        config = corpus.config(*overrides)
        source = EncodedClips(
            data_root=corpus.root,
            encoder_source=config.encoder_source(),
            settings=config.shardwriter,
            identity=snapshot.identity,
            encoder=encoder,
        )
        write_shards(Folder(to), tasks, source.open(CPU), lambda _: None)

    write(tmp_path / "backwards", backwards)
    assert tars(tmp_path / "backwards") == tars(store) and len(tars(store)) == 3
    write(tmp_path / "alone", backwards[1:2], "shardwriter.num_workers=1")
    assert tars(tmp_path / "alone").items() < tars(store).items() and len(tars(tmp_path / "alone")) == 1


def test_lost_shard_is_written_again_with_the_same_bytes(corpus: Corpus, store: Path) -> None:
    before = contents(store)
    tar(store, "train").unlink()
    index(store, "val").unlink()
    assert build(corpus, store).shards == 2
    assert contents(store) == before


def test_index_holds_the_digest_of_the_tar_on_disk(store: Path) -> None:
    records = [record for split in NAMES for record in opened(store).split(split).shards]
    assert len(records) == 3
    for record in records:
        assert record.tar_digest == xxhash.xxh3_64_hexdigest((store / f"{record.shard}.tar").read_bytes())
