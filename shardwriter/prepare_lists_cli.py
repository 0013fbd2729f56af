"""The command prepare-lists."""

if __name__ == "__main__":  # `python -m`, before the imports, as in iianet_cli/entry.py
    from iianet.interruption import main_of

    main_of("shardwriter.prepare_lists_cli")()

import argparse
import os
from collections.abc import Sequence

from iianet.command_line import SOME_FAILED, Parser, command
from iianet.config.utterance_names import NAMES
from iianet.interruption import terminable
from iianet.paths import expand_path
from iianet.terminal import say
from iianet.wording import nearest
from shardwriter.prepare.list_report import refuse_empty, report_lines
from shardwriter.prepare.output import make_folder
from shardwriter.prepare.recordings import Recordings
from shardwriter.prepare.split_lists import SplitLists, list_split, mouths_in, places_below

ALL_LISTED = 0
SPLITS = ("tr", "cv", "tt")


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog,
        description="Make mix.json, s1.json and s2.json of each split from the folders of its mixtures, as IIANet's "
        "process_lrs23.py and process_vox2.py do. What cannot be used is left out of all three, shown, and listed in "
        "left_out.tsv beside them. Exit codes: 0 all listed; 3 finished, but some mixtures are left out; 2 nothing was "
        "written, or not all; 130 and 143 stopped by SIGINT and SIGTERM.",
        example=f"{prog} lrs2 --audio /data/lrs2/audio/wav16k/min --mouths /data/lrs2/mouths --out DataPreProcess/LRS2",
    )
    parser.add_argument(
        "corpus",
        choices=list(NAMES),
        help="whose names the utterances have: <video>_<clip> in lrs2 and lrs3, idNNNNN_<video>_NNNNN in vox2",
    )
    parser.add_argument(
        "--audio", required=True, type=expand_path, metavar="DIR", help="folder with {tr,cv,tt}/{mix,s1,s2}/*.wav"
    )
    parser.add_argument(
        "--mouths", required=True, type=expand_path, metavar="DIR", help="folder with <utterance>.npz of all splits"
    )
    parser.add_argument(
        "--out",
        required=True,
        type=expand_path,
        metavar="DIR",
        help="folder for {tr,cv,tt}/{mix,s1,s2}.json; lists that are there are replaced",
    )
    parser.add_argument(
        "--splits",
        type=_splits,
        default=SPLITS,
        metavar="SPLIT",
        help="tr, cv or tt, or some of them with commas between (default: all)",
    )
    parser.add_argument(
        "--data_root",
        type=expand_path,
        metavar="DIR",
        help="write paths relative to this folder, which --data_root of the other commands, or the config's data_root, "
        "then names (default: absolute paths, as IIANet's scripts write them)",
    )
    return parser


def _run(argv: list[str], prog: str) -> int:
    arguments = _parser(prog).read(argv)
    place = places_below(arguments.data_root)
    for folder in (arguments.audio, arguments.mouths):
        place(os.path.abspath(folder))  # one outside data_root is refused before anything is read
    with terminable():
        found = [Recordings.find(arguments.audio, split) for split in arguments.splits]
        mouths = mouths_in(arguments.mouths)
        make_folder(arguments.out)
        lists = [list_split(recordings, arguments.corpus, mouths) for recordings in found]
        refuse_empty(lists)
        for one in lists:
            one.write(arguments.out / one.split, arguments.mouths, place)
    say("\n".join([*report_lines(lists, arguments.out), "", *_hints(lists, arguments)]))
    return SOME_FAILED if any(one.left_out for one in lists) else ALL_LISTED


def _hints(lists: Sequence[SplitLists], arguments: argparse.Namespace) -> list[str]:
    """Where the lists are, and what else a later command must be told."""
    root = arguments.data_root
    flag = [f"give other commands --data_root {os.path.abspath(root)}"] if root is not None else []
    return [f"lists: {', '.join(str(arguments.out / one.split) for one in lists)}", *flag]


def _splits(text: str) -> tuple[str, ...]:
    """Read --splits."""
    words = text.split(",")
    for word in words:
        if word not in SPLITS:
            near = nearest(word, SPLITS)
            meant = f"; did you mean {near}?" if near else ""
            raise argparse.ArgumentTypeError(f"found {word!r}, expected some of {', '.join(SPLITS)}{meant}")
    return tuple(split for split in SPLITS if split in words)


main = command(_run, "prepare-lists")
"""Start the command."""
