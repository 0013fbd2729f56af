"""Lists of mixtures to make, as wsj0-2mix, LRS2-2Mix and LRS3's have them: `wav1 snr1 wav2 snr2`, one mixture a line.

test/TRajLqEaWhQ_00002.wav 1.93234 test/LYCKzpXEW6E_00003.wav -1.93234
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from iianet.errors import ManifestError
from iianet.regular_file import content_of
from shardwriter.prepare.mixture_name import Utterances, mixture_name

FIELDS = 4
MOST_BYTES = 1 << 30
"""Bytes of the longest list that is read: millions of mixtures."""
MOST_DB = 100.0
"""Highest level that a line may ask for, and lowest: what is beyond is no level in dB."""
PROBED = 8
"""Lines of which one wav must exist, else nothing is made."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A mixture to make.

    Attributes:
        name: Of its wavs.
        wavs: Of the two utterances.
        snrs: Their levels, dB.
    """

    name: str
    wavs: tuple[Path, Path]
    snrs: tuple[float, float]


def read_mixing_list(path: Path, audio: Path, list_root: str | None = None) -> list[Pair]:
    """Read a list.

    Args:
        path: Of the list.
        audio: Folder that relative paths start from.
        list_root: Folder that absolute paths of the list lie below, for which `audio` stands here; None takes them as
            they are.

    Returns:
        Its mixtures in its order, those that are listed twice once.

    Raises:
        ManifestError: It cannot be read, a line is none, or two of its lines make one name.
    """
    pairs: dict[str, Pair] = {}
    for number, words in _lines(path):
        try:
            pair = _pair(words, audio, list_root)
        except ValueError as error:
            raise ManifestError(f"{path}: line {number}: {error}") from error
        if pairs.setdefault(pair.name, pair) != pair:
            raise ManifestError(
                f"{path}: line {number}: {pair.name} is the name of an earlier line's mixture too, which has other "
                "wavs or levels; expected one mixture of each name. Make two lists, with an --out folder each"
            )
    if not pairs:
        raise ManifestError(f"{path}: has no line; expected lines of `wav1 snr1 wav2 snr2`")
    return list(pairs.values())


def refuse_missing(pairs: Sequence[Pair], path: Path, audio: Path) -> None:
    """Raise ManifestError where none of a list's first wavs exists: that is no lost file, but a wrong folder."""
    wavs = [wav for pair in pairs[:PROBED] for wav in pair.wavs]
    if not any(wav.exists() for wav in wavs):
        elsewhere = {wav.parent for pair in pairs for wav in pair.wavs if not wav.is_relative_to(audio)}
        cure = "correct --audio"
        if elsewhere:
            common = os.path.commonpath(elsewhere)
            cure = f"for the paths of another machine say what --audio stands for, such as --list_root {common}"
        raise ManifestError(
            f"{path}: none of its first {len(wavs)} wavs exists, e.g. {wavs[0]}. Relative paths start at "
            f"{audio}; {cure}"
        )


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and words of each line that is not empty."""
    try:
        content, _ = content_of(path, MOST_BYTES)
    except OSError as error:
        raise ManifestError(
            f"{path}: cannot be read ({error.strerror}); expected a list of mixtures, such as mix_2_spk_tr.scp"
        ) from error
    for number, line in enumerate(content.decode("utf-8", "surrogateescape").split("\n"), start=1):
        if words := line.split():
            yield number, words


def _pair(words: list[str], audio: Path, list_root: str | None) -> Pair:
    """The mixture of a line. Raises ValueError where it is none."""
    if len(words) != FIELDS:
        raise ValueError(f"found {len(words)} words, {' '.join(words)[:80]!r}; expected `wav1 snr1 wav2 snr2`")
    wavs = (_located(words[0], audio, list_root), _located(words[2], audio, list_root))
    snrs = (_snr(words[1]), _snr(words[3]))
    return Pair(name=mixture_name(Utterances(wavs[0].stem, wavs[1].stem), *snrs), wavs=wavs, snrs=snrs)


def _located(word: str, audio: Path, list_root: str | None) -> Path:
    """Where a wav of the list lies here."""
    if "\0" in word:
        raise ValueError(f"found a path with a zero byte, {word[:80]!r}; expected the path of a wav")
    if list_root is None or not os.path.isabs(word):
        return audio / word
    relative = os.path.relpath(word, list_root)
    if relative.split(os.sep)[0] == os.pardir:
        raise ValueError(f"{word} lies outside {list_root}, which --list_root says all its wavs lie below")
    return audio / relative


def _snr(word: str) -> float:
    """A level. Raises ValueError where it is no number of decibels."""
    try:
        snr = float(word)
    except ValueError:
        snr = math.nan
    if not abs(snr) <= MOST_DB or "_" in word:
        raise ValueError(f"found {word!r} as a level; expected a number of decibels, from -{MOST_DB:g} to {MOST_DB:g}")
    return snr
