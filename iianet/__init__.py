"""The networks: the frozen lip encoder and the IIANet separator (Li et al., ICML 2024)."""
