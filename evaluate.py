"""Evaluate IIANet from a clone: `python evaluate.py ...` is the command evaluate-iianet."""

from iianet_cli.entry import evaluate

if __name__ == "__main__":
    evaluate(prog="evaluate.py")
