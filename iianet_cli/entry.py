"""Where the commands start, installed or from a clone: before the imports, which take seconds, so that Ctrl-C ends
them."""

from iianet.interruption import main_of


def build_shards() -> None:
    """Start build-shards."""
    main_of("shardwriter.build_cli")()


def inspect_shards() -> None:
    """Start inspect-shards."""
    main_of("shardwriter.inspect_cli")()


def prepare_lists() -> None:
    """Start prepare-lists."""
    main_of("shardwriter.prepare_lists_cli")()


def prepare_mixtures() -> None:
    """Start prepare-mixtures."""
    main_of("shardwriter.prepare_mixtures_cli")()


def train(prog: str = "train-iianet") -> None:
    """Start the training command.

    Args:
        prog: Name of the command in its help and errors.
    """
    main_of("iianet_cli.train_cli")(prog=prog)


def evaluate(prog: str = "evaluate-iianet") -> None:
    """Start the evaluating command.

    Args:
        prog: Name of the command in its help and errors.
    """
    main_of("iianet_cli.evaluate_cli")(prog=prog)


def separate(prog: str = "separate-iianet") -> None:
    """Start the separating command.

    Args:
        prog: Name of the command in its help and errors.
    """
    main_of("iianet_cli.separate_cli")(prog=prog)


def export() -> None:
    """Start export-iianet."""
    main_of("iianet_cli.export_cli")()
