"""The two environments escape by themselves: a template that forgets a filter shows text, never markup."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2 import Environment, UndefinedError

from qdpo.report.templating import card_environment, page_environment

EVIL = "*a* <b>c | `d`\n\n# e\n---"


def filled(environment: Environment, source: str, **values: Any) -> str:
    return environment.from_string(source).render(**values)


def test_the_card_shows_a_text_as_it_reads() -> None:
    shown = filled(card_environment(), "x {{ value }}", value=EVIL)
    assert shown == "x \\*a\\* &lt;b&gt;c \\| \\`d\\` # e ---"
    assert filled(card_environment(), "{{ value }}", value="# e") == "\\# e"


def test_the_page_shows_a_text_as_it_reads() -> None:
    shown = filled(page_environment(), "{{ value }}", value=EVIL)
    assert shown == "*a* &lt;b&gt;c | `d`\n\n# e\n---"
    assert filled(page_environment(), '<a title="{{ value }}">', value='"') == '<a title="&#34;">'


@pytest.mark.parametrize("environment", [card_environment(), page_environment()], ids=["card", "page"])
def test_what_is_joined_or_called_is_escaped_once(environment: Environment) -> None:
    assert filled(environment, "{{ ['<', '>'] | join(' & ') }}") == "&lt; &amp; &gt;"
    assert filled(environment, "{% macro m(x) %}<i>{{ x }}</i>{% endmacro %}{{ m('<') }}") == "<i>&lt;</i>"
    assert filled(environment, "{{ 0.5 | decimal(2, '+') }} {{ x }} {{ 1234 | count }}", x=None) == "+0.50 n/a 1,234"


@pytest.mark.parametrize("environment", [card_environment(), page_environment()], ids=["card", "page"])
def test_a_misspelt_name_is_an_error(environment: Environment) -> None:
    with pytest.raises(UndefinedError):
        filled(environment, "{{ run.nmae }}", run={"name": "a"})


@pytest.mark.parametrize("environment", [card_environment(), page_environment()], ids=["card", "page"])
def test_an_attempt_on_a_file_of_another_version(environment: Environment) -> None:
    source = "{% macro m(x) %}{{ x.a.b }}{% endmacro %}{{ attempt(m, given) or 'another version' }}"
    assert filled(environment, source, given={"a": {"b": "c"}}) == "c"
    for given in ({}, {"a": None}, {"a": {}}):
        assert filled(environment, source, given=given) == "another version"


def test_code_blocks_cannot_be_ended_by_what_is_in_them() -> None:
    shown = filled(
        card_environment(), "{% filter block('bash') %}\nqdpo {{ name | shell }}\n{% endfilter %}", name="a ``` b\n```"
    )
    assert shown == "````bash\nqdpo 'a ``` b ```'\n````"


def test_tables_line_up() -> None:
    source = "{% filter table %}\n| a | {{ b }} |\n| :- | -: |\n| {{ c }} | 1 |\n{% endfilter %}"
    assert filled(card_environment(), source, b="b|b", c="long cell").splitlines() == [
        "| a         | b\\|b |",
        "|:----------|-----:|",
        "| long cell | 1    |",
    ]
