"""The commands that use the separator: `train_cli` trains it."""
