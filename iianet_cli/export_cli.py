"""The command export-iianet: a checkpoint's separator as a model file, such as best_model.pth."""

if __name__ == "__main__":  # `python -m`, before the imports, as in iianet_cli/entry.py
    from iianet.interruption import main_of

    main_of("iianet_cli.export_cli")()

import os
from pathlib import Path

from iianet.command_line import Parser, command
from iianet.errors import ConfigError
from iianet.inference.trained import open_trained
from iianet.paths import expand_path
from iianet.terminal import say
from iianet.training.results import save_model
from iianet.training.resume import as_texts

MODEL_SUFFIX = ".pth"


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog,
        description="Write the separator of any checkpoint as train.py writes that of the best one to best_model.pth: "
        "the weights under their published names, and the settings that they were trained with. Needs neither the "
        "config nor the data.",
        example=f"{prog} Experiments/checkpoint/LRS2-IIANet/epoch=12.ckpt --out model.pth",
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint of a run, such as last.ckpt or epoch=12.ckpt")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help=f"file to write; by default beside the checkpoint, with {MODEL_SUFFIX} in place of .ckpt",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file where it exists")
    return parser


def _run(argv: list[str], prog: str) -> int:
    arguments = _parser(prog).read(argv)
    source = expand_path(arguments.checkpoint)
    target = source.with_suffix(MODEL_SUFFIX) if arguments.out is None else expand_path(arguments.out)
    _refuse_unfit(source, target, arguments.overwrite)
    trained = open_trained(source)
    save_model(target, trained.model, as_texts(trained.settings))
    step = "" if trained.step is None else f" after step {trained.step}"
    say(f"{target}: the separator of {source}{step}")
    return 0


def _refuse_unfit(source: Path, target: Path, overwrite: bool) -> None:
    """Raise ConfigError where the file to write is none, or one that is to be kept."""
    if target.is_dir() or not target.parent.is_dir():
        found = "is a folder" if target.is_dir() else "its folder does not exist"
        raise ConfigError(f"{target}: {found}; expected the path of a file to write: --out FILE")
    if not os.path.lexists(target):
        return
    if source.exists() and target.exists() and target.samefile(source):
        raise ConfigError(f"{target}: is the file to read; give another one to write: --out FILE")
    if not overwrite:
        raise ConfigError(
            f"{target}: exists; give another file to write, --out FILE, or --overwrite to replace this one"
        )


main = command(_run, "export-iianet")
"""Start the command."""
