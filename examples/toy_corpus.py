"""A made corpus in IIANet's layout, from a seed: quick to make, and a small audio-visual network can learn from it.

    python examples/toy_corpus.py DIR [--seed 0] [--seconds 2.0] [--utterances 24]

    DIR/audio/{tr,cv,tt}/{mix,s1,s2}/<utt1>_<snr1>_<utt2>_<snr2>.wav   16 kHz mono PCM16, mix = s1 + s2 to the sample
    DIR/mouths/<utterance>.npz                                         `data`: (frames, 96, 96) uint8 grey, 25 fps
    DIR/json/{tr,cv,tt}/mix.json                                       [[wav, num_samples], ...]
    DIR/json/{tr,cv,tt}/{s1,s2}.json                                   [[wav, mouth npz, num_samples], ...]

Paths in the JSON files are relative to DIR. A voice is a buzz with formants that comes in syllables, and the drawn
mouth opens with their loudness, so it tells when its owner speaks. Two things are wrong on purpose, as they are in
real corpora: one training mouth is a frame short of its audio, and the npz of another is a truncated zip.
"""

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from iianet.errors import ConfigError

SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = 640
PIXELS = np.linspace(-47.5, 47.5, 96)
"""Rows and columns of a mouth frame, from its centre."""
PEAK = 0.8
"""Loudest sample of a mixture and its two sources, of full scale, as in the corpora that IIANet is trained on."""
LOWEST, HIGHEST = 90.0, 250.0
"""Range of the speakers' fundamentals, Hz."""
MIN_INTERVAL = 1.2
"""Least ratio of the two fundamentals in a mixture."""
VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))
"""First three formants, Hz (Peterson and Barney, 1952, men)."""
MIXTURES_PER_UTTERANCE = {"tr": 1.5, "cv": 1.5, "tt": 1.0}
SHORT, DAMAGED = 2, 5
"""The training utterances whose mouth is a frame short, and whose npz is truncated."""
CAST, PAIRS, FACE, CAMERA, VOICE = range(5)
"""Random streams. Each thing draws from its own, so that nothing depends on what was made before it."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One clip of one speaker; `number` counts through the corpus, `fundamental` is in Hz."""

    number: int
    split: str
    speaker: int
    name: str
    fundamental: float
    num_samples: int
    frames: int
    damaged: bool

    @property
    def mouth(self) -> str:
        return f"mouths/{self.name}.npz"


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Two utterances from their start, until the shorter ends: the first turned up, the second down by `level` dB."""

    first: Utterance
    second: Utterance
    level: float

    def wav(self, kind: str) -> str:
        name = f"{self.first.name}_{self.level:.2f}_{self.second.name}_{-self.level:.2f}.wav"
        return f"audio/{self.first.split}/{kind}/{name}"

    def rows(self) -> dict[str, list[str | int]]:
        """What `mix.json`, `s1.json` and `s2.json` say of it."""
        num_samples = min(self.first.num_samples, self.second.num_samples)
        return {
            "mix": [self.wav("mix"), num_samples],
            "s1": [self.wav("s1"), self.first.mouth, num_samples],
            "s2": [self.wav("s2"), self.second.mouth, num_samples],
        }


def make_corpus(root: Path, seed: int = 0, seconds: float = 2.0, utterances: int = 24) -> None:
    """Write the corpus below `root`. The same arguments write the same bytes; the JSON files come last.

    Args:
        root: Folder, made if missing. It may hold this very corpus already, which is then written again.
        seed: Of all that is drawn, 0 or more.
        seconds: Length of the shorter utterances, at least 1; every third one is up to 0.15 s longer.
        utterances: How many in all, at least 12: two thirds train, a sixth validates, a sixth tests.

    Raises:
        ConfigError: An argument is out of its range, or `root` holds another corpus.
    """
    for name, value, least in (("seed", seed, 0), ("seconds", seconds, 1), ("utterances", utterances, 12)):
        if value < least:
            raise ConfigError(f"toy corpus: {name} is {value}, expected {least} or more")
    members = plan_utterances(seed, seconds, utterances)
    mixtures = plan_mixtures(members, seed)
    _refuse_others(root, members, mixtures)
    voices = {}
    for utterance in members:
        voices[utterance], envelope = speak(utterance, seed)
        _write_mouth(root / utterance.mouth, film(utterance, envelope, seed), utterance.damaged)
    for mixture in mixtures:
        for kind, signal in mix(voices[mixture.first], voices[mixture.second], mixture.level).items():
            (root / mixture.wav(kind)).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(root / mixture.wav(kind), signal, SAMPLE_RATE, subtype="PCM_16")
    _write_manifest(root / "json", mixtures)


def plan_utterances(seed: int, seconds: float, utterances: int) -> list[Utterance]:
    """Cast the speakers, split by split. Each belongs to one split, and has two utterances where they suffice."""
    held_out = utterances // 6
    sizes = {"tr": utterances - 2 * held_out, "cv": held_out, "tt": held_out}
    offset = float(np.random.default_rng([seed, CAST]).uniform())
    members: list[Utterance] = []
    for split, size in sizes.items():
        speakers, first = max(2, size // 2), 1 + max((other.speaker for other in members), default=-1)
        for index in range(size):
            speaker, clip = first + index % speakers, index // speakers
            # Steps of the golden ratio spread any number of voices evenly and keep neighbours far apart.
            pitch = (offset + speaker * (5**0.5 - 1) / 2) % 1
            num_samples = round(seconds * SAMPLE_RATE) + (index % 3 == 0) * (321 + 640 * (index // 3 % 4))
            members.append(
                Utterance(
                    number=len(members),
                    split=split,
                    speaker=speaker,
                    name=f"spk{speaker:02d}_u{clip}",
                    fundamental=LOWEST * (HIGHEST / LOWEST) ** pitch,
                    num_samples=num_samples,
                    frames=num_samples // SAMPLES_PER_FRAME - (len(members) == SHORT),
                    damaged=len(members) == DAMAGED,
                )
            )
    return members


def plan_mixtures(members: list[Utterance], seed: int) -> list[Mixture]:
    """Mix the utterances of each split, at levels up to 2.5 dB either way. Sorted by file name."""
    mixtures = []
    for number, (split, share) in enumerate(MIXTURES_PER_UTTERANCE.items()):
        rng = np.random.default_rng([seed, PAIRS, number])
        own = [utterance for utterance in members if utterance.split == split]
        for first, second in _choose_pairs(own, round(share * len(own)), rng):
            level = float(rng.choice((-1, 1)) * rng.integers(10, 251) / 100)  # never "-0.00"
            mixtures.append(Mixture(first=first, second=second, level=level))
    return sorted(mixtures, key=lambda mixture: mixture.wav("mix"))


def speak(utterance: Utterance, seed: int) -> tuple[Floats, Floats]:
    """Say nothing in particular, in two to five syllables a second with pauses.

    Returns:
        The voice and its envelope (0 to 1), `(num_samples,)` each.
    """
    rng = np.random.default_rng([seed, VOICE, utterance.number])
    time = np.arange(utterance.num_samples) / SAMPLE_RATE
    melody = 1 + 0.05 * np.sin(2 * np.pi * (rng.uniform(0.3, 0.8) * time + rng.uniform()))
    phase = 2 * np.pi * np.cumsum(utterance.fundamental * melody) / SAMPLE_RATE
    buzz, envelope = np.zeros_like(time), np.zeros_like(time)
    start = 0
    while start < len(time) - 0.1 * SAMPLE_RATE:
        syllable = slice(start, min(len(time), start + int(rng.uniform(0.14, 0.28) * SAMPLE_RATE)))
        envelope[syllable] = rng.uniform(0.5, 1.0) * np.sqrt(np.hanning(syllable.stop - start))
        for harmonic, gain in enumerate(_gains(utterance.fundamental, int(rng.integers(len(VOWELS)))), start=1):
            buzz[syllable] += gain * np.sin(harmonic * phase[syllable])
        pause = rng.uniform(0.25, 0.6) if rng.uniform() < 0.35 else rng.uniform(0.03, 0.1)
        start = syllable.stop + int(pause * SAMPLE_RATE)
    # Turned round by any time, so that voices do not all begin with a syllable.
    buzz, envelope = np.roll((buzz, envelope), rng.integers(len(time)), axis=1)
    breath, hiss = rng.standard_normal((2, len(time)))
    return envelope * (buzz + 0.05 * breath) + 0.002 * hiss, envelope


def film(utterance: Utterance, envelope: Floats, seed: int) -> NDArray[np.uint8]:
    """Draw a speaker's lower face; the mouth opens with the mean of the envelope over the frame.

    Returns:
        Mouth frames, `(frames, 96, 96)` grey, with a little camera noise.
    """
    face = np.random.default_rng([seed, FACE, utterance.speaker])
    camera = np.random.default_rng([seed, CAMERA, utterance.number])
    opening = envelope[: utterance.frames * SAMPLES_PER_FRAME].reshape(-1, 1, 1, SAMPLES_PER_FRAME).mean(axis=-1)
    gape = 1.2 + 10 * opening  # half the height of the gap between the lips, pixels
    sway = 1.5 * np.sin(camera.uniform(0.05, 0.12, (2, 1, 1, 1)) * np.arange(utterance.frames)[:, None, None])
    x = PIXELS - sway[0]  # (frames, 1, 96)
    y = PIXELS[:, None] - sway[1] - face.uniform(2, 6) - 0.4 * gape  # (frames, 96, 1): the jaw falls
    width, thickness = face.uniform(24, 28) - 4 * opening, face.uniform(5, 7)
    lip, gap = face.uniform(86, 104) + 8 * np.tanh(y), face.uniform(18, 28)  # the upper lip lies in its own shadow
    picture = _paint_face(face) - 18 * np.exp(-((x / 16) ** 2)) * np.exp(-(((y - gape - thickness - 6) / 4) ** 2))
    picture += (lip - picture) * _ellipse(x, y, width, thickness + gape)
    picture += (gap - picture) * _ellipse(x, y, 0.82 * width, gape)
    picture += camera.normal(0, 1.5, picture.shape)
    return np.asarray(picture.round().clip(0, 255), dtype=np.uint8)


def mix(first: Floats, second: Floats, level: float) -> dict[str, NDArray[np.int16]]:
    """Bring two voices to one loudness, then turn the first up and the second down by `level` dB.

    Returns:
        PCM16 `mix`, `s1` and `s2`, as long as the shorter voice; the mixture is the exact sum of its sources.
    """
    num_samples = min(len(first), len(second))
    voices = [voice[:num_samples] / np.sqrt(np.mean(voice[:num_samples] ** 2)) for voice in (first, second)]
    loud, soft = voices[0] * 10 ** (level / 20), voices[1] * 10 ** (-level / 20)
    scale = PEAK * 32767 / max(np.abs(signal).max() for signal in (loud, soft, loud + soft))
    s1, s2 = ((scale * signal).round().astype(np.int16) for signal in (loud, soft))
    return {"mix": s1 + s2, "s1": s1, "s2": s2}


def _choose_pairs(own: list[Utterance], count: int, rng: np.random.Generator) -> list[tuple[Utterance, Utterance]]:
    """Pair unlike voices so that all serve about equally often. There may be fewer than `count` pairs."""
    pool = [pair for pair in permutations(own, 2) if _unlike(*pair)]
    rng.shuffle(pool)
    used: Counter[object] = Counter()
    chosen = []
    for _ in range(min(count, len(pool))):
        costs = [(used[frozenset(pair)], used[pair[0]] + used[pair[1]]) for pair in pool]
        chosen.append(pool.pop(costs.index(min(costs))))
        used.update((*chosen[-1], frozenset(chosen[-1])))
    return chosen


def _unlike(one: Utterance, other: Utterance) -> bool:
    low, high = sorted((one.fundamental, other.fundamental))
    return one.speaker != other.speaker and high / low >= MIN_INTERVAL


def _gains(fundamental: float, vowel: int) -> Floats:
    """Amplitudes of a vowel's harmonics up to 5 kHz, of power 1 together; higher voices have shorter vocal tracts."""
    harmonics = np.arange(1, int(5000 / fundamental))
    formants = np.array(VOWELS[vowel])[:, None] * (fundamental / 120) ** 0.2
    resonance = (1 / (1 + ((harmonics * fundamental - formants) / 120) ** 2)).sum(axis=0)
    gains = (0.05 + resonance) / harmonics**0.7
    return np.asarray(gains / np.sqrt((gains**2).sum() / 2))


def _paint_face(face: np.random.Generator) -> Floats:
    """Mottled skin lit from above, nostrils, and the dark beside the jaw, `(96, 96)`."""
    x, y = PIXELS, PIXELS[:, None]
    picture = face.uniform(135, 160) + 12 * np.cos(x / 40) - 0.15 * y
    for slope_x, slope_y, turn in face.uniform((-0.3, -0.3, 0), (0.3, 0.3, 6.3), (6, 3)):
        picture += 1.5 * np.cos(slope_x * x + slope_y * y + turn)
    nostrils = np.exp(-(((np.abs(x) - 7) / 3.5) ** 2)) * np.exp(-(((y + 28) / 2.2) ** 2))
    return np.asarray(70 + (picture - 60 * nostrils - 70) * _ellipse(x, y + 16, 50, 62))


def _ellipse(x: Floats, y: Floats, half_width: Floats | float, half_height: Floats | float) -> Floats:
    """1 inside, 0 outside, with a soft edge."""
    return np.asarray(np.clip(0.5 + 4 * (1 - np.sqrt((x / half_width) ** 2 + (y / half_height) ** 2)), 0, 1))


def _write_mouth(path: Path, frames: NDArray[np.uint8], damaged: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, data=frames)
    if damaged:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])


def _write_manifest(folder: Path, mixtures: list[Mixture]) -> None:
    for split in MIXTURES_PER_UTTERANCE:
        (folder / split).mkdir(parents=True, exist_ok=True)
        own = [mixture.rows() for mixture in mixtures if mixture.first.split == split]
        for kind in ("mix", "s1", "s2"):
            text = json.dumps([rows[kind] for rows in own], indent=4) + "\n"
            (folder / split / f"{kind}.json").write_bytes(text.encode())


def _refuse_others(root: Path, members: list[Utterance], mixtures: list[Mixture]) -> None:
    """Two corpora in one folder would look like one to whoever lists it."""
    own = {root / utterance.mouth for utterance in members}
    own |= {root / mixture.wav(kind) for mixture in mixtures for kind in ("mix", "s1", "s2")}
    found = [*(root / "mouths").rglob("*.npz"), *(root / "audio").rglob("*.wav")]
    if others := sorted(set(found) - own):
        raise ConfigError(
            f"{root}: holds {others[0].relative_to(root)} of another corpus, expected nothing or an earlier run of "
            "this one: delete the folder or name another"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a small audio-visual corpus in IIANet's layout, from a seed.")
    parser.add_argument("root", metavar="DIR", type=Path, help="folder to make it in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of the shorter utterances")
    parser.add_argument("--utterances", type=int, default=24, help="how many in all, 12 or more")
    options = parser.parse_args()
    try:
        make_corpus(**vars(options))
    except ConfigError as error:
        parser.error(str(error))
    members = plan_utterances(options.seed, options.seconds, options.utterances)
    mixtures = plan_mixtures(members, options.seed)
    print(f"{options.root}: toy corpus, seed {options.seed}")
    for split in MIXTURES_PER_UTTERANCE:
        own = [utterance for utterance in members if utterance.split == split]
        count = sum(mixture.first.split == split for mixture in mixtures)
        print(f"  {split}: {len(own)} utterances of {len({u.speaker for u in own})} speakers, {count} mixtures")
    print(f"  a frame short of its audio, on purpose: {members[SHORT].mouth}")
    print(f"  a truncated zip, on purpose: {members[DAMAGED].mouth}")


if __name__ == "__main__":
    main()
