"""The command separate-iianet: one wav for each speaker of a recording of any length, by a trained separator."""

if __name__ == "__main__":  # `python -m`, before the imports, as in iianet_cli/entry.py
    from iianet.interruption import main_of

    main_of("iianet_cli.separate_cli")()

import argparse
import logging
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from iianet.command_line import Parser, add_config_flags, at_least_one, at_least_zero, command, config_overrides
from iianet.encoder.mouth import SAMPLE_RATE
from iianet.encoder.protocol import Encoder
from iianet.encoder.source import EncoderSource
from iianet.errors import ConfigError
from iianet.inference.estimate_wav import EstimateWav, WavForm, refuse_without_room, writing
from iianet.inference.long_mouths import encode_long, refuse_other_length
from iianet.inference.recording import Recording, look_through
from iianet.inference.separation import WindowSeparator
from iianet.inference.trained import CONF_FILE, warn_of_other_level, warn_of_other_rows
from iianet.inference.windows import SHORTEST, Windows
from iianet.interruption import terminable
from iianet.launch import choose_device
from iianet.paths import expand_path
from iianet.terminal import say
from iianet.wording import counted
from iianet_cli.flags import add_checkpoint_flag, add_device_flag, add_trust_flag
from iianet_cli.separator import FRAME_TOLERANCE, NamedSeparator
from iianet_cli.speakers import Mouth, Speaker, add_speaker_flags, file_stems, read_speakers

WINDOW = 8.0
"""Seconds of a window. Four times what the published networks were trained on, so that a norm over a window is nearly
one over the whole; longer ones gain little, and take more memory: 8 s of a published network take 0.9 GB on a CPU."""
GPU_BATCH = 4
"""Windows that go through the network together on a GPU; on a CPU one does."""
QUIET = 1e-3
"""Peak below which the norms' smallest variance, 1e-8, is no longer small beside that of the mixture: a small trained
network separated 0.4 dB worse at this peak, and 1.8 dB at a tenth of it."""

logger = logging.getLogger(__name__)


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog,
        description="Separate the speakers of a recording of any length: one wav for each mouth. Exit codes: 0 all "
        "written; 2 could not start or continue; 130 and 143 stopped by Ctrl-C and SIGTERM. A wav is there whole or "
        "not at all.",
        example=f"{prog} --checkpoint Experiments/checkpoint/toy/best_model.pth --mixture talk.wav --mouth anna.npz "
        "ben.npz --out talk-separated",
    )
    add_checkpoint_flag(parser)
    parser.add_argument(
        "--mixture",
        required=True,
        metavar="WAV",
        help="recording: a wav, a flac, or another file that libsndfile reads, of any length, rate and number of "
        "channels",
    )
    add_speaker_flags(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="folder of the estimates, NAME.wav each (default: separated/<name of the mixture>)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace wavs that are there already, of an earlier run or of others"
    )
    parser.add_argument(
        "--own_rate", action="store_true", help="write the estimates at the mixture's own rate (default: 16 kHz)"
    )
    add_config_flags(parser, default=f"{CONF_FILE} beside the checkpoint; embeddings need none")
    add_device_flag(parser)
    parser.add_argument(
        "--window",
        type=float,
        default=WINDOW,
        metavar="SECONDS",
        help=f"length of the windows that a longer recording is separated in (default {WINDOW:g})",
    )
    parser.add_argument(
        "--batch_size",
        type=at_least_one,
        metavar="N",
        help=f"windows that go through the network together (default: 1 on a CPU, {GPU_BATCH} on a GPU)",
    )
    parser.add_argument(
        "--frame_tolerance",
        type=at_least_zero,
        metavar="FRAMES",
        help="frames by which a mouth may be longer or shorter than the mixture (default: the config's, else "
        f"{FRAME_TOLERANCE})",
    )
    add_trust_flag(parser)
    return parser


def _run(argv: list[str], prog: str) -> int:
    arguments = _parser(prog).read(argv)
    device = choose_device(arguments.device)
    separator = NamedSeparator.of(arguments, config_overrides(arguments))
    accept = partial(separator.accept, trusts_imported=arguments.trust_imported)
    speakers = read_speakers(arguments.speakers, separator.dim, separator.cache, accept)
    separator.refuse_embeddings_of_other_rows(speakers)
    mouths = [speaker for speaker in speakers if isinstance(speaker, Mouth)]
    source = separator.encoder_of(mouths[0].word) if mouths else None
    recording = look_through(expand_path(arguments.mixture))
    form = WavForm.like(recording, arguments.own_rate)
    _tell(recording, form)
    spf = separator.samples_per_frame
    windows = Windows.over(recording.num_samples, spf, _window_frames(arguments.window, spf))
    tolerance = separator.frame_tolerance if arguments.frame_tolerance is None else arguments.frame_tolerance
    for speaker in speakers:
        refuse_other_length(speaker.word, speaker.frames(), recording.num_samples, spf, tolerance)
    paths = _paths(arguments, recording, speakers)
    refuse_without_room(paths[0].parent, len(paths) * form.most_bytes)
    warn_of_other_rows(separator.trained, separator.config)
    warn_of_other_level(separator.trained)
    with terminable():
        embeddings = _embeddings(speakers, source, device)
        network = WindowSeparator(
            network=separator.trained.model.to(device),
            device=device,
            batch_size=arguments.batch_size or (1 if device.type == "cpu" else GPU_BATCH),
            normalises=separator.normalises,
        )
        wavs = _separate(network, recording, embeddings, windows, paths, form)
    say(_table(speakers, wavs))
    return 0


def _window_frames(seconds: float, samples_per_frame: int) -> int:
    """Mouth frames of a window. Raises ConfigError where they are too few."""
    shortest = SHORTEST * samples_per_frame / SAMPLE_RATE
    if not shortest <= seconds < float("inf"):
        raise ConfigError(f"--window {seconds:g}: expected {shortest:g} seconds or more")
    return round(seconds * SAMPLE_RATE / samples_per_frame)


def _tell(recording: Recording, form: WavForm) -> None:
    """Say what is done to a mixture before it is heard, and what that means for the estimates."""
    if recording.changes:
        rate = "" if form.rate == recording.rate else "; --own_rate gives them its own rate"
        logger.info(
            "%s: %s. The estimates have one channel of %s at %d Hz%s",
            recording.path,
            " and ".join(recording.changes),
            counted(form.num_samples, "sample"),
            form.rate,
            rate,
        )
    if recording.peak == 0:
        logger.warning("%s: is silent from its start to its end, and so are the estimates", recording.path)
    elif recording.peak < QUIET:
        logger.warning(
            "%s: is very quiet, %.0f dB at its peak; below about %.0f dB the separator's norms are not exact, and "
            "estimates are worse. Turn it up, as floats, and separate it again",
            recording.path,
            20 * math.log10(recording.peak),
            20 * math.log10(QUIET),
        )


def _paths(arguments: argparse.Namespace, recording: Recording, speakers: Sequence[Speaker]) -> list[Path]:
    """Where the estimates go. Raises ConfigError where one would take the place of the mixture."""
    folder = expand_path(arguments.out) if arguments.out else Path("separated", recording.path.stem)
    paths = [folder / f"{stem}.wav" for stem in file_stems(speaker.name for speaker in speakers)]
    for path in paths:
        if path.exists() and os.path.samefile(path, recording.path):
            raise ConfigError(f"--out {folder}: {path} is the mixture itself; choose another folder")
        if os.path.lexists(path) and not arguments.overwrite:
            raise ConfigError(f"{path}: exists; give another folder, --out DIR, or --overwrite to replace it")
    return paths


def _embeddings(speakers: Sequence[Speaker], source: EncoderSource | None, device: torch.device) -> list[Tensor]:
    """The embeddings of all speakers, `(dim, frames)` each, on the CPU; the encoder is loaded for mouths alone."""
    encoder: Encoder | None = source.load(device) if source else None
    seen = sum(speaker.frames() for speaker in speakers if isinstance(speaker, Mouth))
    with tqdm(total=seen, desc="encoding mouths", unit="frame", delay=1.0, dynamic_ncols=True) as bar:

        def encode(frames: npt.NDArray[np.uint8]) -> Tensor:
            assert encoder is not None
            return encode_long(encoder, frames, device, bar.update)

        return [speaker.embedding(encode) for speaker in speakers]


def _separate(
    separator: WindowSeparator,
    recording: Recording,
    embeddings: Sequence[Tensor],
    windows: Windows,
    paths: Sequence[Path],
    form: WavForm,
) -> list[EstimateWav]:
    """Separate a recording into wavs. Raises ConfigError where the windows do not fit into the GPU's memory."""
    with ExitStack() as opened:
        bar = opened.enter_context(
            tqdm(total=len(windows.starts), desc="separating", unit="window", delay=1.0, dynamic_ncols=True)
        )
        wavs = [opened.enter_context(writing(path, form)) for path in paths]
        try:
            for estimates in separator.separate(recording.blocks(), embeddings, windows):
                for wav, samples in zip(wavs, estimates, strict=True):
                    wav.write(samples)
                bar.update()
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"{counted(separator.batch_size, 'window')} of {windows.length} mouth frames do not fit into the "
                "memory of the GPU; give a smaller --batch_size or --window"
            ) from error
    return wavs


def _table(speakers: Sequence[Speaker], wavs: Sequence[EstimateWav]) -> str:
    rows = [
        (
            speaker.word,
            wav.path,
            f"{wav.form.seconds:.2f} s",
            wav.form.rate,
            wav.subtype,
            f"{wav.decibels:.1f} dB",
        )
        for speaker, wav in zip(speakers, wavs, strict=True)
    ]
    return tabulate(rows, headers=["speaker", "estimate", "length", "Hz", "samples", "peak"], disable_numparse=True)


main = command(_run, "separate-iianet")
"""Start the command."""
