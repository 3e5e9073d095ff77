"""The card's sections on what was evaluated after training: held-out pairs, other pairs, benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qdpo.evaluation.tasks_table import markdown
from qdpo.evaluation.view import GROUPS, number, sentences, share
from qdpo.report import markdown as md
from qdpo.run.record import RunRecord, dig
from qdpo.verdicts.measured import HELDOUT, read_evaluations

TASKS = "tasks.json"


def evaluation(record: RunRecord) -> str:
    """`## Evaluation`: what `qdpo eval` has written; empty when it was not run."""
    parts = []
    for name, result in sorted(read_evaluations(record.folder).items(), key=lambda entry: entry[0] != HELDOUT):
        try:
            parts.append(_benchmarks(result) if name == TASKS else _pairs(name, result))
        except (KeyError, TypeError, ValueError):
            parts.append(f"`{name}` is of another version of qdpo and is not shown.")
    if not parts:
        return ""
    return "\n\n".join(["## Evaluation", "In brackets: 95 % intervals.", *parts])


def _pairs(name: str, result: dict[str, Any]) -> str:
    heldout = name == HELDOUT
    title = "Held-out pairs" if heldout else f"Pairs of {md.text(md.public_name(result['data']['source']))}"
    parts = [f"### {title}", _before_after(result)]
    if len([group for group in result["groups"].values() if group]) > 1:
        parts.append(_by_length(result))
    parts.append("\n".join(f"- {md.text(sentence)}" for sentence in sentences(result)))
    return "\n\n".join(part for part in parts if part)


def _before_after(result: dict[str, Any]) -> str:
    group = result["groups"]["all"]
    preferred, logps = group["prefers_chosen"], group["logps_per_token"]
    adapted = "policy" in preferred
    rows = [["Prefers the chosen", *(share(preferred[side]) for side in _sides(adapted))]]
    if adapted:
        rows += [
            ["Reward accuracy", "ties", share(group["reward_accuracy"])],
            [f"Reward margin (beta {result['beta']:g})", "0", number(group["reward_margin"], ".3f")],
        ]
    for side, values in logps.items():
        after = [f"{values['policy']:.3f} (change {number(values['change'], '+.3f')})"] if adapted else []
        rows.append([f"Log-probability of {side}, nats per token", f"{values['base']:.3f}", *after])
    for side, value in group.get("kl_per_token", {}).items():
        rows.append([f"KL to the base on {side}, nats per token", "0", number(value, ".4f")])
    header = (f"{group['pairs']:,} pairs", "Base", *(["Result"] if adapted else []))
    return md.table(header, rows, align="first-left")


def _by_length(result: dict[str, Any]) -> str:
    adapted = "policy" in result["groups"]["all"]["prefers_chosen"]
    rows = []
    for name, title in GROUPS.items():
        group = result["groups"][name]
        shares = [share(group["prefers_chosen"][side]) for side in _sides(adapted)] if group else []
        rewards = [share(group["reward_accuracy"])] if group and adapted else []
        cells = [title.capitalize(), f"{group['pairs']:,}" if group else "0", *shares, *rewards]
        rows.append([*cells, *[md.MISSING] * ((5 if adapted else 3) - len(cells))])
    header = ("By length", "Pairs", "Base prefers chosen", *(["Result prefers chosen", "Reward accuracy"] * adapted))
    return md.table(header, rows, align="first-left")


def _sides(adapted: bool) -> Sequence[str]:
    return ("base", "policy") if adapted else ("base",)


def _benchmarks(found: dict[str, Any]) -> str:
    models = {
        side: {**about, "description": md.without_folders(dig(about, "description") or side)}
        for side, about in found["models"].items()
    }
    lead = f"By lm-evaluation-harness {md.text(found['lm_eval'])}, run by qdpo."
    averages = [
        f"- {md.text(name)}, average: base {md.decimal(values.get('base'), 2)}, result "
        f"{md.decimal(values.get('result'), 2)}"
        for name, values in found["averages"].items()
    ]
    limited = any(entry["limit"] is not None for entry in found["tasks"])
    remark = "A table with a limit is of its first items only, and is no benchmark result." if limited else ""
    parts = ["### Benchmarks", lead, markdown({**found, "models": models}).strip(), "\n".join(averages), remark]
    return "\n\n".join(part for part in parts if part)
