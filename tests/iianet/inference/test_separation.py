"""Windows through the network: each sample beside its own mouth frame, at its own level, whatever the batch size."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from iianet.errors import WeightsError
from iianet.inference.separation import WindowSeparator
from iianet.inference.windows import Samples, Windows
from iianet.separator.model import IIANet

CPU = torch.device("cpu")
SPF = 640
SIZES = {"out_channels": 16, "in_channels": 32, "vpre_channels": 8, "vin_channels": 8, "vout_channels": 8}
Network = Callable[[Tensor, Tensor], Tensor]


def network() -> IIANet:
    torch.manual_seed(0)
    return IIANet(**SIZES, num_blocks=4, upsampling_depth=4).eval()


def speech(seconds: float, seed: int = 0) -> Samples:
    """A made voice: syllables of a buzz, with pauses."""
    random, time = np.random.default_rng(seed), np.arange(round(seconds * 16_000)) / 16_000
    waves = ((random.uniform(1.5, 3), random.random()), (random.uniform(0.2, 0.5), random.random()))
    loudness = np.maximum(0, sum(np.sin(2 * np.pi * (hertz * time + phase)) for hertz, phase in waves))
    pitch = 2 * np.pi * random.uniform(90, 240) * time + 3 * np.sin(2 * np.pi * 0.4 * time)
    voice = sum(np.sin(harmonic * pitch) / harmonic for harmonic in range(1, 20))
    return (0.1 * loudness * voice + 0.002 * random.standard_normal(len(time))).astype(np.float32)


def embedding(frames: int, seed: int = 0) -> Tensor:
    return torch.randn(8, frames, generator=torch.Generator().manual_seed(seed)).cumsum(1) / 5


def separated(
    mixture: Samples, embeddings: list[Tensor], length: int, with_network: Network | None = None, **options: object
) -> Samples:
    separator = WindowSeparator(network=with_network or network(), device=CPU, **options)  # type: ignore[arg-type]
    blocks = np.array_split(mixture, 7)
    return np.concatenate(list(separator.separate(blocks, embeddings, Windows.over(len(mixture), SPF, length))), 1)


def ratio(signal: Samples, noise: Samples) -> float:
    """Energy of a signal over that of a noise, dB."""
    return float(10 * np.log10(np.square(signal).sum() / np.square(noise).sum()))


@pytest.mark.parametrize("num_samples", [640, 12_345, 32_000, 100_001])
def test_every_sample_is_separated_beside_its_own_mouth_frame(num_samples: int) -> None:
    def says_frames(mixture: Tensor, seen: Tensor) -> Tensor:
        return (mixture * seen[:, 0].repeat_interleave(SPF, 1)[:, : mixture.shape[1]]).unsqueeze(1)

    frames = -(-num_samples // SPF)
    numbers = [torch.arange(frames, dtype=torch.float32)[None] + 1000 * speaker for speaker in range(3)]
    found = separated(np.ones(num_samples, np.float32), numbers, 20, says_frames, batch_size=4)
    expected = np.arange(num_samples) // SPF
    assert np.array_equal(found, np.stack([expected, expected + 1000, expected + 2000]))


@pytest.mark.parametrize("seconds", [0.0001, 0.7, 1.9999, 2.0])
def test_a_clip_no_longer_than_a_window_is_exactly_the_networks_output(seconds: float) -> None:
    mixture = speech(seconds)
    mouth = embedding(-(-len(mixture) // SPF))
    with torch.inference_mode():
        whole = network()(torch.from_numpy(mixture)[None], mouth[None])[:, 0].numpy()
    assert np.array_equal(separated(mixture, [mouth], 50), whole)


def largest_jump_in_fades(windowed: Samples, model: IIANet, mixture: Samples, mouth: Tensor, windows: Windows) -> float:
    """Largest difference from sample to sample in the fades, beside the largest in the two estimates that are faded."""
    worst = 0.0
    for number, fade in enumerate(windows.fades):
        place = slice(fade * SPF, (fade + windows.fade) * SPF)
        own = []
        for window in (number, number + 1):
            samples, frames = windows.samples(window), windows.frames(window)
            alone = separated(mixture[samples], [mouth[:, frames]], windows.length, model)[0]
            own.append(np.abs(np.diff(alone[place.start - samples.start : place.stop - samples.start])).max())
        worst = max(worst, float(np.abs(np.diff(windowed[place])).max() / max(own)))
    return worst


def test_windows_come_near_the_whole_clip_and_leave_no_seams() -> None:
    """A network normalises over all that it hears, so windows differ; of one that has learnt nothing, they do most."""
    mixture, mouth, model = speech(12) + speech(12, 1), embedding(300), network()
    whole, windowed = (separated(mixture, [mouth], length, model)[0] for length in (300, 100))
    windows = Windows.over(len(mixture), SPF, 100)
    assert len(windows.starts) == 4
    assert ratio(whole, windowed - whole) > 9
    assert largest_jump_in_fades(windowed, model, mixture, mouth, windows) < 1.001


@pytest.mark.slow
def test_a_trained_network_separates_in_windows_as_well_as_in_one() -> None:
    model = trained_network()
    (voice, loudness), (other, _) = voice_and_mouth(30, 1), voice_and_mouth(30, 2)
    whole = separated(voice + other, [loudness], 750, model)[0]
    assert ratio(voice, voice - whole) > 4, "it has learnt to separate"
    for length in (50, 200):
        windowed = separated(voice + other, [loudness], length, model)[0]
        assert ratio(whole, windowed - whole) > 12
        assert ratio(voice, voice - windowed) > ratio(voice, voice - whole) - 0.3


def voice_and_mouth(seconds: float, seed: int) -> tuple[Samples, Tensor]:
    """A made voice, and an embedding that tells its loudness."""
    voice = speech(seconds, seed)
    loudness = np.sqrt(np.square(voice[: len(voice) // SPF * SPF]).reshape(-1, SPF).mean(1))
    return voice, 5 * torch.from_numpy(np.stack([loudness, np.gradient(loudness), *(6 * [0 * loudness])]))


def trained_network() -> IIANet:
    """Train for half a minute on seconds of two voices, as training does: on the negative SNR."""
    torch.manual_seed(0)
    model = IIANet(**SIZES, num_blocks=2, upsampling_depth=3)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(120):
        voices = [voice_and_mouth(1, 100 + 8 * step + item) for item in range(8)]
        target = torch.from_numpy(np.stack([voice for voice, _ in voices[:4]]))
        mixture = target + torch.from_numpy(np.stack([voice for voice, _ in voices[4:]]))
        estimate = model(mixture, torch.stack([mouth for _, mouth in voices[:4]]))[:, 0]
        loss = ((estimate - target).square().sum(1) / target.square().sum(1)).log10().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5)
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(
    "batch_size",
    [pytest.param(2, marks=pytest.mark.slow), 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 16))],
)
@pytest.mark.parametrize("normalises", [False, True])
def test_results_do_not_depend_on_the_batch_size(batch_size: int, normalises: bool) -> None:
    mixture, mouths = speech(6.01), [embedding(151, seed) for seed in range(3)]
    alone = separated(mixture, mouths, 40, normalises=normalises)
    together = separated(mixture, mouths, 40, batch_size=batch_size, normalises=normalises)
    assert np.abs(together - alone).max() < 1e-5 * np.abs(alone).max()
    assert not np.allclose(alone[0], alone[1])


def test_a_batch_is_never_larger_than_asked_for() -> None:
    sizes: list[int] = []

    def counts(mixture: Tensor, seen: Tensor) -> Tensor:
        sizes.append(len(mixture))
        assert len(mixture) == len(seen)
        return mixture.unsqueeze(1)

    for batch_size in (1, 2, 3, 7):
        sizes.clear()
        separated(speech(6.01), [embedding(151)] * 3, 40, counts, batch_size=batch_size)
        assert max(sizes) == (batch_size if batch_size < 3 else batch_size // 3 * 3)


def test_a_mixture_is_heard_normalised_and_the_estimate_has_its_own_level() -> None:
    heard: list[Tensor] = []

    def keeps(mixture: Tensor, seen: Tensor) -> Tensor:
        heard.extend(mixture)
        return mixture.unsqueeze(1)

    mixture = (5 * speech(6) + 2).astype(np.float32)
    found = separated(mixture, [embedding(150)], 40, keeps, normalises=True)
    for window in heard:
        assert abs(float(window.mean())) < 1e-3 and float(window.std()) == pytest.approx(1, rel=1e-4)
    assert np.abs(found[0] - (mixture - 2)).max() < 0.2  # the mean of a window is not quite 2
    heard.clear()
    assert np.array_equal(separated(mixture, [embedding(150)], 40, keeps)[0], mixture)


@pytest.mark.parametrize("normalises", [False, True])
@pytest.mark.parametrize("num_samples", [1, 640, 96_000])
def test_silence_in_is_silence_out(normalises: bool, num_samples: int) -> None:
    silence = np.zeros(num_samples, np.float32)
    assert not separated(silence, [embedding(150)], 40, normalises=normalises).any()


@pytest.mark.parametrize("level", [0.1, 3e4])
def test_the_level_of_the_estimate_follows_that_of_the_mixture(level: float) -> None:
    mixture, mouth = speech(4), embedding(100)
    quiet, loud = separated(mixture, [mouth], 40), separated(np.float32(level) * mixture, [mouth], 40)
    assert np.abs(loud / np.float32(level) - quiet).max() < 0.02 * np.abs(quiet).max()


def test_an_embedding_that_is_short_has_its_last_column_repeated() -> None:
    mixture, mouth = speech(4), embedding(99)
    longer = torch.cat([mouth, mouth[:, -1:]], 1)
    assert np.array_equal(separated(mixture, [mouth], 40), separated(mixture, [longer], 40))
    more = torch.cat([longer, embedding(5, 1)], 1)
    assert np.array_equal(separated(mixture, [more], 40), separated(mixture, [longer], 40))


def test_weights_that_give_no_sound_are_told() -> None:
    def diverged(mixture: Tensor, seen: Tensor) -> Tensor:
        return (mixture * torch.nan).unsqueeze(1)

    with pytest.raises(WeightsError, match=r"not finite.* give another checkpoint"):
        separated(speech(1), [embedding(25)], 40, diverged)
