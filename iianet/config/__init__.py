"""The schema of the YAML files, and how they are read."""
