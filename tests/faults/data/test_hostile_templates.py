"""Chat templates that try to get out of the sandbox: none touches its canary, and each is refused within two seconds.

What only wastes time or memory is in test_faulty_templates.py.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from data.toy_tokenizers import byte_level

from qdpo.data.template import NAMED, load_template
from qdpo.errors import QdpoError

ZEPHYR = NAMED["zephyr"]

PAYLOADS = {
    "globals of a helper": "{{ lipsum.__globals__['os'].popen('touch CANARY').read() }}",
    "globals of cycler": "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "globals of joiner": "{{ joiner.__init__.__globals__['os'].system('touch CANARY') }}",
    "globals of namespace": "{{ namespace.__init__.__globals__['__builtins__']['open']('CANARY', 'w') }}",
    "globals of raise_exception": "{{ raise_exception.__globals__['__builtins__']['open']('CANARY', 'w') }}",
    "globals of strftime_now": "{{ strftime_now.__globals__['os'].system('touch CANARY') }}",
    "subclasses": "{% for c in ''.__class__.__mro__[1].__subclasses__() %}"
    "{% if c.__name__ == 'Popen' %}{{ c('touch CANARY', shell=True) }}{% endif %}{% endfor %}",
    "attribute by a filter": "{{ (messages | attr('__class__') | attr('__base__')).__subclasses__() }}",
    "attribute by map": "{{ [messages] | map(attribute='__class__.__base__.__subclasses__') | list }}",
    "attribute by item": "{{ messages['__class__']['__base__']['__subclasses__']() }}",
    "attribute in a format": "{{ '{0.__class__.__base__}'.format(messages) }}{{ ''.format_map(messages[0]) }}",
    "format of a filtered text": "{{ ('{0.__globals__[os]}' | string).format(lipsum) }}",
    "the template itself": "{{ self._TemplateReference__context.environment.loader.get_source('', 'CANARY') }}",
    "the context": "{{ self.__init__.__globals__.__builtins__.__import__('os').system('touch CANARY') }}",
    "a file by include": "{% include '/etc/passwd' %}",
    "a file by import": "{% import '/etc/passwd' as secret %}{{ secret }}",
    "a file by extends": "{% extends '/etc/passwd' %}",
    "a frame of a generator": "{% set g = (m for m in messages) %}{{ g.gi_frame.f_globals }}",
    "code of a macro": "{% macro f() %}{% endmacro %}{{ f.__call__.__globals__ }}{{ f._func.__code__ }}",
    "changing a list in place": "{{ messages.__setitem__(0, 1) }}{{ messages.clear() }}",
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_template_that_tries_to_get_out(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    monkeypatch.chdir(tmp_path)
    payload = PAYLOADS[name].replace("CANARY", str(canary))
    tokenizer = byte_level(chat_template=payload + ZEPHYR)
    started = time.monotonic()
    with pytest.raises(QdpoError) as caught:
        load_template("auto", tokenizer)
    assert time.monotonic() - started < 2
    said = f"{caught.value.message}\n{caught.value.hint}"
    assert caught.value.exit_code == 65, said
    assert "the chat template (the tokenizer's)" in said
    assert "root:" not in said
    assert len(said) < 2000
    assert not canary.exists()


def test_there_are_fifteen() -> None:
    assert len(PAYLOADS) >= 15
