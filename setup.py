"""What pyproject.toml cannot say: the top-level `presets/` is installed as `qdpo/presets/`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["qdpo", "qdpo.*"]), "qdpo.presets"],
    package_dir={"qdpo.presets": "presets"},
    package_data={"qdpo.presets": ["*.yaml"], "qdpo.assets": ["**/*"]},
)
