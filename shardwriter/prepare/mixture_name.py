"""Names of mixtures: `<utterance>_<snr>_<utterance>_<snr>.wav`, of two utterances and their levels in dB.

    6330311066473698535_00011_0.53084_6339356267468615354_00010_-0.53084.wav      lrs2
    gZpcTVqpaPw_50001_2.1607_3GFG6Cvy9HQ_50005_-2.1607.wav                        lrs3
    id00017_01dfn2spqyE_00001_2.1607_id00018_5_-_abcdefg_00005_-2.1607.wav        vox2

Names are read from their first sign to their last: ids of videos may hold `_` and `-`, and what looks like the name of
another utterance.
"""

import math
import re
from typing import NamedTuple

from iianet.config.utterance_names import NAMES

WAV = ".wav"
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?")
_DIGITS = 5
"""Significant digits of an SNR between -10 and 10 dB; see `snr_text`."""


class Utterances(NamedTuple):
    """Names of the two utterances of a mixture, in the order of its sources s1 and s2."""

    first: str
    second: str


def parse_mixture_name(name: str, corpus: str) -> Utterances | None:
    """Read the name of a mixture.

    Args:
        name: Of the wav, with its suffix.
        corpus: Whose names the utterances have: a key of `NAMES`.

    Returns:
        Its utterances; None where it has no such name, or one that can be read in several ways.
    """
    if not name.endswith(WAV):
        return None
    readings = _readings(name.removesuffix(WAV), re.compile(NAMES[corpus]))
    if len(readings) > 1:  # published mixtures have opposite levels
        readings = {reading: gap for reading, gap in readings.items() if gap == 0}
    return next(iter(readings)) if len(readings) == 1 else None


def _readings(stem: str, utterance: re.Pattern[str]) -> dict[Utterances, float]:
    """All ways to read a name, each with the sum of its two SNRs."""
    parts = stem.split("_")
    *others, last = parts
    found = {}
    for place, part in enumerate(others):
        reading = Utterances("_".join(others[:place]), "_".join(others[place + 1 :]))
        if _NUMBER.fullmatch(part) and _NUMBER.fullmatch(last) and all(map(utterance.fullmatch, reading)):
            found[reading] = float(part) + float(last)
    return found


def mixture_name(utterances: Utterances, first_snr: float, second_snr: float) -> str:
    """Name of a mixture, with its suffix.

    Args:
        utterances: Names of its utterances.
        first_snr: Level of the first, dB.
        second_snr: Level of the second, dB.
    """
    return f"{utterances.first}_{snr_text(first_snr)}_{utterances.second}_{snr_text(second_snr)}{WAV}"


def snr_text(snr: float) -> str:
    """A level as MATLAB's `num2str` writes it, which named the published mixtures: `2.16068` is `2.1607`.

    Whole numbers have no point, others five significant digits, and one more for each digit before the point beyond
    the first.
    """
    if snr == int(snr):
        return str(int(snr))
    beyond = max(0, math.floor(math.log10(abs(snr))))
    return f"{snr:.{_DIGITS + beyond}g}"
