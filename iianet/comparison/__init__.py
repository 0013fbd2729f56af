"""Training in several ways, measured side by side: --compare_modes."""
