"""vLLM as tools/engines/vllm.sh installs it: where it is, and what it computes from checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ffn_fusion.engines import vllm
from ffn_fusion.engines.vllm import Asked, Said

VARIABLE = "FFN_FUSION_VLLM"
ENGINE = Path(os.environ.get(VARIABLE) or Path(__file__).parents[2] / ".engines" / "vllm")
PYTHON = ENGINE / "bin" / "python"

needs_vllm = pytest.mark.skipif(
    not (ENGINE / "ffn-fusion").is_file(), reason=f"no vLLM in {ENGINE}: run tools/engines/vllm.sh, or set {VARIABLE}"
)


def environment(**changes: str) -> dict[str, str]:
    """One thread, and nothing that was set for another vLLM."""
    kept = vllm.environment()
    return {name: value for name, value in kept.items() if not name.startswith("VLLM_")} | settings(**changes)


def settings(**changes: str) -> dict[str, str]:
    return {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", **changes}


def ask(models: Mapping[str, Asked], options: Mapping[str, Any], **changes: str) -> dict[str, Said]:
    """What vLLM says of each checkpoint, in one go; ``options`` are vllm.LLM's, ``changes`` environment variables."""
    return vllm.ask(PYTHON, models, options, **settings(**changes))
