"""What pyproject.toml cannot say: the top-level `presets/` is installed as `qdpo/presets/`."""

from setuptools import find_namespace_packages, setup

setup(
    # folders without code (the embedded model and pairs) are packages too, so that the wheel holds them
    packages=[*find_namespace_packages(include=["qdpo", "qdpo.*"]), "qdpo.presets"],
    package_dir={"qdpo.presets": "presets"},
    package_data={
        "qdpo.presets": ["*.yaml"],
        "": ["py.typed", "*.md", "*.json", "*.jsonl", "*.safetensors", "*.css", "*.html", "*.js", "*.jinja"],
    },
)
