"""Which of llama.cpp's pre-tokenizers a byte-level tokenizer has.

llama.cpp holds a copy of each known regular expression under a name; the file only says the name. A regular expression
that is not known here has no name to write, and any other name would split text elsewhere: it is refused.
"""

from __future__ import annotations

from typing import Any

from qdpo.errors import InputMissingError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _REST
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BY_REGEX = {_LLAMA3: "llama-bpe", _QWEN2: "qwen2", _TEKKEN: "tekken"}


def steps(node: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer of tokenizer.json, with sequences laid flat."""
    if not node:
        return []
    return [step for child in node[key] for step in steps(child, key)] if node["type"] == "Sequence" else [node]


def pre_tokenizer(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer of a byte-level tokenizer.json.

    Raises:
        InputMissingError: llama.cpp has none that splits alike, as far as is known here.
    """
    found = steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    byte_level = [step for step in found if step["type"] == "ByteLevel"]
    if any(step.get("add_prefix_space") for step in byte_level):
        raise InputMissingError("the tokenizer adds a space before the text, llama.cpp's byte-level one does not")
    others = [step for step in found if step["type"] != "ByteLevel"]
    own_regex = any(step.get("use_regex", True) for step in byte_level)
    if own_regex and not others:
        return "gpt-2"
    if own_regex and [(s["type"], s.get("individual_digits")) for s in others] == [("Digits", True)]:
        return "smollm"
    regexes = [step["pattern"].get("Regex") for step in others if step["type"] == "Split"]
    if not own_regex and len(others) == len(regexes) == 1 and regexes[0] in BY_REGEX and not others[0].get("invert"):
        return BY_REGEX[regexes[0]]
    raise InputMissingError(
        f"the tokenizer splits text in a way that has no known name in llama.cpp: {regexes or found}",
        f"known are {', '.join(sorted([*BY_REGEX.values(), 'gpt-2', 'smollm']))}; export safetensors instead",
    )
