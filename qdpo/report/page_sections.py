"""The report page's sections that need no script: verdict, numbers, samples, data, exports, settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qdpo.data.report import DataReport, contamination_sentence
from qdpo.evaluation.view import GROUPS, number, sentences, share
from qdpo.export.verify.checks import Check
from qdpo.export.verify.report import COLUMNS, cells
from qdpo.report import markdown as md
from qdpo.report import names
from qdpo.report.html import Markup, items, joined, table, tag
from qdpo.report.page_data import cut
from qdpo.run.record import RunRecord, all_ties, dig
from qdpo.verdicts.measured import HELDOUT, evidence_of, read_evaluations, read_exports, read_samples
from qdpo.verdicts.rules import judge

SAMPLES, SAMPLE_STEPS, SAMPLE_CHARACTERS = 8, 12, 1500
RESULTS = (
    ("Prefers the chosen, by log-probability", "logps/accuracies"),
    ("Reward accuracy", "rewards/accuracies"),
    ("Reward margin", "rewards/margins"),
    ("Reward of chosen", "rewards/chosen"),
    ("Reward of rejected", "rewards/rejected"),
    ("Loss", "loss"),
    ("Text, nats per token", "text_nll"),
)


def verdicts(record: RunRecord) -> Markup:
    """What the curves say."""
    if not record.evals and not record.train:
        return tag("p", "No step has been logged yet.")
    boxes = []
    for found in judge(evidence_of(record)):
        lines = [tag("p", tag("b", found.kind + (" (alarm)" if found.alarm else "")), f": {found.says}")]
        if found.change:
            lines.append(tag("p", f"To change: {found.change}"))
        lines.append(tag("p", f"Source: {found.source}", class_="soft"))
        boxes.append(tag("div", *lines, class_="verdict alarm" if found.alarm else "verdict"))
    return joined(*boxes)


def numbers(record: RunRecord) -> Markup:
    """The held-out pairs before and after."""
    before, after = record.before, record.after

    def start(key: str) -> str:
        return "ties" if key == "rewards/accuracies" and all_ties(before) else md.decimal(before.get(key))

    rows = [(title, start(key), md.decimal(after.get(key))) for title, key in RESULTS if key in before or key in after]
    if not rows:
        return Markup("")
    header = ("Held-out pairs", f"step {before.get('step', 0)}", f"step {after.get('step', md.MISSING)}")
    return table(header, rows)


def evaluations(record: RunRecord) -> Markup:
    """What `qdpo eval` found."""
    parts = []
    for name, result in sorted(read_evaluations(record.folder).items(), key=lambda entry: entry[0] != HELDOUT):
        try:
            parts.append(_benchmarks(result) if "tasks" in result else _pairs(name, result))
        except (KeyError, TypeError, ValueError):
            parts.append(tag("p", f"{name} is of another version of qdpo and is not shown."))
    return joined(*parts)


def _pairs(name: str, result: dict[str, Any]) -> Markup:
    source = "Held-out pairs" if name == HELDOUT else md.public_name(result["data"]["source"])
    rows = []
    for key, title in GROUPS.items():
        if (group := result["groups"][key]) is None:
            continue
        preferred = group["prefers_chosen"]
        row = [title, f"{group['pairs']:,}", *(share(preferred[s]) for s in ("base", "policy") if s in preferred)]
        if "reward_accuracy" in group:
            row += [share(group["reward_accuracy"]), number(group["reward_margin"], ".3f")]
        rows.append(row)
    header = ("", "pairs", "base prefers chosen", "result prefers chosen", "reward accuracy", "margin")[: len(rows[0])]
    said = items(sentences(result))
    return joined(tag("h3", source), table(header, rows), said, tag("p", "In brackets: 95 % intervals.", class_="soft"))


def _benchmarks(found: dict[str, Any]) -> Markup:
    rows = []
    for entry in found["tasks"]:
        limit = "" if entry["limit"] is None else f" (first {entry['limit']} items)"
        rows.append((entry["task"] + limit, str(entry["shots"]), entry["metric"], *map(_measured, _sides(entry))))
    return joined(tag("h3", "Benchmarks"), table(("task", "shots", "metric", "base", "result"), rows))


def _sides(entry: dict[str, Any]) -> list[Any]:
    return [entry["base"], entry["result"]]


def _measured(found: dict[str, Any] | None) -> str:
    if found is None:
        return md.MISSING
    return f"{found['value']:.4f}" + ("" if found["stderr"] is None else f" ± {found['stderr']:.4f}")


def samples(record: RunRecord) -> Markup:
    """Answers of base and result, by evaluation."""
    rows = read_samples(record.folder)
    steps = sorted({row["step"] for row in rows})
    if not steps:
        return tag("p", "There are no samples in this run directory.")
    # of many evaluations some are shown, the first and the last among them
    if len(steps) > SAMPLE_STEPS:
        steps = sorted({steps[round(i * (len(steps) - 1) / (SAMPLE_STEPS - 1))] for i in range(SAMPLE_STEPS)})
    options = [
        tag("option", f"step {step}", value=str(step), **({"selected": ""} if step == steps[-1] else {}))
        for step in steps
    ]
    shown = [tag("p", "Answers at ", tag("select", *options, id="samples-step", aria_label="evaluation"))]
    for step in steps:
        of_step = [row for row in rows if row["step"] == step]
        blocks = [_sample(row) for row in of_step[:SAMPLES]]
        if len(of_step) > SAMPLES:
            blocks.append(tag("p", f"{SAMPLES} of {len(of_step)} prompts are shown.", class_="soft"))
        shown.append(tag("div", *blocks, data_step=str(step)))
    return joined(*shown)


def _sample(row: dict[str, Any]) -> Markup:
    same = " (the same)" if row["base"] == row["policy"] else ""
    sides = [("Base", row["base"]), (f"Result{same}", row["policy"])]
    blocks = [
        tag("div", tag("b", title), tag("pre", cut(text, SAMPLE_CHARACTERS) or "(empty)")) for title, text in sides
    ]
    return joined(
        tag("h3", "Prompt"), tag("pre", cut(row["prompt"], SAMPLE_CHARACTERS)), tag("div", *blocks, class_="sides")
    )


def data(record: RunRecord) -> Markup:
    """The data report."""
    reports = [found if isinstance(found := record.data.get(part), dict) else {} for part in ("train", "heldout")]
    if not any(reports):
        return tag("p", "There is no data report in this run directory.")
    rows = [("source", *(names.dataset_name(record, part) for part in ("train", "heldout")))]
    rows.append(("recognised as", *(str(found.get("format") or md.MISSING) for found in reports)))
    for label, key in (("rows read", "rows_read"), ("pairs used", "pairs")):
        rows.append((label, *(md.count(found.get(key)) for found in reports)))
    for reason in dict.fromkeys(reason for found in reports for reason in found.get("left_out") or {}):
        counts = (md.count(dig(found, "left_out", reason, "count") or 0) for found in reports)
        rows.append((f"left out: {md.without_folders(reason)}", *counts))
    for key in dict.fromkeys(key for found in reports for key in found.get("cut") or {}):
        rows.append((f"cut: {key}", *(md.count(dig(found, "cut", key)) for found in reports)))
    for key in ("prompt", "chosen", "rejected"):
        rows.append((f"tokens of {key}: least / median / 95 % / most", *(_lengths(found, key) for found in reports)))
    remarks = [line for found in reports for line in _remarks(found)]
    return joined(table(("", "training", "held-out"), rows), items(list(dict.fromkeys(remarks))))


def _lengths(found: dict[str, Any], key: str) -> str:
    return " / ".join(md.count(dig(found, "tokens", key, at)) for at in ("min", "median", "p95", "max"))


def _remarks(found: dict[str, Any]) -> list[str]:
    try:
        report = DataReport.from_dict(found)
        lines = [*report.remarks(), *(contamination_sentence(entry) for entry in report.contamination)]
    except (KeyError, TypeError, ValueError):
        return []
    return [md.without_folders(line) for line in dict.fromkeys(lines)]


def exports(record: RunRecord) -> Markup:
    """The exports with what their verification found."""
    found = read_exports(record.folder)
    if not found:
        return tag("p", "Nothing was exported yet: qdpo merge-export.")
    return joined(*(_export(name, entry.get("verify")) for name, entry in found.items()))


def _export(name: str, verify: Any) -> Markup:
    if not isinstance(verify, dict):
        return joined(tag("h3", name), tag("p", "Not verified: qdpo verify."))
    parts: list[str] = [tag("h3", name)]
    try:
        for artefact in verify["artefacts"]:
            passed = "verified" if artefact["passed"] else "FAILED verification"
            parts.append(tag("p", tag("code", artefact["name"]), f": {passed}, {artefact['pairs']} held-out pairs"))
            checks = [Check(**entry) for entry in artefact["checks"]]
            rows = [(check.name, check.word, md.without_folders(check.detail)) for check in checks]
            parts.append(table(("check", "result", "detail"), rows, words=True))
            if artefact["parity"]:
                parts.append(table(COLUMNS, [(model, *cells(row)) for model, row in artefact["parity"].items()]))
    except (KeyError, TypeError):
        parts.append(tag("p", "Its verify.json is of another version of qdpo."))
    return joined(*parts)


def settings(record: RunRecord) -> Markup:
    """What ran, where, and the command to do it again."""
    run, result = record.run, record.run.get("result") or {}
    facts = [
        ("base", names.base_name(record)),
        ("revision", names.base_revision(record)),
        ("loss", f"{', '.join(record.config.loss.loss_type)}, beta {record.config.loss.beta:g}"),
        ("learning rate", f"{record.config.train.learning_rate:g} ({record.config.train.lr_scheduler_type})"),
        ("LoRA", f"rank {record.config.lora.r}, alpha {record.config.lora.lora_alpha}"),
        ("seed", run.get("seed")),
        ("hardware", dig(run, "hardware", "name")),
        ("time", md.duration(result.get("seconds"))),
        ("peak memory", md.gib(result.get("peak_memory_bytes"))),
        ("qdpo", run.get("qdpo")),
        ("adapter (SHA-256)", result.get("adapter_sha256")),
    ]
    command = run.get("command")
    checks = [
        f"{md.without_folders(check['name'])}: {md.without_folders(check.get('detail', ''))}"
        for check in run.get("checks") or []
        if isinstance(check, dict) and check.get("name")
    ]
    return joined(
        table((), [(name, md.without_folders(value)) for name, value in facts if value is not None], words=True),
        tag("h3", "Again") if command else "",
        tag("pre", md.command_line(str(command))) if command else "",
        tag("h3", "Checks that held when training started") if checks else "",
        items(checks),
    )


SECTIONS: tuple[tuple[str, str, Callable[[RunRecord], Markup]], ...] = (
    ("evaluation", "Evaluation", evaluations),
    ("samples", "Samples", samples),
    ("data", "Data", data),
    ("exports", "Exports and their verification", exports),
    ("settings", "Settings", settings),
)
"""Id, title and content of what follows curves and pairs; an empty one is left out."""
