"""`qdpo verify EXPORT --against OTHER`: two artefacts side by side, without a trained model between them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from qdpo.console import say
from qdpo.errors import InputMissingError
from qdpo.export.formats import targets_of
from qdpo.export.output import RECORD
from qdpo.export.pairs import Heldout, read_heldout
from qdpo.export.source import TrainedRun, load_run
from qdpo.export.verify.bench import Bench, why_not_streamed
from qdpo.export.verify.checks import check_integrity
from qdpo.export.verify.need import explained_shortage, require_memory, tell
from qdpo.export.verify.parity import Scores, limits_of, per_token, score, tokens_to_keep
from qdpo.export.verify.room import Room
from qdpo.export.verify.run import find_run
from qdpo.export.verify.target import Target
from qdpo.files import read_json
from qdpo.hardware import find_device
from qdpo.libraries import quiet_libraries
from qdpo.model.merged import MergedModel


def compare_artefacts(one: Path, other: Path, run_folder: Path | None, pairs: int | None = None) -> dict[str, Any]:
    """Score two artefacts on the same held-out pairs.

    Args:
        one, other: folders of exports, or single GGUF files in them; a folder with several files needs a file.
        run_folder: the run whose held-out pairs are used; None looks above `one`.
        pairs: how many pairs; None takes the run's `verify.pairs`.

    Returns:
        engine of each, mean KL(one || other) in nats per token, top1 (share of equal likeliest tokens), agreement
        (share of pairs for which both prefer the same answer), preferred (for each, the share of pairs in which the
        chosen answer is likelier), margin_difference (mean of its size, nats).

    Raises:
        InputMissingError: an artefact is damaged, ambiguous or not there.
    """
    quiet_libraries()
    folder = one if one.is_dir() else one.parent
    run = load_run(run_folder or find_run(folder))
    targets = [_only_target(path, run) for path in (one, other)]
    heldout = read_heldout(run, pairs or limits_of(run).pairs)
    model = run.merged("original")  # for names and shapes; weights are read from the artefacts
    with tempfile.TemporaryDirectory() as scratch, explained_shortage():
        bench = Bench(Room(Path(scratch)), find_device().torch, heldout.longest, why_not_streamed(model, None))
        needed = require_memory(run.folder, whole=bench.not_streamed is not None)
        tell(model, heldout, len(targets), bench.device, needed)
        first, second = (_scores(target, model, heldout, bench) for target in targets)
    kl, top1 = per_token(first, second)
    a, b = first.margins, second.margins
    result: dict[str, Any] = {
        "engines": [first.engine, second.engine],
        "pairs": len(heldout.pairs),
        "kl": float(kl.mean()),
        "kl_max": float(kl.max()),
        "top1": float(top1.double().mean()),
        "agreement": float(((a > 0) == (b > 0)).double().mean()),
        "preferred": [float((a > 0).double().mean()), float((b > 0).double().mean())],
        "margin_difference": float((a - b).abs().mean()),
    }
    say(f"{one} against {other}, {len(heldout.pairs)} pairs:")
    say(f"  KL {result['kl']:.3g} nats a token (at most {result['kl_max']:.3g}), top-1 equal {result['top1']:.1%}")
    say(
        f"  both prefer the same answer in {result['agreement']:.1%} of the pairs; the chosen one is likelier in "
        f"{result['preferred'][0]:.1%} and {result['preferred'][1]:.1%}"
    )
    return result


def _only_target(path: Path, run: TrainedRun) -> Target:
    folder = path if path.is_dir() else path.parent
    integrity = check_integrity(folder)
    if not integrity.passed:
        raise InputMissingError(f"{folder} is damaged: {integrity.detail}", "export it again")
    targets = targets_of(folder, read_json(folder / RECORD), run)
    named = [target for target in targets if path.is_dir() or target.name == path.name or target.path == folder]
    if len(named) != 1:
        names = ", ".join(target.name for target in targets)
        raise InputMissingError(f"{path} has {len(targets)} artefacts: {names}", "name one of the files")
    return named[0]


def _scores(target: Target, model: MergedModel, heldout: Heldout, bench: Bench) -> Scores:
    with target.scorer(model, bench) as scorer:
        return score(scorer, heldout, tokens_to_keep(heldout, int(model.config["vocab_size"])), bench.room)
