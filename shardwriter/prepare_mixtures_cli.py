"""The command prepare-mixtures."""

if __name__ == "__main__":  # `python -m`, before the imports, as in iianet_cli/entry.py
    from iianet.interruption import main_of

    main_of("shardwriter.prepare_mixtures_cli")()

from pathlib import Path

from iianet.command_line import SOME_FAILED, Parser, at_least_one, command
from iianet.interruption import terminable
from iianet.launch import usable_cores
from iianet.paths import expand_path
from iianet.terminal import complain, say
from iianet.wording import counted, listing
from shardwriter.prepare.mixing import FAILED_FILE, Failed, Outcome, make_mixtures
from shardwriter.prepare.mixing_list import read_mixing_list, refuse_missing
from shardwriter.prepare.speech_level import LEVELS

ALL_MADE = 0


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog,
        description="Make the mixtures of a published list, lines of `wav1 snr1 wav2 snr2`, from single recordings: "
        "mix, s1 and s2 of each. Run again, it resumes: what is there whole is not made again. Exit codes: 0 all made; "
        "3 finished, but some failed; 2 could not start or continue; 130 and 143 stopped by SIGINT and SIGTERM, with "
        "every file whole.",
        example=f"{prog} --list mix_2_spk_tr.scp --audio /data/lrs2/wavs --out /data/lrs2/audio/tr",
    )
    parser.add_argument(
        "--list", required=True, type=expand_path, metavar="FILE", help="list of mixtures, such as mix_2_spk_tr.scp"
    )
    parser.add_argument(
        "--audio",
        required=True,
        type=expand_path,
        metavar="DIR",
        help="folder that relative paths in the list start from",
    )
    parser.add_argument(
        "--list_root",
        metavar="DIR",
        help="folder of another machine that absolute paths in the list lie below; --audio stands for it here",
    )
    parser.add_argument(
        "--out", required=True, type=expand_path, metavar="DIR", help="folder for {mix,s1,s2}/*.wav, one for each list"
    )
    parser.add_argument(
        "--level",
        choices=list(LEVELS),
        default="published",
        help="how the active speech level (ITU-T P.56, method B) of a recording is measured: as the published mixtures "
        "were made, at 8 kHz above 200 Hz (default), or of the recording as it is, as the standard's own software does",
    )
    parser.add_argument(
        "--num_processes", type=at_least_one, metavar="N", help="processes (default: as many as there are cores)"
    )
    return parser


def _run(argv: list[str], prog: str) -> int:
    arguments = _parser(prog).read(argv)
    pairs = read_mixing_list(arguments.list, arguments.audio, arguments.list_root)
    refuse_missing(pairs, arguments.list, arguments.audio)
    num_processes = min(arguments.num_processes or usable_cores(), len(pairs))
    with terminable():
        try:
            outcome = make_mixtures(pairs, arguments.out, arguments.level, num_processes)
        except KeyboardInterrupt:
            complain(f"Stopped. Every wav in {arguments.out} is whole, and the same command resumes.")
            raise
    say("\n".join(_lines(outcome, arguments.out)))
    return SOME_FAILED if outcome.failed else ALL_MADE


def _lines(outcome: Outcome, folder: Path) -> list[str]:
    """What became of the mixtures, for people."""

    def show(one: Failed) -> str:
        return f"{one.name}: {one.reason}"

    there = f", {outcome.there:,} were there already" if outcome.there else ""
    return [
        f"{counted(outcome.made, 'mixture')} made{there}",
        *listing("Failed ({}); fix the wavs and run it again:", outcome.failed, f"in {folder / FAILED_FILE}", show),
        "",
        f"mixtures: {folder}",
    ]


main = command(_run, "prepare-mixtures")
"""Start the command."""
