"""Configuration: `schema.py` loads it, the `*section*.py` files hold types and defaults, the YAML files values."""
