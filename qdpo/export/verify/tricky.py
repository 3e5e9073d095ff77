"""Seventy texts that are hard to tokenise."""

from __future__ import annotations

# Spaces at every place, line breaks, digits, contractions, punctuation, scripts with and without spaces, emoji with
# joiners, combining marks, invisible characters, text that looks like markup, code, and what nobody trained on.
TRICKY = (
    *("", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\t\t", " \n ", "\n ", "\r\n"),
    *("a", " a", "a ", "  a", "  two  spaces  ", "line\nbreak", "tab\tin", "ends with lines\n\n"),
    *("Hello, world!", " Hello", "I'm, you're, they'll", "don't DON'T", "it’s “quoted”", "well-known -- dash — em…"),
    *("1234567890", "3.14159 1,000,000", "a1b2c3", "x=y+z;", "2^10 != 1024?", "12 345", "٣٤٥", "½ ²³"),
    *("UPPER lower MiXeD", "camelCaseAndSnake_case", "    indented(code): return [x for x in y]", "#include <a.h>"),
    *("https://example.org/a?b=c&d=%20#e", "user@example.org", "C:\\path\\to", "$100 €50 £20", "!!!???...,,,;;"),
    *("naïve café", "Größe", "нещо на Български", "日本語テキスト", "中文，标点。", "한국어 문장", "العربية", "עברית"),
    *("हिन्दी", "ภาษาไทย", "ភាសាខ្មែរ", "Ελληνικά", "e\u0301", "\u00a0", "\u200b", "ﷺ", "\ufeff"),
    *("🦙", "👩‍👩‍👧‍👦", "🏳️‍🌈🇩🇪", "<b>bold</b>", "<|im_start|>", "</s>", "<s>", "[INST]", "{{ x }}", "<0x0A>"),
)
