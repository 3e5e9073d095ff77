"""Real tensors, token by token: what is prompt, what is learned, and which tokens are special.

Colours help; the marks alone say the same: `[token]` is learned, `token` is not, `{BOS <s>}` is special and not
learned, `[EOS </s>]` is special and learned. Inside a token `·` is a space and `⏎` the end of a line; a part of a
character is shown as the vocabulary writes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from qdpo.data.pairs import TokenPair
from qdpo.data.template import Template
from qdpo.grammar import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 200
"""Tokens of one part that are shown; of a longer one, the beginning and the end."""
VISIBLE = str.maketrans({"\n": "⏎", "\t": "⇥", "\r": "␍", "\x00": "␀", "\x1b": "␛", " ": "·"})


def preview(pair: TokenPair, tokenizer: PreTrainedTokenizerBase, template: Template, unit: str) -> list[Text]:
    """A pair as three lines, under the number of its `unit`: the prompt, the chosen and the rejected completion."""
    head = Text(f"{unit} {pair.row}", style="bold")
    lines = [head, _part("prompt, not learned", pair.prompt, tokenizer, template, learned=False)]
    for name, ids in (("chosen, learned", pair.chosen), ("rejected, learned", pair.rejected)):
        lines.append(_part(name, ids, tokenizer, template, learned=True))
    return lines


def _part(name: str, ids: list[int], tokenizer: PreTrainedTokenizerBase, template: Template, *, learned: bool) -> Text:
    line = Text(f"  {name} ({counted(len(ids), 'token')}): ", style="bold")
    shown = ids if len(ids) <= SHOWN else [*ids[: SHOWN // 2], None, *ids[-SHOWN // 2 :]]
    for place, token in enumerate(shown):
        if place:
            line.append(" ")
        if token is None:
            line.append(f"... {len(ids) - SHOWN} more ...", style="italic")
        else:
            line.append_text(_token(token, tokenizer, template, learned=learned))
    return line


def _token(token: int, tokenizer: PreTrainedTokenizerBase, template: Template, *, learned: bool) -> Text:
    names = [name.upper() for name in ("bos", "eos", "pad", "unk") if getattr(tokenizer, f"{name}_token_id") == token]
    if token in template.end_of_turn and "EOS" not in names:
        names.append("end of turn")
    raw = str(tokenizer.convert_ids_to_tokens(token))
    text = raw if names else _text(token, tokenizer)
    shown = (raw if not text or "\ufffd" in text else text).translate(VISIBLE)
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in shown)
    if names:
        shown = f"{'/'.join(names)} {shown}"
        return Text(f"[{shown}]" if learned else f"{{{shown}}}", style="bold magenta")
    return Text(f"[{shown}]", style="green") if learned else Text(shown, style="dim")


def _text(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a token adds to a text that is there already: a decoder drops the space with which a text begins."""
    before = tokenizer.encode("a", add_special_tokens=False)
    alone, both = (str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)) for ids in (before, [*before, token]))
    return both.removeprefix(alone)
