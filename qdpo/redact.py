"""Access tokens never leave: they are taken out of everything that is printed or written down.

What is a token is known from the environment (HF_TOKEN, WANDB_API_KEY and their like), from the file that
`hf auth login` writes, and from the shapes that tokens have.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HIDDEN = "***"
REMOVED = "[token removed]"
"""What stands for a token where three stars are markup."""
SHORTEST = 8
"""Characters of the shortest value that is taken for a token; `false` in TOKENIZERS_PARALLELISM is none."""

_NAMES = re.compile(r"(^|_)(TOKEN|API_?KEY|ACCESS_KEY|SECRET|SECRET_KEY|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.I)
_PARAMETERS = r"token|access_token|api_key|apikey|key|secret|password|sig|signature|x-amz-signature|x-amz-credential"
_SHAPES = re.compile(
    r"(?P<user>(?<=://)[^\s/@'\"]+(?=@))"
    r"|(?P<parameter>(?<=[?&;])(?:" + _PARAMETERS + r")=)(?!" + re.escape(REMOVED) + r")[^\s&#'\"]+"
    r"|(?P<header>\b(?:bearer|authorization:\s*\w+)\s+)[\w.~+/=-]{12,}"
    r"|\b(?:hf_|api_org_|gh[pousr]_|sk-)[a-z0-9]{20,}"
    r"|\b(?:github_pat_|wandb_v1_|glpat-|sk-(?:proj|svcacct|admin|ant|or)-)[\w-]{20,}",
    re.I,
)


def redact(text: str, hidden: str = HIDDEN) -> str:
    """The text with `hidden` for every token in it."""
    for value in known():
        text = text.replace(value, hidden)
    return _SHAPES.sub(lambda match: f"{match['parameter'] or match['header'] or ''}{hidden}", text)


def redact_all(value: Any) -> Any:
    """The same for every text inside lists and mappings."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact_all(key): redact_all(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(inner) for inner in value]
    return value


def known() -> list[str]:
    """The tokens of this process, the longest first."""
    found = {value for name, value in os.environ.items() if _NAMES.search(name) and _could_be(value)}
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    path = Path(os.environ.get("HF_TOKEN_PATH") or f"{home}/token")
    try:
        stored = path.expanduser().read_text("utf-8", "replace").strip()
    except (OSError, RuntimeError):
        stored = ""
    if _could_be(stored):
        found.add(stored)
    return sorted(found, key=len, reverse=True)


def _could_be(value: str) -> bool:
    """Long enough, and no number or folder, which other variables of such names hold."""
    return len(value) >= SHORTEST and not value.isdigit() and not value.startswith(("/", "~", "."))
