"""Makes the files under ``qdpo/assets``: the base model and the preference pairs of the ``quickstart`` preset.

One command, from the repository root, writes all of them::

    python -m tools.quickstart_assets

Everything is generated: a toy world in plain English, a tokenizer and a small Mistral model trained on it, and
Winograd-style pairs that the model answers at chance before DPO.
"""
