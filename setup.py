"""What goes into the wheel. All other facts of the distribution are in pyproject.toml.

The published configs lie in configs/, where IIANet's users look for them, and in the wheel inside iianet.config, where
no other folder named configs can hide them. pyproject.toml cannot say that beside a search for packages.
"""

from setuptools import find_packages, setup

CONFIGS = "iianet.config.published_files"

setup(
    packages=[*find_packages(include=["iianet*", "shardwriter*", "loaders*"]), CONFIGS],  # iianet_cli is among them
    package_dir={CONFIGS: "configs"},
    package_data={"": ["py.typed"], CONFIGS: ["*-IIANet.yml"]},
)
