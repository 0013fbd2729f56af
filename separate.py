"""Separate a recording from a clone: `python separate.py ...` is the command separate-iianet."""

from iianet_cli.entry import separate

if __name__ == "__main__":
    separate(prog="separate.py")
