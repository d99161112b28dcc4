"""Runs in vLLM's own environment, and imports nothing of ours: what vLLM computes from some checkpoints.

python vllm_probe.py REQUEST.json ANSWER.json

REQUEST: {"options": {...}, "models": {name: {"folder": ..., "dtype": ..., "prompts": [[id, ...]], "new": count,
"likeliest": count}}}, ``options`` for vllm.LLM. ANSWER: {name: {"ours": whether ffn_fusion was imported, "said":
answers}}, where said is one line, the error that it ended in, or an entry a prompt: {"ids", "logprobs": the likeliest
tokens behind each of the prompt's places, the likeliest first, and their log-probabilities, "new": the tokens that
follow by greedy search}. Where vLLM ended the process, {name: {"status": its exit status, -n for signal n}}.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def answer(options: dict[str, Any], asked: dict[str, Any]) -> list[dict[str, Any]]:
    from vllm import LLM, SamplingParams

    fixed = {"enforce_eager": True, "enable_prefix_caching": False, "max_logprobs": -1}
    llm = LLM(model=asked["folder"], dtype=asked["dtype"], **fixed, **options)
    count = asked["likeliest"]
    greedy = SamplingParams(
        max_tokens=asked["new"],
        temperature=0.0,
        ignore_eos=True,
        prompt_logprobs=count,
        logprobs=count,
        detokenize=False,
    )
    answers = []
    for ids in asked["prompts"]:  # one after another: log-probabilities of many prompts at once take memory
        (out,) = llm.generate([{"prompt_token_ids": ids}], greedy, use_tqdm=False)
        outputs = out.outputs[0]
        rows = [likeliest(logprobs, count) for logprobs in [*out.prompt_logprobs[1:], outputs.logprobs[0]]]
        answers.append(
            {
                "ids": [[token for token, _ in row] for row in rows],
                "logprobs": [[logprob for _, logprob in row] for row in rows],
                "new": list(outputs.token_ids),
            }
        )
    return answers


def likeliest(logprobs: Any, count: int) -> list[tuple[int, float]]:
    """The given token is among vLLM's, however unlikely: it stays only where it's one of the likeliest."""
    ranked = sorted(((entry.logprob, token) for token, entry in logprobs.items()), key=lambda pair: -pair[0])
    return [(token, logprob) for logprob, token in ranked[:count]]


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
        return {"status": os.waitstatus_to_exitcode(status)}
    return json.loads(target.read_text())


def main(request: Path, target: Path) -> None:
    import vllm.entrypoints.llm  # noqa: F401

    asked = json.loads(request.read_text())
    part = target.with_suffix(".part")
    answers = {name: in_a_fork(asked["options"], model, part) for name, model in asked["models"].items()}
    target.write_text(json.dumps(answers))


if __name__ == "__main__":  # vLLM's own processes import this file
    main(Path(sys.argv[1]), Path(sys.argv[2]))
