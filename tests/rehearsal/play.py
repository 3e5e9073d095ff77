"""One rehearsal: `qdpo train` itself, on a card that does not exist.

    python -m rehearsal.play GUARD --card a40 --preset garrulus-a40 --layers 2

Everything is what a run does: its stages from the data to the adapter's file, the probe, the checks, the
recipe, the evaluations, the written answers. Only the base has no values (its shape is the preset's), and the card has
none either. Prints one JSON object: what each phase asked of the card, and what run.json says.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from rehearsal import guard


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("guard", type=Path, help="the compiled device guard")
    parser.add_argument("--card", default="a40")
    parser.add_argument("--memory", type=float, help="GiB that the card has; default: its own")
    parser.add_argument("--preset", default="garrulus-a40")
    parser.add_argument("--layers", type=int, help="layers of the base; default: as many as it has")
    parser.add_argument("--long", action="store_true", help="pairs of the longest length that the preset allows")
    parser.add_argument("--kernel", choices=["sdpa", "varlen"], default="sdpa")
    parser.add_argument("--base", help="config.json of another base than the preset's, as JSON")
    parser.add_argument("--fault", help="break it on purpose, see rehearsal.broken")
    parser.add_argument("--set", action="append", default=[], help="as of `qdpo train`")
    parser.add_argument("--sites", action="store_true", help="list the lines that hold the peak")
    return parser.parse_args()


def main() -> None:
    """Play, and print what was seen."""
    options = arguments()
    guard.load(options.guard)
    # on a card that it believes in, bitsandbytes looks for parts of torch that only a build with CUDA has
    import bitsandbytes  # noqa: F401
    import torch
    from rehearsal import broken
    from rehearsal.card import CARDS, pretend
    from rehearsal.watch import Watch
    from torch._subclasses.fake_tensor import FakeTensorMode

    FakeTensorMode.avoid_device_init = property(lambda self: True)
    watch = Watch(options.sites)
    with tempfile.TemporaryDirectory(prefix="qdpo-rehearsal-") as folder:
        os.environ["QDPO_CACHE"] = folder
        prepared = prepare(options, Path(folder))
        card = CARDS[options.card]
        pretend(dataclasses.replace(card, memory=options.memory or card.memory), watch)
        if options.fault:
            broken.FAULTS[options.fault]()
        mark_phases(watch, options.kernel)
        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            watch,
            # the watch sees the thread that it was entered in
            torch.autograd.set_multithreading_enabled(False),
        ):
            record = played(prepared, Path(folder) / "run")
        lengths = lengths_seen(prepared)
    print(
        json.dumps(
            {
                "phases": {name: phase.as_dict() for name, phase in watch.phases.items()},
                "dtypes": sorted(watch.dtypes),
                "left": watch.bytes,
                "record": record,
                "lengths": lengths,
            }
        )
    )


def prepare(options: argparse.Namespace, folder: Path) -> Any:
    """The preset on a base without values and pairs of ours, and the base's shape in place of its files."""
    from gpu.bases import write_pairs
    from gpu.runs import configured

    from qdpo.config.resolve import resolve
    from qdpo.planner.find import find_base

    settings_of_base = find_base(resolve(options.preset, []).config.model.name).config
    if options.base:
        settings_of_base = json.loads(options.base)
    if options.layers:
        settings_of_base = {**settings_of_base, "num_hidden_layers": options.layers}
    base = folder / "base"
    write_base_without_weights(base, settings_of_base)
    data = write_pairs(folder, rows=16, heldout=4, long_every=1 if options.long else 17)
    settings = ("train.warmup_ratio=0.0", *options.set)
    use_settings(settings_of_base)
    return configured(options.preset, base, data, 2, *settings)


def lengths_seen(resolved: Any) -> dict[str, list[Any]]:
    """Lengths of the pairs that were trained on, as the planner takes them."""
    from qdpo.planner.data import lengths_for

    found = lengths_for(resolved.config)
    return {"train": list(found.train), "heldout": list(found.heldout)}


def write_base_without_weights(folder: Path, base: Any) -> None:
    """Configuration and tokenizer of a base, and one small file in place of its weights."""
    import shutil

    import torch
    from gpu.bases import config_of
    from safetensors.torch import save_file

    from qdpo.model.source import ASSETS

    folder.mkdir()
    config = config_of(base)
    config.save_pretrained(folder)
    save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ASSETS / "base" / name, folder / name)


def use_settings(base: Any) -> None:
    """Let the base be loaded without values."""
    import torch
    from gpu.bases import empty_model
    from torch import nn

    from qdpo.hardware import Device, choose_dtype
    from qdpo.model import load
    from qdpo.model.source import find

    def load_base(config: Any, device: Device) -> load.Base:
        dtype, reason = choose_dtype(config.dtype, device)
        model = empty_model(base, dtype)
        model.tie_weights()
        made: dict[int, Any] = {}  # a tied head is the same parameter
        for path, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and config.quantization == "nf4" and "layers." in path:
                model.set_submodule(path, nf4(module, device.torch, dtype, config.double_quant))
                continue
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.is_meta:
                    if id(parameter) not in made:
                        value = torch.empty(parameter.shape, dtype=dtype, device=device.torch)
                        made[id(parameter)] = nn.Parameter(value, requires_grad=False)
                    setattr(module, name, made[id(parameter)])
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, buffer.to(device.torch))
        model.tie_weights()
        model.is_loaded_in_4bit = config.quantization == "nf4"
        model.config.use_cache = False
        model.requires_grad_(False)
        return load.Base(model, find(config.name), dtype, reason, load.quantized_layers(model), dtype)

    load.load_base = load_base


def nf4(module: Any, device: Any, dtype: Any, double_quant: bool) -> Any:
    """A linear layer in 4 bits, quantized by bitsandbytes."""
    import torch
    from bitsandbytes.functional import quantize_4bit
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(module.in_features, module.out_features, False, dtype, double_quant, "nf4", device="meta")
    weight = torch.empty(module.weight.shape, dtype=dtype, device=device)
    data, state = quantize_4bit(weight, blocksize=64, compress_statistics=double_quant, quant_type="nf4")
    # a Params4bit cannot be made of a tensor that is a subclass already
    packed: Any = torch.nn.Parameter(data, requires_grad=False)
    packed.quant_state = layer.quant_state = state
    packed.bnb_quantized, packed.module = True, layer
    packed.compress_statistics, packed.quant_type = double_quant, "nf4"
    packed.blocksize, packed.quant_storage = 64, torch.uint8
    layer.weight = packed
    layer.support_avx512bf16_for_cpu = False
    return layer


def mark_phases(watch: Any, kernel: str) -> None:
    """Name the parts of a run, and answer what only values could."""
    from qdpo.engine import fused_linear, fused_mlp, probe, varlen
    from qdpo.training import invariants, recipe, run, samples
    from qdpo.training.stages import memory

    def phase(owner: Any, function: str, name: str) -> None:
        plain = getattr(owner, function)

        @functools.wraps(plain)
        def marked(*args: Any, **kwargs: Any) -> Any:
            with watch.during(name):
                return plain(*args, **kwargs)

        setattr(owner, function, marked)

    def counted(owner: Any, function: str, name: str) -> None:
        plain = getattr(owner, function)

        @functools.wraps(plain)
        def told(*args: Any, **kwargs: Any) -> Any:
            watch.phase.calls[name] += 1
            return plain(*args, **kwargs)

        setattr(owner, function, staticmethod(told))

    phase(run, "load_policy", "load")
    phase(run, "run_checks", "checks")
    phase(recipe.Recipe, "gradients", "step")
    phase(memory.Longest, "run", "longest")
    phase(recipe.Recipe, "score_heldout", "evaluation")
    phase(run, "reference_pass", "reference")
    phase(samples.Samples, "_written", "answers")
    for owner in (fused_linear.FusedLora, fused_mlp.FusedMlp):
        counted(owner, "forward", f"{owner.__name__} forward")
        counted(owner, "backward", f"{owner.__name__} backward")
    # a wrong layout would show, the first loss would be ln 2, and the kernels' times are not to be had
    probe._visible = lambda *args: 1.0
    invariants.TOLERANCE = 1.0
    varlen.is_faster = lambda *args: kernel == "varlen"


def played(resolved: Any, folder: Path) -> dict[str, Any]:
    """Train as `qdpo train` does; run.json at the end."""
    from qdpo.training.run import train

    try:
        train(resolved, folder, preset=resolved.config.name, command="qdpo train")
        failure = None
    except Exception as error:
        if os.environ.get("QDPO_TRACEBACK"):
            raise
        failure = f"{type(error).__name__}: {error}"
    record = json.loads((folder / "run.json").read_text())
    return {"failure": failure, **record}


if __name__ == "__main__":
    sys.exit(main())
