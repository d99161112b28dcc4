"""Runs in vLLM's own environment, and imports nothing of ours: what vLLM computes from some checkpoints.

python vllm_probe.py REQUEST.json ANSWER.json

REQUEST: {"options": {...}, "models": {name: {"folder": ..., "dtype": ..., "prompts": [[id, ...]], "new": count}}},
``options`` for vllm.LLM. ANSWER: {name: {"ours": whether ffn_fusion was imported, "said": answers}}, where said is one
line, the error that it ended in, or an entry a prompt: {"given": log-probabilities of the prompt's tokens but the
first, "best": the likeliest token at each of these places, "new": the tokens that follow by greedy search}.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def answer(options: dict[str, Any], asked: dict[str, Any]) -> list[dict[str, Any]]:
    from vllm import LLM, SamplingParams

    llm = LLM(model=asked["folder"], dtype=asked["dtype"], enforce_eager=True, enable_prefix_caching=False, **options)
    greedy = SamplingParams(max_tokens=asked["new"], temperature=0.0, ignore_eos=True, prompt_logprobs=1)
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    answers = []
    for out in llm.generate(prompts, greedy, use_tqdm=False):
        places = list(zip(out.prompt_logprobs[1:], out.prompt_token_ids[1:], strict=True))
        answers.append(
            {
                "given": [logprobs[token].logprob for logprobs, token in places],
                "best": [max(logprobs, key=lambda id: logprobs[id].logprob) for logprobs, _ in places],
                "new": list(out.outputs[0].token_ids),
            }
        )
    return answers


def in_a_fork(options: dict[str, Any], asked: dict[str, Any], target: Path) -> Any:
    """What was imported is paid for once, and a failure leaves nothing behind for the next model."""
    pid = os.fork()
    if pid == 0:
        try:
            said: Any = answer(options, asked)
        except Exception as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        target.write_text(json.dumps({"ours": "ffn_fusion" in sys.modules, "said": said}))
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if status:
        return {"ours": False, "said": f"ended with status {os.waitstatus_to_exitcode(status)}"}
    return json.loads(target.read_text())


def main(request: Path, target: Path) -> None:
    import vllm.entrypoints.llm  # noqa: F401

    asked = json.loads(request.read_text())
    part = target.with_suffix(".part")
    answers = {name: in_a_fork(asked["options"], model, part) for name, model in asked["models"].items()}
    target.write_text(json.dumps(answers))


if __name__ == "__main__":  # vLLM's own processes import this file
    main(Path(sys.argv[1]), Path(sys.argv[2]))
