"""The two templates and what they are filled in by: whatever is no markup of ours is escaped, without being asked.

Both environments escape by themselves. A value is markup when a filter here says so (`Markup`); everything else is
freed of control characters and access tokens, and escaped for Markdown or for HTML. None is shown as `n/a`, and a name
that a template misspells is an error.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from qdpo.evaluation import judge, tasks_table, view
from qdpo.export.verify.report import card_section
from qdpo.report import markdown as md
from qdpo.run.folder import HELDOUT, JUDGE, TASKS


def card_environment() -> Environment:
    """The environment of the model card: Markdown."""
    environment = _environment(_as_markdown)
    markup: dict[str, Callable[..., str]] = {
        "text": md.text,
        "block": md.block,
        "code": md.code,
        "shell": lambda value: shlex.quote(md.one_line(value)),
        "python": lambda value: json.dumps(md.one_line(value)),
        "link": lambda title, url: f"[{md.text(title)}]({url})",
        "table": md.table,
        "yaml": lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000).rstrip(),
        "benchmarks": _benchmarks,
    }
    environment.filters |= {name: _marked(function) for name, function in markup.items()}
    environment.globals["export_section"] = _marked(_export_section)
    return environment


def page_environment() -> Environment:
    """The environment of the report page: HTML, and JSON for its script."""
    environment = _environment(lambda value: md.MISSING if value is None else md.printable(value))
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def _environment(shown: Callable[[Any], str]) -> Environment:
    environment = Environment(
        loader=PackageLoader("qdpo.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if hasattr(value, "__html__") else shown(value),
    )
    for figure in (md.decimal, md.short, md.count, md.gib, md.duration, view.share, view.number):
        environment.filters[figure.__name__] = _marked(figure)
    for text in (md.cut, md.excerpt, md.one_line, md.public_name, md.without_folders, md.command_line):
        environment.filters[text.__name__] = text
    environment.filters["finite"] = md.number
    environment.globals |= {"attempt": _attempt, "sentences": view.sentences}
    environment.globals |= {"GROUPS": view.GROUPS, "judgement": judge.sentences}
    environment.globals |= {"HELDOUT": HELDOUT, "TASKS": TASKS, "JUDGE": JUDGE}
    return environment


def _as_markdown(value: Any) -> Markup:
    if value is None:
        return Markup(md.MISSING)
    return Markup(value) if type(value) is int else Markup(md.text(value))


def _marked(function: Callable[..., str]) -> Callable[..., Markup]:
    return lambda *given: Markup(function(*given))


def _attempt(make: Callable[..., Markup], *given: Any) -> Markup | None:
    """What a macro makes of another stage's file; None where that is not as this version of qdpo writes it."""
    try:
        return make(*given)
    except (AttributeError, LookupError, TypeError, ValueError, UndefinedError):
        return None


def _benchmarks(found: dict[str, Any]) -> str:
    """The tables of benchmarks, in lm-eval's own layout."""
    models = {
        side: {**about, "description": md.without_folders(about.get("description") or side)}
        for side, about in found["models"].items()
    }
    return tasks_table.markdown({**found, "models": models}).strip()


def _export_section(verify: dict[str, Any]) -> str:
    """The section on a verification, freed of folders line by line, so that its tables stay tables."""
    return "\n".join(map(md.without_folders, card_section(verify).strip().splitlines()))
