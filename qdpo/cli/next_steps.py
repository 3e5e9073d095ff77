"""What to do next, at the end of a verb: a few commands that can be copied."""

from __future__ import annotations

import shlex
from pathlib import Path

from qdpo import console
from qdpo.run.folder import EXPORT


def say_next(*steps: tuple[str, str]) -> None:
    """Say commands, and what each does.

    Args:
        steps: command and purpose.
    """
    width = max(len(command) for command, _ in steps)
    console.say("next:")
    for command, purpose in steps:
        console.say(f"  {command:<{width}}  # {purpose}")


STEPS = 3
"""Commands at the end of a run."""


def after_training(run: Path) -> None:
    """Next steps of a run, the first of those that its card and page have."""
    from qdpo.report.facts import gather

    steps = [step for step in gather(run).next_steps if step.command][:STEPS]
    say_next(*((step.command.replace("DIR", shlex.quote(str(run))), step.what) for step in steps))


def after_export(run: Path, export: Path, format: str, verdict: str | None) -> None:
    """Next steps of an export.

    Args:
        run: the run directory.
        export: the export's folder.
        format: its format.
        verdict: what its verification found; None where it was not verified.
    """
    folder, place = shlex.quote(str(run)), shlex.quote(str(export))
    if verdict is None:
        first = (f"qdpo verify {place} --run {folder}", "score it against what was trained, before you use it")
    elif verdict == "passed":
        first = _use(export, format)
    elif verdict == "cannot be told":
        first = (f"qdpo verify {place} --run {folder} --pairs 256", "with more pairs, if the run held out so many")
    elif format in ("gguf", "ollama"):
        first = (
            f"qdpo merge-export --run {folder} --format gguf --pick",
            "the smallest type that keeps what was trained",
        )
    else:
        first = (f"qdpo merge-export --run {folder} --format safetensors", "16 bits keep more than 4")
    own = export.parent.name == EXPORT and export.parent.parent.absolute() == run.absolute()
    last = f"push --run {folder} --to USER/NAME --format {format}" if own else f"report --run {folder}"
    say_next(
        first,
        (f"qdpo chat --run {folder} --compare", "talk to base and result side by side"),
        (
            f"qdpo {last}",
            "publish it, private at first" if own else "card and page with the export",
        ),
    )


def _use(export: Path, format: str) -> tuple[str, str]:
    """The command of the program that an export is made for."""
    files = sorted(export.glob("*.gguf"))
    if format == "ollama":
        return (
            f"ollama create {export.parent.parent.name} -f {shlex.quote(str(export / 'Modelfile'))}",
            "use it in Ollama",
        )
    if format == "gguf" and files:
        return f"llama-cli -m {shlex.quote(str(files[0]))}", "use it in llama.cpp"
    if format == "gguf-lora" and files:
        return f"llama-cli -m BASE.gguf --lora {shlex.quote(str(files[0]))}", "use it on the base's own GGUF"
    return f"vllm serve {shlex.quote(str(export))}", "use it in vLLM, or load it in transformers"
