"""run.json, section by section: what ran, where, on what, and with which result.

Training writes a section as soon as it knows it, so a run that was interrupted has some of them, and one of an older
version may have fewer values in them: what is missing reads as None (a section as one whose values are all None),
and what this version does not know is kept as it is. A file is written with what was set, and nothing else.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Metrics = dict[str, Any]
"""A line of metrics.jsonl: `step`, `epoch`, and numbers by TRL's names, with `eval_` before those of an evaluation."""


class Section(BaseModel):
    """Values of run.json that belong together; false where none of them was ever set."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_empty(cls, value: Any) -> Any:
        return {} if value is None else value

    def __bool__(self) -> bool:
        return bool(self.model_fields_set)


class Hardware(Section):
    """The device: its kind (`cuda`, `cpu`), its compute capability (major, minor), torch's setting of memory, and on a
    CPU the threads that compute."""

    kind: str | None = None
    name: str | None = None
    capability: list[int] | None = None
    memory_bytes: int | None = None
    allocator: str | None = None
    threads: int | None = None


class Tokenizer(Section):
    """The tokenizer and the chat template by their hashes, and ids of special tokens."""

    sha256: str | None = None
    template_sha256: str | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None


class Split(Section):
    """A set of pairs: where it came from, a hash over all its tokens, and how many pairs there are."""

    name: str | None = None
    revision: str | None = None
    split: str | None = None
    fingerprint: str | None = None
    pairs: int | None = None


class Data(Section):
    """The pairs that were trained and evaluated on."""

    train: Split = Split()
    heldout: Split = Split()


class Backend(Section):
    """What loaded the model: `hf` or `unsloth`, and its version."""

    name: str | None = None
    version: str | None = None


class Dtype(Section):
    """The type that was computed in (torch's name), and why."""

    compute: str | None = None
    reason: str | None = None


class Base(Section):
    """The base: name and commit as configured, folder on this machine, parameters (those in 4 bits counted in full)."""

    name: str | None = None
    folder: str | None = None
    revision: str | None = None
    architecture: str | None = None
    parameters: int | None = None
    license: str | None = None
    weights_sha256: str | None = None
    config_sha256: str | None = None


class Quantization(Section):
    """How the base was held: `nf4` or `none`, and which linear layers are in 4 bits."""

    method: str | None = None
    double_quant: bool | None = None
    blocksize: int | None = None
    load_dtype: str | None = None
    modules: list[str] | None = None


class Adapter(Section):
    """The adapter: layers that have one, weights that are trained, and the hashes of the one that it started from and
    of the grids that it was trained on."""

    modules: int | None = None
    trainable_parameters: int | None = None
    start_sha256: str | None = None
    grids_sha256: str | None = None


class Engine(Section):
    """How batches went through the model: layout and attention with the probe's figures, fused modules, layers whose
    activations were computed twice or whose weights were kept dequantized, and what the first step truly ran."""

    way: str | None = None
    reason: str | None = None
    noise: float | None = None
    kernels: float | None = None
    errors: dict[str, float | str] | None = None
    kernel: str | None = None
    attention: str | None = None
    fused: dict[str, int] | None = None
    checkpointed_layers: int | None = None
    gradient_difference: float | None = None
    kept_layers: int | None = None
    used: dict[str, dict[str, int]] | None = None


class Reference(Section):
    """Pairs whose reference log-probabilities were computed, reused, and computed again as a check (in nats)."""

    computed: int | None = None
    reused: int | None = None
    checked: int | None = None
    largest_difference: float | None = None


class Memory(Section):
    """Token budgets that a device's memory was found to allow, beside those that were configured."""

    device: str | None = None
    configured: dict[str, int] | None = None
    tokens_per_micro_batch: int | None = None
    tokens_without_grad: int | None = None
    halved: list[dict[str, Any]] | None = None


class Optimizer(Section):
    """The optimizer that was taken, and why."""

    name: str | None = None
    reason: str | None = None


class Check(Section):
    """An invariant that held before the first step."""

    name: str | None = None
    detail: str | None = None


class Result(Section):
    """How a finished run ended: the evaluations before the first step and of the final adapter, and that adapter. The
    time is that of all its processes, the peak memory the largest of theirs."""

    steps: int | None = None
    epochs: float | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    tokens: int | None = None
    before: Metrics | None = None
    after: Metrics | None = None
    text_nll: dict[str, float] | None = None
    adapter_step: int | None = None
    adapter_sha256: str | None = None


class Recipe(Section):
    """Where the settings of a new run came from, see `qdpo.run.recipe`: the preset that describes itself, the settings
    that were changed after it, and whether its name and its notes are still about this run."""

    preset: str | None = None
    changed: list[str] | None = None
    named: bool | None = None
    noted: bool | None = None


class Process(Section):
    """One process of a run that may have been stopped and continued: its command, when it began (UTC), its device, the
    step that it began at and the last that it saved, its time and peak memory, and how it ended (`running`: nobody
    knows, it was killed)."""

    command: str | None = None
    began: str | None = None
    device: str | None = None
    from_step: int | None = None
    to_step: int | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    state: str | None = None


class Changed(Section):
    """What a resume changed: after which step, and of each place in run.json or setting the old value and the new."""

    after_step: int | None = None
    changed: list[dict[str, Any]] | None = None


class Record(Section):
    """The content of run.json.

    Attributes:
        version: of the format.
        id: what a run and its copies have in common.
        preset: what the user called the configuration.
        created: UTC, to the second.
        recipe: where the settings came from.
        settings: every setting by its dotted key.
        state: running, stopped or finished.
        versions: of Python and of the packages that decide results.
        saved_step: the newest step that was ever saved.
        processes: those that trained, in their order; None in a run of a version that kept none.
    """

    model_config = ConfigDict(frozen=False, validate_assignment=True)

    version: int | None = Field(default=None, alias="schema")
    id: str | None = None
    qdpo: str | None = None
    name: str | None = None
    preset: str | None = None
    created: str | None = None
    command: str | None = None
    seed: int | None = None
    recipe: Recipe = Recipe()
    settings: dict[str, Any] | None = None
    state: str | None = None
    versions: dict[str, str] | None = None
    hardware: Hardware = Hardware()
    tokenizer: Tokenizer = Tokenizer()
    data: Data = Data()
    backend: Backend = Backend()
    dtype: Dtype = Dtype()
    base: Base = Base()
    quantization: Quantization = Quantization()
    adapter: Adapter = Adapter()
    engine: Engine = Engine()
    reference: Reference = Reference()
    memory: Memory = Memory()
    optimizer: Optimizer = Optimizer()
    saved_step: int | None = None
    processes: list[Process] | None = None
    checks: list[Check] | None = None
    result: Result = Result()
    changes: list[Changed] | None = None

    @property
    def seconds(self) -> float | None:
        """Time of all processes together: of one that ended without a word, up to what it wrote last."""
        times = [process.seconds for process in self.processes or () if process.seconds is not None]
        return sum(times) if times else self.result.seconds

    @property
    def peak_memory_bytes(self) -> int | None:
        """The largest peak of a process."""
        peaks = [process.peak_memory_bytes for process in self.processes or () if process.peak_memory_bytes]
        return max(peaks) if peaks else self.result.peak_memory_bytes

    def as_dict(self) -> dict[str, Any]:
        """What was set, as run.json holds it."""
        found = self.model_dump(by_alias=True, exclude_unset=True)
        return {key: None if value == {} else value for key, value in found.items()}
