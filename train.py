"""Train IIANet from a clone: `python train.py ...` is the command train-iianet."""

from iianet_cli.train_cli import main

if __name__ == "__main__":
    main(prog="train.py")
