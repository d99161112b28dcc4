"""vLLM in an environment of its own, run by that environment's Python: token ids in, log-probabilities out.

``vllm_probe.py`` runs there. It doesn't import this package; vLLM does, through its plugin entry point, if both are
installed together. No code of the checkpoint is run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ffn_fusion.engines.answers import Answers
from ffn_fusion.errors import CheckError, MissingExtraError
from ffn_fusion.programs import check_signal, named_program

VARIABLE = "FFN_FUSION_VLLM_PYTHON"
PROBE = Path(__file__).parent / "probes" / "vllm_probe.py"

_ALONE = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Environment variables, unless they are set already."""
_FORKED = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # the model in the probe's own process, where its errors show
_PATIENCE = 3600


@dataclass(frozen=True)
class Asked:
    """Prompts of token ids for one checkpoint.

    Args:
        new: the number of tokens to generate after each.
        likeliest: the number of tokens to report at each position.
    """

    folder: str
    prompts: Sequence[Sequence[int]]
    new: int
    likeliest: int
    dtype: str = "float32"


@dataclass(frozen=True)
class Said:
    """What vLLM said about one checkpoint.

    Args:
        answers: one entry per prompt: "ids" and "logprobs" [T, K], "new" [S]; see vllm_probe.py.
        error: the error that it ended with instead, on one line.
        ours: whether vLLM had imported this package.
    """

    answers: tuple[dict[str, Any], ...]
    error: str
    ours: bool

    def told(self) -> Answers:
        """Return the answers to prompts of one length."""
        ids, logprobs, new = ([answer[key] for answer in self.answers] for key in ("ids", "logprobs", "new"))
        return Answers(torch.tensor(ids), torch.tensor(logprobs), torch.tensor(new))


def vllm_answers(folder: Path, ids_NT: Tensor, new: int, likeliest: int, program: Path | None) -> Answers:
    """Ask vLLM (see ``Ask``); it computes in float32 and doesn't compile the model."""
    python = find_python(program)
    asked = Asked(str(folder.absolute()), ids_NT.tolist(), new, likeliest)
    options = {"trust_remote_code": False, "max_model_len": ids_NT.shape[1] + new, "max_num_seqs": 1}
    said = ask(python, {"model": asked}, options)["model"]
    if said.error:
        raise refusal(said.error)
    return said.told()


def refusal(error: str) -> CheckError:
    """Return the error for a checkpoint that vLLM refused with this line."""
    if "trust_remote_code" in error:
        hint = "install ffn-fusion into vLLM's environment too: pip install ffn-fusion"
    else:
        hint = "ffn-fusion check OUT --for-engine vllm says what it can't run"
    return CheckError(f"vllm can't run it: {error}", hint)


def find_python(given: Path | None) -> Path:
    """Find the Python that vLLM is installed for: the given one, else $FFN_FUSION_VLLM_PYTHON, else this one.

    Raises:
        UsageError: the given one isn't a program. MissingExtraError: it has no vLLM.
    """
    python = named_program("vLLM's Python", given, "--engine-program", VARIABLE)
    if python is None:
        python, found = Path(sys.executable), find_spec("vllm") is not None
    else:
        command = [str(python), "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)"]
        found = subprocess.run(command, env=environment(), capture_output=True, check=False).returncode == 0
    if not found:
        raise MissingExtraError(
            f"no vLLM is installed for {python}",
            "install vllm and ffn-fusion in an environment of their own (tools/engines/vllm.sh does, for the CPU) and "
            f"give --engine-program ITS/bin/python or ${VARIABLE}",
        )
    return python


def environment(**changes: str) -> dict[str, str]:
    """Return environment variables for another Python: none of this one's settings, and no network access."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return _ALONE | kept | changes


def ask(python: Path, models: Mapping[str, Asked], options: Mapping[str, Any], **changes: str) -> dict[str, Said]:
    """Ask vLLM about each checkpoint in one call.

    Args:
        options: arguments of vllm.LLM.
        changes: environment variables.

    Raises:
        CheckError: vLLM didn't start, or a signal ended it.
    """
    with TemporaryDirectory(prefix="ffn-fusion-") as folder:
        request, target = Path(folder, "request.json"), Path(folder, "answer.json")
        asked = {name: asdict(model) for name, model in models.items()}
        request.write_text(json.dumps({"options": dict(options), "models": asked}))
        command = [str(python), str(PROBE), str(request), str(target)]
        done = subprocess.run(
            command,
            env=environment(**_FORKED | changes),
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
        check_signal("vllm", done.returncode)
        if done.returncode:
            last = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "no word")
            raise CheckError(f"vllm didn't start: {last}", f"see whether {python} -c 'import vllm' works")
        found = json.loads(target.read_text())
    return {name: _said(one) for name, one in found.items()}


def _said(one: Mapping[str, Any]) -> Said:
    """Read what the probe wrote about one checkpoint; see vllm_probe.py."""
    if "status" in one:
        check_signal("vllm", one["status"])
        return Said((), f"ended with status {one['status']}", ours=False)
    said = one["said"]
    return Said((), said, one["ours"]) if isinstance(said, str) else Said(tuple(said), "", one["ours"])
