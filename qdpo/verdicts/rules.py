"""What the curves of a run say: every rule is in this file, with the numbers that it rests on and its source.

The rules are pure functions of `Evidence`, the lines of metrics.jsonl and what is known besides. They compare levels
(means of a curve's last third, which the verdicts quote), and ask a change to be larger than the curve's own noise. An
alarm asks somebody to do something; while a run is too young to be judged, only a rule that time cannot heal speaks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from qdpo.data.quality.separable import is_alarming
from qdpo.evaluation.statistics import wilson
from qdpo.evaluation.written import Change, Written
from qdpo.grammar import counted
from qdpo.verdicts.evidence import Evidence
from qdpo.verdicts.trends import accuracy_noise, jitter, level, points, share_rising, smooth, values

Kind = Literal[
    "too early",
    "too few to tell",
    "cannot be told",
    "not learning",
    "learning",
    "saturated",
    "over-fitting",
    "degenerate",
    "forgetting",
    "too many epochs",
    "length-hacking",
    "told apart unread",
    "learning rate too high",
    "learning rate too low",
    "early dip",
    "both rewards fall",
]

# Where the rules come from.
DPO = "Rafailov et al. 2023, arXiv:2305.18290"
BOTH_FALL = "Rafailov et al. 2024, arXiv:2404.12358; the DPO authors in eric-mitchell/direct-preference-optimization#32"
LN2 = "huggingface/trl#1627; at a margin of 0 the loss is -log sigmoid(0) = ln 2"
OVERFITTING = "Zephyr, Tunstall et al. 2023, arXiv:2310.16944 (train accuracy 1 after an epoch, held-out loss rising)"
DISPLACEMENT = "Razin et al. 2024, arXiv:2410.08847; Pal et al. 2024 (Smaug), arXiv:2402.13228"
WILSON = "Wilson's interval (Wilson 1927), 95 %"
REPETITION = "Welleck et al. 2019, arXiv:1908.04319 (share of repeated 4-grams)"
FORGETTING = "Kirkpatrick et al. 2017, arXiv:1612.00796; Biderman et al. 2024, arXiv:2405.09673 (LoRA forgets less)"
EPOCHS = (
    "published recipes: one to three epochs (Zephyr, NeuralHermes); their authors report over-fitting after the first"
)
LENGTH = "Park et al. 2024, arXiv:2403.19159; Singhal et al. 2023, arXiv:2310.03716"
SHORTCUT = "Gururangan et al. 2018, arXiv:1803.02324 (annotation artifacts); Geirhos et al. 2020, arXiv:2004.07780"
RATES = "published recipes: 5e-7 for full weights (Zephyr), 5e-6 for QLoRA (its handbook), 5e-5 for LoRA (NeuralHermes)"
DISCOPOP = "Lu et al. 2024 (DiscoPOP), arXiv:2406.08414: the loss is not convex near 0"

SAMPLES = "let some dozens of held-out prompts be answered (samples.count)"

# The limits. Losses are compared with where they started, so that they mean the same for every loss.
YOUNG = 0.15  # share of the run before which little is said
NOT_FALLEN = 0.97  # a loss above this share of its start has not fallen
HARDLY_FALLEN = 0.94
WORSE = 1.15  # a loss above this share of its start is worse than no training
STILL = 1e-5  # nats per completion that a policy has moved at the least when it moves at all
LITTLE_MOVED = 2.0  # nats per completion that a policy has moved at the most when its learning rate is too low
FAR_MOVED = 3.0  # nats per completion that it has moved at the least when the rate is too high
OVERFIT_RISE = 0.08  # held-out loss above its best, as a share of its start
OVERFIT_DROP = 0.10  # held-out margin below its best, as a share of the best
NOISE = 4  # standard deviations: the best of twenty evaluations alone is two below their mean
ALL_WON, NOTHING_LEFT = 0.98, 0.15  # training accuracy, and share of the starting loss, of a saturated run
COLLAPSE_PER_TOKEN = 1.0  # nats per token that the chosen completions have lost: each token e times less likely
COLLAPSE_RATIO = 2.0  # the same where lengths are not known: log-probability over its start
REPEATED, REPEATED_MORE = 0.30, 0.20  # share of repeated 4-grams in answers, and how much above the base's
FORGOT = 0.05  # plain text's nats per token above their start, as a share of it
MANY_EPOCHS = 10  # passes over the training pairs
FEWEST_PAIRS = 30  # held-out pairs under which nothing is called learned
FEWEST_ANSWERS = 20  # written answers under which nothing is said of them
SURELY, LIKELY = 0.01, 0.05  # probability of the like by chance: below it an alarm, and no good word any more
MORE_BROKEN, FEWER_ENDED = (
    0.10,
    0.20,
)  # share of the prompts by which more answers are broken (fewer right), or fewer end
RANKED = 0.85  # lower end of the accuracy's interval from which on a small margin is no fault
NAMED = 3  # features that a verdict names
LONGER, LONG_WORDS = 1.5, 20  # answers over the base's in words, and how many words make that worth a remark
LENGTH_GAP = 0.30  # accuracy of pairs whose chosen side is the longer minus that of the others


@dataclass(frozen=True)
class Verdict:
    """One thing that the curves say.

    Attributes:
        kind: its name.
        alarm: whether somebody should do something.
        good: whether pairs and written answers both say that training did what it is for.
        says: the finding, with the numbers that it rests on.
        change: what to check or which setting to change; empty when nothing needs to.
        source: who found out.
    """

    kind: Kind
    alarm: bool
    says: str
    change: str
    source: str
    good: bool = False

    def line(self) -> str:
        """The verdict as one line."""
        return f"{self.kind}: {self.says}" + (f"; {self.change}" if self.alarm and self.change else "")


def _alarm(kind: Kind, says: str, change: str, source: str) -> Verdict | None:
    """An alarm where there is something to say."""
    return Verdict(kind, True, says, change, source) if says else None


def _state(kind: Kind, says: str, source: str, change: str = "") -> Verdict:
    return Verdict(kind, False, says, change, source)


def judge(evidence: Evidence) -> list[Verdict]:
    """What a run's curves say, the most urgent first; never empty.

    The first verdict is the run's; further ones stand beside it.
    """
    alarms = [verdict for rule in ALARMS if (verdict := rule(evidence)) is not None]
    # One cause, one alarm: a diverged run breaks every other rule too, and one that over-fits may be back at chance.
    if alarms and alarms[0].kind == "learning rate too high":
        alarms = alarms[:1]
    elif any(verdict.kind == "over-fitting" for verdict in alarms):
        alarms = [verdict for verdict in alarms if verdict.kind != "not learning"]
    remarks = [verdict for rule in REMARKS if (verdict := rule(evidence)) is not None]
    if alarms:
        return [*alarms, *remarks]
    state = next(verdict for rule in STATES if (verdict := rule(evidence)) is not None)
    return [state, *remarks]


def learning_rate_too_high(evidence: Evidence) -> Verdict | None:
    """The policy has moved far, and its loss is no better, or worse, than without any training."""
    start = evidence.start_loss
    if start is None or start <= 0 or evidence.moved < FAR_MOVED:
        return None
    found = _thrown_about(evidence, start) or _broken(evidence, start)
    return _alarm(
        "learning rate too high",
        found and f"{found}; the policy has moved {evidence.moved:.1f} nats per completion",
        f"{_rate(evidence, 0.1)}, or more train.warmup_steps",
        RATES,
    )


def _thrown_about(evidence: Evidence, start: float) -> str:
    rows = evidence.ripe_train
    train = values(rows, "loss")
    now = level(train)
    if now is None or len(train) < 3:
        return ""
    spikes = sum(loss > 2 * start for loss in train)
    if now <= WORSE * start and (spikes < max(2, 0.1 * len(train)) or now < 0.5 * start):
        return ""
    step, worst = max(points(rows, "loss"), key=lambda point: point[1])
    return (
        f"the training loss is {now:.4f}, it began at {start:.4f}; {spikes} of {len(train)} logged steps are above "
        f"twice that, the worst {worst:.2f} at step {step}"
    )


def _broken(evidence: Evidence, start: float) -> str:
    collapse = _collapse(evidence)
    train = level(values(evidence.ripe_train or evidence.train, "loss"))
    if not collapse or evidence.loss is None or evidence.above_chance:
        return ""
    if evidence.loss <= NOT_FALLEN * start or (train is not None and train <= NOT_FALLEN * start):
        return ""
    return f"{collapse}, and the held-out loss is {evidence.loss:.4f}, it began at {start:.4f}"


def degenerate(evidence: Evidence) -> Verdict | None:
    """The chosen completions themselves have become unlikely, or the answers repeat themselves."""
    collapse = _collapse(evidence)
    return _alarm(
        "degenerate",
        "; ".join(filter(None, (collapse, _broken_answers(evidence), _repetition(evidence)))),
        f"{_rate(evidence, 0.5)}, raise loss.beta (now {evidence.setup.beta:g}), or add the chosen answers' own "
        "likelihood: loss.loss_type: [sigmoid, sft]; look at the samples",
        DISPLACEMENT if collapse else f"{REPETITION}; {DISPLACEMENT}",
    )


def _collapse(evidence: Evidence) -> str:
    now = evidence.heldout("logps/chosen")
    if now is None:
        return ""
    known = [row["logps/chosen"] for row in evidence.evals[:1] if row["step"] == 0 and "logps/chosen" in row]
    reward = evidence.heldout("rewards/chosen")
    start = known[0] if known else now - (reward or 0.0) / evidence.setup.beta
    tokens = evidence.setup.chosen_tokens
    fallen = (start - now) / tokens if tokens else 0.0
    collapsed = fallen >= COLLAPSE_PER_TOKEN if tokens else start < 0 and now <= COLLAPSE_RATIO * start
    if not collapsed:
        return ""
    each = f", {fallen:.2f} nats less per token" if tokens else ""
    return f"the chosen completions have become unlikely: log-probability {start:.1f} to {now:.1f}{each}"


def _broken_answers(evidence: Evidence) -> str:
    """More written answers are broken than before, fewer come to an end, or fewer are right: no chance, and many."""
    last = evidence.written
    if last is None or last.prompts < FEWEST_ANSWERS:
        return ""
    found = [
        change.of_answers(what) + (f": {last.reasons}" if change is last.broken else "")
        for change, worse, least, what in _changes(last)
        if worse >= least and change.p_value < SURELY
    ]
    return "; ".join(found)


def _changes(written: Written) -> list[tuple[Change, float, float, str]]:
    """What was measured of the answers: by which share of them it got worse, what is much, and what it is."""
    kinds = (
        (written.broken, 1, MORE_BROKEN, "are broken"),
        (written.ended, -1, FEWER_ENDED, "come to an end"),
        (written.right, -1, MORE_BROKEN, "are right"),
    )
    return [(change, sign * change.grown, least, what) for change, sign, least, what in kinds if change is not None]


def _repetition(evidence: Evidence) -> str:
    if not evidence.answers:
        return ""
    base, policy = evidence.answers[-1].repeated
    if policy < REPEATED or policy < base + REPEATED_MORE:
        return ""
    return f"answers repeat themselves: {policy:.0%} of their 4-grams came before, the base's {base:.0%}"


def forgetting(evidence: Evidence) -> Verdict | None:
    """Text that has nothing to do with the pairs has become less likely."""
    found = points(evidence.evals, "text_nll")
    if len(found) < 2 or found[0][0] != 0 or found[0][1] <= 0:
        return None
    before, (step, now) = found[0][1], found[-1]
    risen = now / before - 1
    return _alarm(
        "forgetting",
        f"text that is not of the pairs costs {now:.4f} nats a token at step {step}, {before:.4f} before: {risen:+.1%}"
        if risen > FORGOT + 1e-9  # 2.1 over 2 is a little more than 5 % in floating point
        else "",
        f"{_rate(evidence, 0.5)}, raise loss.beta (now {evidence.setup.beta:g}), train less, or add the chosen answers"
        "' own likelihood: loss.loss_type: [sigmoid, sft]",
        FORGETTING,
    )


def too_many_epochs(evidence: Evidence) -> Verdict | None:
    """The same few pairs were shown so often that they can be known by heart."""
    done = evidence.epochs
    return _alarm(
        "too many epochs",
        f"{done:.0f} passes over {evidence.setup.train_pairs:,} training pairs" if done > MANY_EPOCHS else "",
        "more pairs, or fewer passes (train.num_train_epochs: 1 to 3, train.max_steps: null)",
        EPOCHS,
    )


def length_hacking(evidence: Evidence) -> Verdict | None:
    """What was learned is length: answers grow, or pairs are won where the chosen side is the longer one."""
    return _alarm(
        "length-hacking",
        "; ".join(filter(None, (_answers_grow(evidence), _longer_wins(evidence)))),
        "look at the lengths in the data report, balance the pairs by length, or use loss.loss_type: [sigmoid_norm], "
        "which divides log-probabilities by length; compare within length-matched pairs (`qdpo eval`)",
        LENGTH,
    )


def _answers_grow(evidence: Evidence) -> str:
    answers = [entry for entry in evidence.answers if entry.step > 0]
    if not answers:
        return ""
    base, last = answers[-1].words
    first = answers[0].words[1]
    if base <= 0 or last < LONGER * base or last - base < LONG_WORDS:
        return ""
    if len(answers) >= 3 and last < 1.1 * first and first >= LONGER * base:
        return ""  # long from the first evaluation on: a taste of the data's style, not a growing habit
    return f"answers have {last:.0f} words, the base's {base:.0f}"


def _longer_wins(evidence: Evidence) -> str:
    if evidence.lengths is None:
        return ""
    (longer, won_longer), (shorter, won_shorter) = evidence.lengths.chosen_longer, evidence.lengths.chosen_shorter
    if min(longer, shorter) < 10:
        return ""
    high, low = won_longer / longer, won_shorter / shorter
    noise = 1.96 * math.sqrt(0.25 / longer + 0.25 / shorter)
    if high - low < max(LENGTH_GAP, noise) or low > 0.5 + accuracy_noise(shorter):
        return ""
    return (
        f"pairs are won where the chosen side is the longer one ({high:.1%} of {longer}) and not where it is the "
        f"shorter one ({low:.1%} of {shorter})"
    )


def told_apart_unread(evidence: Evidence) -> Verdict | None:
    """The training pairs' answers alone tell which is chosen: what is won may be won by that."""
    found = evidence.separable
    if not is_alarming(found):
        return None
    features = "; ".join(
        f"{feature['feature']}: only chosen {feature['chosen']:,}, only rejected {feature['rejected']:,}"
        for feature in found["features"][:NAMED]
    )
    return _alarm(
        "told apart unread",
        f"without reading the prompt a linear model of the answers tells chosen from rejected in {found['share']:.1%} "
        f"[{found['low']:.0%}, {found['high']:.0%}] of {found['n']:,} training pairs"
        + (f" ({features})" * bool(features)),
        "look at the data report's rows (`qdpo data`), and take what sets the sides apart out of the answers",
        SHORTCUT,
    )


def over_fitting(evidence: Evidence) -> Verdict | None:
    """Since the best evaluation the training margin rises, and the held-out pairs get worse."""
    start = evidence.start_loss
    if start is None or start <= 0 or len(points(evidence.evals, "loss")) < 3:
        return None
    found = _loss_rises(evidence, start) or _margin_falls(evidence)
    if found is None:
        return None
    best_step, text = found
    before = level(values([row for row in evidence.train if row["step"] <= best_step], "rewards/margins")) or 0.0
    now = evidence.trained("rewards/margins")
    train, heldout = evidence.trained("rewards/accuracies"), evidence.accuracy
    if now is None or now <= before or train is None or heldout is None or train <= heldout:
        return None
    if heldout < 0.5 - accuracy_noise(evidence.setup.pairs):
        return None  # worse than guessing: that is no memory of the training pairs, but the opposite of them
    return _alarm(
        "over-fitting",
        f"{text}, while the training margin rose to {now:.3f}; accuracy {train:.1%} in training, {heldout:.1%} "
        "held-out",
        "train less (train.num_train_epochs or train.max_steps), keep the best step (train.load_best: loss), stop "
        "early (train.early_stop: loss), or raise loss.beta; some over-fitted DPO models still answer better, so "
        "compare samples before you discard one",
        OVERFITTING,
    )


def _loss_rises(evidence: Evidence, start: float) -> tuple[int, str] | None:
    step, best, now, noise = _since_best(points(evidence.evals, "loss"), min)
    if now - best <= max(OVERFIT_RISE * start, noise):
        return None
    return step, f"the held-out loss was best around step {step} ({best:.4f}) and is {now:.4f} now"


def _margin_falls(evidence: Evidence) -> tuple[int, str] | None:
    margins = points(evidence.scored, "rewards/margins")
    if len(margins) < 4:
        return None
    step, best, now, noise = _since_best(margins, max)
    accuracies = smooth(values(evidence.scored, "rewards/accuracies")) or [0.0]
    if best <= 0 or best - now <= max(OVERFIT_DROP * best, noise) or max(accuracies) - accuracies[-1] <= 0.02:
        return None
    return step, f"the held-out margin was best around step {step} ({best:.3f}) and is {now:.3f} now"


def _since_best(curve: list[tuple[int, float]], better: Callable[..., float]) -> tuple[int, float, float, float]:
    """The step of a curve's best point, its value there and now, both smoothed, and what is only noise."""
    found = [value for _, value in curve]
    calm = smooth(found)
    best = better(calm)
    return curve[calm.index(best)][0], best, calm[-1], NOISE * jitter(found)


def stuck_in_the_dip(evidence: Evidence) -> Verdict | None:
    """DiscoPOP's loss has a local minimum on the wrong side of 0, and the run has settled in it."""
    if not evidence.discopop or not evidence.ripe or evidence.margin is None or evidence.margin >= 0:
        return None
    rows = values(evidence.scored, "rewards/margins")
    if evidence.progress < 0.6 or len(rows) < 3 or rows[-1] > min(rows) + 0.5 * abs(min(rows)):
        return None
    return _alarm(
        "not learning",
        f"the held-out margin is {evidence.margin:+.4f} after {evidence.progress:.0%} of the run: the policy has not "
        f"come out of the dip that DiscoPOP begins with (local minimum at {dip_margin(evidence.setup.tau):+.3f})",
        f"{_rate(evidence, 3)}, train longer, or begin with loss.loss_type: [sigmoid] and continue from that adapter",
        DISCOPOP,
    )


def learning_rate_too_low(evidence: Evidence) -> Verdict | None:
    """Everything goes the right way, and almost nowhere."""
    found = _hardly_moved(evidence)
    return None if found is None or _ranked(evidence) else _alarm("learning rate too low", *found, RATES)


def small_margin(evidence: Evidence) -> Verdict | None:
    """The policy has hardly moved, and tells the pairs apart all the same."""
    found = _hardly_moved(evidence)
    return _state("learning rate too low", found[0], RATES, found[1]) if found and _ranked(evidence) else None


def _ranked(evidence: Evidence) -> bool:
    """Whether nearly all held-out pairs are won, by however little."""
    return evidence.setup.pairs is not None and _interval(evidence)[0] >= RANKED


def _hardly_moved(evidence: Evidence) -> tuple[str, str] | None:
    """What shows that the policy hardly moves, and what to change."""
    start, now, margin = evidence.start_loss, evidence.loss, evidence.margin
    if not evidence.ripe or start is None or now is None or margin is None or evidence.discopop:
        return None
    margins = values(evidence.scored, "rewards/margins")
    train = evidence.trained("rewards/margins")
    trained = evidence.trained("loss")
    rising = share_rising([0.0, *margins]) >= 0.75 and margin > 3 * jitter(margins)
    hardly = HARDLY_FALLEN * start < now <= start and (trained is None or trained > HARDLY_FALLEN * start)
    if not (rising and hardly and STILL < evidence.moved < LITTLE_MOVED) or (train is not None and train <= 0):
        return None
    accuracy = "" if evidence.accuracy is None else f", accuracy {evidence.accuracy:.1%}"
    return (
        f"the held-out margin rises, but only to {margin:.2g}; loss {now:.4f} from {start:.4f}{accuracy}; the policy "
        f"has moved {evidence.moved:.2g} nats per completion",
        f"{_rate(evidence, 10 if evidence.moved < LITTLE_MOVED / 10 else 3)}, or train longer (train.max_steps)",
    )


def not_learning(evidence: Evidence) -> Verdict | None:
    """The held-out pairs are won no more often than by guessing, and the loss has not fallen."""
    start, now, margin = evidence.start_loss, evidence.loss, evidence.margin
    if not evidence.ripe or start is None or now is None or margin is None or evidence.accuracy is None:
        return None
    if (evidence.above_chance and margin > 0) or (now <= NOT_FALLEN * start and not evidence.discopop):
        return None
    if evidence.discopop and -2 * abs(dip_margin(evidence.setup.tau)) <= margin < 0:
        return None  # the dip has rules of its own
    numbers = (
        f"held-out accuracy {evidence.accuracy:.1%}, margin {margin:+.4f}, loss {now:.4f} (it began at {start:.4f}) "
        f"after {evidence.step} steps"
    )
    gradient = level(values(evidence.train, "grad_norm"))
    if evidence.moved < 1e-3:
        numbers = f"nothing moves: {numbers}" + ("" if gradient is None else f"; gradient norm {gradient:.2g}")
        change = (
            "check that the adapters get a gradient (the invariant `every adapter learns` in run.json), and that "
            f"train.learning_rate ({_number(evidence.setup.learning_rate)}) is not 0 or lost in the warmup"
        )
        return _alarm("not learning", numbers, change, LN2)
    train = evidence.trained("rewards/accuracies")
    beside = "" if train is None else f"; training accuracy {train:.1%}"
    if evidence.accuracy < 0.5 - accuracy_noise(evidence.setup.pairs) and train is not None and train > 0.6:
        change = "chosen and rejected seem to be swapped in one of the two sets: `qdpo data --preview 5`, data.columns"
    else:
        change = (
            "check that the better answer is `chosen` (`qdpo data --preview 5`), that the difference is not cut off "
            "(the data report's cuts, data.max_length), and that labels are not noise (then loss.label_smoothing)"
        )
    return _alarm("not learning", numbers + beside, change, f"{DPO}; {LN2}")


ALARMS: tuple[Callable[[Evidence], Verdict | None], ...] = (
    learning_rate_too_high,
    over_fitting,
    degenerate,
    forgetting,
    too_many_epochs,
    length_hacking,
    told_apart_unread,
    stuck_in_the_dip,
    learning_rate_too_low,
    not_learning,
)
"""The rules that ask for something, the most urgent first."""


def early_dip(evidence: Evidence) -> Verdict | None:
    """DiscoPOP pushes the margin down first: expected."""
    rows = values(evidence.scored, "rewards/margins") or values(evidence.train, "rewards/margins")
    if not evidence.discopop or not rows or rows[-1] >= 0:
        return None
    return _state(
        "early dip",
        f"the margin is {rows[-1]:+.4f} at step {evidence.step}: expected with DiscoPOP, whose loss pushes it towards "
        f"{dip_margin(evidence.setup.tau):+.3f} before it rises",
        DISCOPOP,
    )


def too_early(evidence: Evidence) -> Verdict | None:
    """Too little of the run is done, and it does not learn visibly yet."""
    settled = evidence.progress >= YOUNG and evidence.step > evidence.setup.warmup and evidence.scored
    if settled and (evidence.ripe or _fallen(evidence)):
        return None
    where = f"step {evidence.step}" + (f" of {evidence.setup.max_steps}" if evidence.setup.max_steps else "")
    loss = "" if evidence.loss is None else f", held-out loss {evidence.loss:.4f}"
    start = "" if evidence.start_loss is None else f", it began at {evidence.start_loss:.4f}"
    return _state("too early", f"{where}{loss}{start if loss else ''}", LN2)


def too_few(evidence: Evidence) -> Verdict | None:
    """So few held-out pairs that winning all of them may be chance."""
    pairs = evidence.setup.pairs
    if pairs is None or pairs >= FEWEST_PAIRS or evidence.newest_accuracy is None:
        return None
    return _state(
        "too few to tell",
        f"held-out accuracy {_accuracy(evidence)}; under {FEWEST_PAIRS} pairs nothing is called learned",
        WILSON,
        "hold more pairs out (data.eval_fraction, data.eval_name)",
    )


def within_chance(evidence: Evidence) -> Verdict | None:
    """The held-out accuracy's interval has one half in it."""
    if evidence.setup.pairs is None or evidence.newest_accuracy is None or evidence.discopop:
        return None
    if _interval(evidence)[0] > 0.5:
        return None
    chance = f"held-out accuracy {_accuracy(evidence)} has chance, 50 %, in its interval"
    return _state(
        "cannot be told",
        ", ".join([chance, *_losses(evidence)]),
        WILSON,
        "hold more pairs out (data.eval_fraction), or train longer",
    )


def saturated(evidence: Evidence) -> Verdict | None:
    """The training pairs are all won and teach nothing any more; the held-out ones did not suffer."""
    start, now = evidence.start_loss, evidence.trained("loss")
    accuracy = evidence.trained("rewards/accuracies")
    if start is None or now is None or accuracy is None or accuracy < ALL_WON or now > NOTHING_LEFT * start:
        return None
    heldout = "" if evidence.accuracy is None else f"; held-out accuracy {evidence.accuracy:.1%}"
    return _state(
        "saturated",
        f"training accuracy {accuracy:.1%}, training loss {now:.4f} from {start:.4f}: nothing is left to learn from "
        f"these pairs{heldout}",
        DPO,
        "fewer steps do (train.max_steps), or more and harder pairs",
    )


def learning(evidence: Evidence) -> Verdict:
    """The held-out pairs are preferred as they should be; good where the written answers are no worse for it."""
    known = evidence.newest_accuracy is not None
    parts = [*([f"accuracy {_accuracy(evidence)}; chance 50 %"] if known else []), *_losses(evidence)]
    said = f"held-out {', '.join(parts)}"
    last = evidence.written
    if last is None or last.broken is None or last.prompts < FEWEST_ANSWERS:
        count = 0 if last is None or last.broken is None else last.prompts
        looked = "no written answer was looked at" if not count else f"only {count} written answers were looked at"
        return _state("learning", f"{said}; {looked}, so what it writes cannot be told", DPO, SAMPLES)
    # a few more broken answers among surely more right ones are no loss
    better = last.right is not None and last.right.grown > 0 and last.right.p_value < LIKELY
    worse = any(
        by >= least or (by > 0 and change.p_value < LIKELY and not better) for change, by, least, _ in _changes(last)
    )
    said += f"; of {last.prompts} written answers {last.soundness()}"
    return Verdict("learning", False, said, "look at the samples" if worse else "", DPO, good=not worse)


def _accuracy(evidence: Evidence) -> str:
    """The newest held-out accuracy with its interval and what it is of."""
    assert evidence.newest_accuracy is not None
    share = f"{evidence.newest_accuracy:.1%}"
    if evidence.setup.pairs is None:
        return share
    low, high = _interval(evidence)
    return f"{share} [{low:.0%}, {high:.0%}] of {counted(evidence.setup.pairs, 'pair')}"


def _interval(evidence: Evidence) -> tuple[float, float]:
    """The 95 % interval of the newest held-out accuracy; a tie counts half, as the accuracy has it."""
    pairs = evidence.setup.pairs or 0
    found = wilson(round((evidence.newest_accuracy or 0.0) * pairs), pairs)
    return found.low or 0.0, found.high if found.high is not None else 1.0


def _losses(evidence: Evidence) -> list[str]:
    """Newest held-out margin and loss, as far as they are known."""
    margin, loss = (values(evidence.scored, key)[-1:] for key in ("rewards/margins", "loss"))
    start = "" if evidence.start_loss is None else f" from {evidence.start_loss:.4f}"
    return [*(f"margin {value:+.3f}" for value in margin), *(f"loss {value:.4f}{start}" for value in loss)]


STATES: tuple[Callable[[Evidence], Verdict | None], ...] = (
    early_dip,
    too_early,
    too_few,
    within_chance,
    saturated,
    learning,
)
"""What a run is when there is no alarm; the first that holds."""


def both_rewards_fall(evidence: Evidence) -> Verdict | None:
    """Chosen and rejected rewards are both negative, the margin is not: normal."""
    chosen, margin = evidence.heldout("rewards/chosen"), evidence.margin
    if chosen is None or margin is None or margin <= 0 or not _fallen(evidence):
        return None
    if chosen >= -2 * jitter(values(evidence.scored, "rewards/chosen")) or chosen > -0.02:
        return None
    rejected = chosen - margin
    return _state(
        "both rewards fall",
        f"rewards of chosen {chosen:+.3f} and of rejected {rejected:+.3f} are both below 0 and the margin is "
        f"{margin:+.3f}: normal, the loss asks for the difference alone",
        BOTH_FALL,
    )


REMARKS: tuple[Callable[[Evidence], Verdict | None], ...] = (both_rewards_fall, small_margin)
"""What stands beside a verdict."""


def dip_margin(tau: float) -> float:
    """The reward margin of DiscoPOP's local minimum: where its loss of l = beta * d stops falling on the left of 0.

    loss(l) = (1 - m) log(1 + exp(-l)) + m exp(-l), m = sigmoid(l / tau); found on a grid, l from -10 tau to 0.
    """

    def loss(margin: float) -> float:
        share = 1 / (1 + math.exp(-margin / tau))
        return (1 - share) * math.log1p(math.exp(-margin)) + share * math.exp(-margin)

    return min((-tau * step / 100 for step in range(1001)), key=loss)


def _fallen(evidence: Evidence) -> bool:
    """Whether the held-out pairs show that something was learned."""
    if evidence.discopop:
        return evidence.above_chance and (evidence.margin or 0.0) > 0
    start, now = evidence.start_loss, evidence.loss
    return start is not None and now is not None and now <= NOT_FALLEN * start and (evidence.margin or 0.0) > 0


def _rate(evidence: Evidence, factor: float) -> str:
    rate = evidence.setup.learning_rate
    word = "raise" if factor > 1 else "lower"
    return f"{word} train.learning_rate" + (f" (now {rate:g}, try {rate * factor:.2g})" if rate else "")


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"
