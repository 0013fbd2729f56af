"""Training IIANet with Lightning."""
