"""mix.json, s1.json and s2.json of a split, out of its folders of wavs; and what is left out of them.

Rows, their order and the bytes are those of IIANet's process_lrs23.py and process_vox2.py (JusperLee/IIANet,
DataPreProcess): file names sorted, `json.dump` with an indent of 4.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from iianet.errors import AudioError, ConfigError
from iianet.wording import printable
from shardwriter.prepare.mixture_name import Utterances, parse_mixture_name
from shardwriter.prepare.output import make_folder, writing
from shardwriter.prepare.recordings import KINDS, Recordings

LEFT_OUT_FILE = "left_out.tsv"
"""What lies beside the lists: the mixtures that they leave out, and why."""
NOT_IN_ALL = "not in all of mix, s1 and s2"
NO_NAME = "with a name that does not tell its utterances"
NO_MOUTH = "without a mouth"
BAD_WAV = "with a wav that cannot be opened, or is not mono at 16 kHz"
OTHER_LENGTH = "whose mix, s1 and s2 differ in length"
PROBLEMS = (NOT_IN_ALL, NO_NAME, NO_MOUTH, BAD_WAV, OTHER_LENGTH)
MOUTH = ".npz"
NAMES_EXPECTED = (
    "expected <utterance>_<snr>_<utterance>_<snr>.wav, an utterance being <video>_<clip> (lrs2, lrs3) or "
    "<id>_<video>_<clip> (vox2)"
)


class Mixture(NamedTuple):
    """A mixture that is listed: the name of its wavs, its utterances, and its length in samples."""

    name: str
    utterances: Utterances
    num_samples: int


class LeftOut(NamedTuple):
    """One reason why a mixture is not listed: the name of its wavs, one of `PROBLEMS`, and what was found."""

    name: str
    problem: str
    found: str


@dataclass(frozen=True, kw_only=True)
class SplitLists:
    """The lists of a split.

    Attributes:
        recordings: The split's wavs.
        mixtures: What is listed, sorted by name.
        left_out: What is not, and every reason for it, sorted by name.
    """

    recordings: Recordings
    mixtures: Sequence[Mixture]
    left_out: Sequence[LeftOut]

    @property
    def split(self) -> str:
        """tr, cv or tt."""
        return self.recordings.split

    def write(self, folder: Path, mouths: Path, place: Callable[[str], str]) -> None:
        """Write mix.json, s1.json, s2.json and left_out.tsv.

        Args:
            folder: Of the split's lists, made if missing.
            mouths: Folder of the mouths.
            place: Turns an absolute path into what the lists call it.

        Raises:
            OutputError: A file cannot be written.
        """
        make_folder(folder)
        prefixes = {kind: os.path.join(place(wavs), "") for kind, wavs in self.recordings.folders.items()}
        npz = os.path.join(place(os.path.abspath(mouths)), "")
        rows: dict[str, list[list[str | int]]] = {kind: [] for kind in KINDS}
        for name, utterances, num_samples in self.mixtures:
            rows["mix"].append([prefixes["mix"] + name, num_samples])
            for kind, utterance in zip(("s1", "s2"), utterances, strict=True):
                rows[kind].append([prefixes[kind] + name, f"{npz}{utterance}{MOUTH}", num_samples])
        lines = ["mixture\tproblem\tfound", *("\t".join(map(_cell, reason)) for reason in self.left_out)]
        with writing(folder / LEFT_OUT_FILE) as stream:
            stream.write("".join(f"{line}\n" for line in lines).encode())
        for kind, own in rows.items():
            with writing(folder / f"{kind}.json") as stream:
                stream.write(json.dumps(own, indent=4).encode())


def list_split(recordings: Recordings, corpus: str, mouths: frozenset[str]) -> SplitLists:
    """Find out which mixtures of a split can be listed, and what is wrong with the others.

    Args:
        recordings: The split's wavs.
        corpus: Whose names the utterances have, see `parse_mixture_name`.
        mouths: Names of the files in the folder of mouths.
    """
    names = {name: parse_mixture_name(name, corpus) for name in recordings.all_names}
    left_out: list[LeftOut] = []
    for name, utterances in names.items():
        left_out += [LeftOut(name, *reason) for reason in _without_opening(recordings, name, utterances, mouths)]
    mixtures, unusable = [], {reason.name for reason in left_out}
    for name, found in recordings.headers([name for name in names if len(recordings.folders_with(name)) == len(KINDS)]):
        reasons = list(_by_headers(found))
        left_out += [LeftOut(name, *reason) for reason in reasons]
        utterances, num_samples = names[name], found[0]
        if not reasons and name not in unusable and utterances is not None and isinstance(num_samples, int):
            mixtures.append(Mixture(name, utterances, num_samples))
    return SplitLists(recordings=recordings, mixtures=mixtures, left_out=sorted(left_out))


def _without_opening(
    recordings: Recordings, name: str, utterances: Utterances | None, mouths: frozenset[str]
) -> Iterator[tuple[str, str]]:
    """Problems of a mixture that its name and the folders tell."""
    there = recordings.folders_with(name)
    if len(there) < len(KINDS):
        yield (
            NOT_IN_ALL,
            f"in {' and '.join(there)}; not in {' and '.join(kind for kind in KINDS if kind not in there)}",
        )
    if utterances is None:
        yield (
            NO_NAME,
            NAMES_EXPECTED,
        )
        return
    for utterance in dict.fromkeys(utterances):
        if f"{utterance}{MOUTH}" not in mouths:
            yield NO_MOUTH, f"no {utterance}{MOUTH}"


def _by_headers(found: Sequence[int | AudioError]) -> Iterator[tuple[str, str]]:
    """Problems of a mixture that the headers of its three wavs tell."""
    bad = [error for error in found if isinstance(error, AudioError)]
    yield from ((BAD_WAV, str(error)) for error in bad)
    if not bad and len(set(found)) > 1:
        yield OTHER_LENGTH, ", ".join(f"{kind} has {count:,} samples" for kind, count in zip(KINDS, found, strict=True))


def mouths_in(folder: Path) -> frozenset[str]:
    """Names of the files in the folder of mouths. Raises ConfigError where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.name.endswith(MOUTH) and entry.is_file())
    except OSError as error:
        raise ConfigError(
            f"--mouths {folder}: cannot be listed ({error.strerror}); expected the folder of the mouths, one "
            f"<utterance>{MOUTH} each"
        ) from error


def places_below(data_root: Path | None) -> Callable[[str], str]:
    """Make what turns an absolute path into what the lists call it.

    Args:
        data_root: Folder that the lists' paths are to be relative to; None leaves them absolute.
    """
    if data_root is None:
        return str
    root = os.path.abspath(data_root)

    def place(path: str) -> str:
        relative = os.path.relpath(path, root)
        if relative.split(os.sep)[0] == os.pardir:
            raise ConfigError(
                f"--data_root {root}: {path} lies outside; expected a folder that all wavs and mouths lie below"
            )
        return "" if relative == os.curdir else relative

    return place


def _cell(text: str) -> str:
    """Text that is one cell of a table."""
    return printable(text, keep="")
