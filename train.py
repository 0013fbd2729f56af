"""Train IIANet from a clone: `python train.py ...` is the command train-iianet."""

from iianet_cli.entry import train

if __name__ == "__main__":
    train(prog="train.py")
