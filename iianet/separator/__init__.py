"""IIANet, layer by layer."""
