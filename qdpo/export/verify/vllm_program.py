"""The program that computes in vLLM; run as a script under the Python that `--engine-python` names.

Nothing of qdpo is imported: that Python has vLLM and its own versions of everything else. It talks over the connection
whose file descriptor is its argument. Messages in are JSON: first the arguments of `vllm.LLM` and `adapter` (a folder,
or null), then requests:

- `{"ids": [...], "start": n, "stop": m, "rows": r}`: the logits after the tokens from n to m - 1, answered as float32
  [rows, vocabulary], `r` rows a message at the most. First comes the number of rows and the size of the vocabulary.
- `{"prompts": [[...], ...], "ends": [...], "new_tokens": n}`: the likeliest continuation of each, without a token that
  ends it.

Each answer is a JSON text; one that has `error` says what went wrong.
"""

from __future__ import annotations

import json
import os
import sys
from multiprocessing.connection import Connection
from typing import Any

CLOSE = 1e-3
"""How far, in nats, vLLM's own figure for a token may be from that of the logits that were taken."""


class Engine:
    """A model in vLLM.

    Args:
        settings: arguments of `vllm.LLM`, and `adapter`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        import vllm

        adapter = settings.pop("adapter")
        self.version, self._vllm, self._adapter = vllm.__version__, vllm, None
        if adapter:
            from vllm.lora.request import LoRARequest

            self._adapter = LoRARequest("adapter", 1, adapter)
        # Prompts in one piece, each computed anew, and no compiled graph that would go around Python: so the model's
        # `compute_logits` is called for every prediction, which is where they are taken from.
        self._llm = vllm.LLM(
            **settings,
            max_num_batched_tokens=settings["max_model_len"],
            enable_prefix_caching=False,
            enforce_eager=True,
            skip_tokenizer_init=True,
            disable_log_stats=True,
        )
        self._taken: list[Any] | None = None
        self._llm.apply_model(self._take)

    def _take(self, model: Any) -> None:
        own = model.compute_logits

        def compute_logits(*arguments: Any, **named: Any) -> Any:
            logits = own(*arguments, **named)
            if self._taken is not None:
                self._taken.append(logits.detach().float().cpu().clone())
            return logits

        model.compute_logits = compute_logits

    def logits(self, ids: list[int], start: int, stop: int) -> Any:
        """After the tokens from `start` to `stop` - 1, float32 [positions, vocabulary]."""
        import torch

        asked = self._vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        self._taken = []
        (answer,) = self._generate([ids], asked)
        # The last token's are computed first, for sampling; then those of the prompt before it.
        last, *before = self._taken
        self._taken = None
        logits = torch.cat([*before, last])
        if len(logits) != len(ids):
            raise RuntimeError(f"vLLM computed {len(logits)} predictions for {len(ids)} tokens")
        for position in range(start, min(stop, len(ids) - 1)):
            token = ids[position + 1]
            said = answer.prompt_logprobs[position + 1][token].logprob
            found = float(logits[position].log_softmax(-1)[token])
            if not abs(found - said) <= CLOSE:
                raise RuntimeError(f"after token {position} vLLM says {said:.4f}, the logits taken from it {found:.4f}")
        return logits[start:stop].contiguous()

    def write(self, prompts: list[list[int]], ends: list[int], new_tokens: int) -> list[list[int]]:
        """The likeliest continuations."""
        asked = self._vllm.SamplingParams(
            temperature=0, max_tokens=new_tokens, stop_token_ids=ends, ignore_eos=True, detokenize=False
        )
        found = [list(answer.outputs[0].token_ids) for answer in self._generate(prompts, asked)]
        return [ids[: next((n for n, token in enumerate(ids) if token in ends), len(ids))] for ids in found]

    def _generate(self, prompts: list[list[int]], asked: Any) -> Any:
        given = [{"prompt_token_ids": ids} for ids in prompts]
        return self._llm.generate(given, asked, use_tqdm=False, lora_request=self._adapter)


def main() -> None:
    """Serve until the parent goes away."""
    pipe = Connection(int(sys.argv[1]))

    def send(answer: dict[str, Any]) -> None:
        pipe.send_bytes(json.dumps(answer).encode())

    # In this process, so that the model can be reached; nothing is asked of a network.
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    try:
        engine = Engine(json.loads(pipe.recv_bytes()))
        send({"version": engine.version})
        while True:
            request = json.loads(pipe.recv_bytes())
            if "prompts" in request:
                send({"written": engine.write(**request)})
                continue
            rows = request.pop("rows")
            logits = engine.logits(**request)
            send({"rows": logits.shape[0], "vocabulary": logits.shape[1]})
            for chunk in logits.split(rows):
                pipe.send_bytes(chunk.numpy().tobytes())
    except EOFError:
        return  # the parent has gone away
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        send({"error": f"{type(error).__name__}: {said[0]}"[:500]})


if __name__ == "__main__":
    main()
