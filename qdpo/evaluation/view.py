"""An evaluation as tables for the terminal: before and after, and the same by length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qdpo.grammar import counted

if TYPE_CHECKING:
    from qdpo.listing import Listing

GROUPS = {
    "all": "all pairs",
    "length_matched": "of equal length (within 10 %)",
    "chosen_longer": "chosen is longer",
    "chosen_shorter": "chosen is shorter",
}


def tables(result: dict[str, Any]) -> list[Listing]:
    """The tables of `qdpo.evaluation.summary`'s object."""
    found = [_before_after(result)]
    if any(result["groups"][name] for name in ("chosen_longer", "chosen_shorter")):
        found.append(_by_length(result))
    return found


def sentences(result: dict[str, Any]) -> list[str]:
    """What the tables do not say, one sentence each."""
    length, everything = result["length"], result["groups"]["all"]
    said = []
    preferred = everything["prefers_chosen"]
    if "policy" in preferred:
        p = preferred["p_value"]
        verdict = "beyond chance" if p < 0.05 else "within chance (at 5 %)"
        said.append(
            f"pairs that came right: {preferred['gained']:,}, that went wrong: {preferred['lost']:,}; "
            f"{verdict}, McNemar exact p = {show_p(p)}"
        )
    if (warning := only_length(result)) is not None:
        said.append(warning)
    if longer := length["longer_preferred"]:
        said.append(f"where lengths differ, the chosen side is the longer one in {share(longer)} of the pairs")
    if (r := length["margin_correlation"]) is not None:
        said.append(f"reward margin and difference in length correlate with r = {r:+.2f}")
    return said


def only_length(result: dict[str, Any]) -> str | None:
    """A sentence when preference shows among all pairs, and not among those of equal length."""
    whole, matched = (result["groups"][name] for name in ("all", "length_matched"))
    if "reward_accuracy" not in whole or whole["reward_accuracy"]["low"] <= 0.5:
        return None
    if matched is None:
        return "no two completions have the same length: whether more than length is preferred cannot be told"
    if matched["reward_accuracy"]["low"] > 0.5:
        return None
    pairs = counted(matched["pairs"], "pair has", "pairs have")
    return (
        f"of equal length, {share(matched['reward_accuracy'])} of {pairs} a positive margin: "
        "whether more than length is preferred cannot be told from them"
    )


def _before_after(result: dict[str, Any]) -> Listing:
    from qdpo.listing import Listing

    group = result["groups"]["all"]
    preferred, logps = group["prefers_chosen"], group["logps_per_token"]
    adapted = "policy" in preferred
    rows = [("prefers the chosen", *(share(preferred[side]) for side in ("base", "policy") if side in preferred))]
    if adapted:
        rows.append(("reward accuracy", "ties", share(group["reward_accuracy"])))
        rows.append((f"reward margin (beta {result['beta']:g})", "0", number(group["reward_margin"], ".3f")))
    for side, values in logps.items():
        after = [f"{values['policy']:.3f} (change {number(values['change'], '+.3f')})"] if adapted else []
        rows.append((f"{side}, nats per token", f"{values['base']:.3f}", *after))
    if adapted:
        for side, value in group["kl_per_token"].items():
            rows.append((f"KL(policy || base) on {side}, nats per token", "0", number(value, ".4f")))
    title = f"{result['data']['source']}: {counted(group['pairs'], 'pair')}"
    return Listing(("", "base", *(["policy"] if adapted else [])), rows, title=title)


def _by_length(result: dict[str, Any]) -> Listing:
    from qdpo.listing import Listing

    adapted = "policy" in result["groups"]["all"]["prefers_chosen"]
    columns = (
        ("prefers the chosen: base", "policy", "reward accuracy", "margin") if adapted else ("prefers the chosen",)
    )
    rows = []
    for name, title in GROUPS.items():
        group = result["groups"][name]
        if group is None:
            rows.append([title, "0"])
            continue
        cells = [share(group["prefers_chosen"]["base"])]
        if adapted:
            cells += [share(group["prefers_chosen"]["policy"]), share(group["reward_accuracy"])]
            cells.append(number(group["reward_margin"], ".3f"))
        rows.append([title, f"{group['pairs']:,}", *cells])
    return Listing(("", "pairs", *columns), rows, title="by length")


def share(estimate: dict[str, Any]) -> str:
    """A share with its interval, in percent."""
    return f"{estimate['value']:.1%} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def number(estimate: dict[str, Any], form: str) -> str:
    """A value with its interval."""
    if estimate["low"] is None:
        return format(estimate["value"], form)
    value, low, high = (format(estimate[key], form) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def show_p(p: float) -> str:
    """A p-value, as far as anybody needs it."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}" if p > 0 else "0"
