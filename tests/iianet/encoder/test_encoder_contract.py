"""What every encoder promises: add yours to DIMS. The second one is registered by one line, as a new one would be."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_encoder import TinyEncoder
from torch import Tensor

from iianet.config.schema import Config, load_config
from iianet.encoder.clip_encoder import ClipEncoder
from iianet.encoder.kernels import Kernels, default_kernels
from iianet.encoder.mouth import CROP_SIZE
from iianet.encoder.protocol import Encoder
from iianet.encoder.registry import ENCODERS
from iianet.encoder.source import EncoderSource
from iianet.errors import ConfigError

CPU = torch.device("cpu")
SMALL = Kernels(max_frames=4)
"""Cuts packs of a few frames into several windows."""

DIMS = {"ResNetVideoModel": 512, "ShuffleNetV2_1x": 1024, "ShuffleNetV2_05x": 1024, "TinyEncoder": 8}
EVERY = pytest.mark.parametrize("name", DIMS)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, TinyEncoder.name, TinyEncoder)


def source(name: str, seed: int = 0) -> EncoderSource:
    return EncoderSource(None, seed, name=name)


def load(name: str, seed: int = 0, kernels: Kernels = SMALL, crop_rows: int = CROP_SIZE) -> Encoder:
    return replace(source(name, seed), crop_rows=crop_rows).load(CPU, kernels)


def clips(*lengths: int) -> list[Tensor]:
    """uint8 crops of noise, `(frames, 88, 88)` each."""
    random = np.random.default_rng(0)
    return [torch.from_numpy(random.integers(0, 256, (length, 88, 88), dtype=np.uint8)) for length in lengths]


def config(folder: Path, name: str, *overrides: str) -> Config:
    path = folder / "x.yml"
    path.write_text("datamodule: {data_config: {train_dir: tr, valid_dir: cv, test_dir: tt}}\nexp: {exp_name: x}\n")
    chosen = (f"videonet.videonet_name={name}", f"audionet.audionet_config.vpre_channels={DIMS[name]}")
    return load_config(path, [*chosen, *overrides])


@EVERY
def test_config_that_names_it_gives_it(tmp_path: Path, name: str) -> None:
    found = config(tmp_path, name, "videonet.videonet_config.seed=3").encoder_source()
    encoder = found.load(CPU)
    assert type(encoder) is ENCODERS[name]
    assert (found.name, found.dim) == (encoder.name, encoder.dim) == (name, DIMS[name])
    assert encoder.fingerprint == load(name, 3).fingerprint
    assert encoder.kernels == default_kernels(CPU)
    [embedding] = encoder.encode(clips(2))
    assert embedding.shape == (DIMS[name], 2)


@EVERY
def test_source_tells_its_facts_without_weights(name: str) -> None:
    kind = ENCODERS[name]
    found = source(name)
    assert (found.fps, found.context_frames, found.preprocessing) == (kind.fps, kind.context_frames, kind.preprocessing)
    assert found.samples_per_frame * found.fps == 16_000
    assert found.facts("0a") == {"name": name, "fingerprint": "0a", "pretrain": None, "seed": 0}


@EVERY
def test_embedding_has_a_float32_column_for_each_frame(name: str) -> None:
    encoder = load(name)
    lengths, dim = [1, 6, 2], encoder.dim
    given = clips(*lengths)
    embeddings = encoder.encode(given)
    assert [tuple(embedding.shape) for embedding in embeddings] == [(dim, length) for length in lengths]
    columns = encoder.columns(torch.cat(given), lengths)
    assert torch.equal(columns.t(), torch.cat(embeddings, dim=1))
    assert columns.dtype == torch.float32
    assert not columns.requires_grad
    assert encoder.encode([]) == []


@EVERY
@pytest.mark.parametrize("kernels", [SMALL, default_kernels(CPU)])
def test_clip_becomes_the_same_alone_and_in_any_pack(name: str, kernels: Kernels) -> None:
    encoder = load(name, kernels=kernels)
    given = clips(5, 1, 3, 1, 20)
    packed = encoder.encode(given)
    for clip, embedding in zip(given, packed, strict=True):
        assert torch.equal(encoder.encode([clip])[0], embedding)
    for clip, embedding in zip(given[::-1], encoder.encode(given[::-1]), strict=True):
        assert torch.equal(encoder.encode([clip])[0], embedding)


@EVERY
def test_column_sees_as_many_frames_on_each_side_as_it_says(name: str) -> None:
    encoder = load(name)
    [clip] = clips(9)
    [embedding] = encoder.encode([clip])
    changed = clip.clone()
    changed[4] = 255 - changed[4]
    differs = (encoder.encode([changed])[0] != embedding).any(dim=0)
    context = encoder.context_frames
    assert differs.nonzero()[:, 0].tolist() == list(range(4 - context, 4 + context + 1))


@EVERY
def test_of_a_crop_it_sees_the_rows_that_it_is_to_see_and_no_others(name: str) -> None:
    few, whole = load(name, crop_rows=ENCODERS[name].fewest_rows), load(name)
    assert (few.crop_rows, whole.crop_rows) == (ENCODERS[name].fewest_rows, CROP_SIZE)
    [clip] = clips(4)
    for encoder in (few, whole):
        [embedding] = encoder.encode([clip])
        assert embedding.isfinite().all()
        differs = []
        for row in (0, encoder.crop_rows - 1, encoder.crop_rows):
            changed = clip.clone()
            changed[:, row : row + 1] = 255 - changed[:, row : row + 1]
            differs.append(not torch.equal(encoder.encode([changed])[0], embedding))
        assert differs == [True, True, False]


@EVERY
def test_fewer_rows_than_it_works_with_are_refused_with_the_cure(tmp_path: Path, name: str) -> None:
    fewest = ENCODERS[name].fewest_rows
    key = "videonet.videonet_config.crop_rows"
    assert config(tmp_path, name, f"{key}={fewest}").encoder_source().crop_rows == fewest
    with pytest.raises(ConfigError, match=rf"crop_rows: found {fewest - 1}\b.*, expected .*\(override "):
        config(tmp_path, name, f"{key}={fewest - 1}")


@EVERY
def test_equal_seeds_give_equal_embeddings_and_other_seeds_others(name: str) -> None:
    first, same, other = load(name), load(name), load(name, 1)
    given = clips(3)
    assert first.fingerprint == same.fingerprint != other.fingerprint
    assert torch.equal(first.encode(given)[0], same.encode(given)[0])
    assert not torch.equal(first.encode(given)[0], other.encode(given)[0])


@EVERY
@pytest.mark.parametrize("kernels", [default_kernels(CPU), default_kernels(CPU, "bf16"), Kernels(max_frames=1)])
def test_kernels_change_neither_the_fingerprint_nor_more_than_rounding(name: str, kernels: Kernels) -> None:
    exact, encoder = load(name), load(name, kernels=kernels)
    assert encoder.kernels == kernels
    assert encoder.fingerprint == exact.fingerprint
    given = clips(4)
    [expected], [found] = exact.encode(given), encoder.encode(given)
    tolerance = 2e-6 if kernels.dtype == "float32" else 2e-2
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@EVERY
def test_loading_it_draws_no_random_numbers_and_depends_on_none(name: str) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    fingerprint = load(name).fingerprint
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert load(name).fingerprint == fingerprint


@EVERY
def test_encoding_draws_no_random_numbers(name: str) -> None:
    encoder, state = load(name), torch.get_rng_state()
    encoder.encode(clips(3))
    assert torch.equal(torch.get_rng_state(), state)


def test_classes_are_registered_under_their_names() -> None:
    assert {name: kind.name for name, kind in ENCODERS.items()} == {name: name for name in DIMS}
    assert ENCODERS["ResNetVideoModel"] is ClipEncoder
