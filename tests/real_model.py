"""SmolLM2-135M and texts, as demo/fetch.py puts them into .demo (make test does that first), and the demo's child.

Qwen2.5-Coder-0.5B is there only where somebody fetched it with ``--qwen``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / ".demo"
REAL_MODEL = DEMO / "SmolLM2-135M-Instruct.Q4_1.gguf"
QWEN = DEMO / "Qwen2.5-Coder-0.5B-Instruct.gguf"
DEMO_CHILD = DEMO / "SmolLM2-135M-fused"
HELD_OUT = DEMO / "texts" / "held-out"

needs_real_model = pytest.mark.skipif(not REAL_MODEL.is_file(), reason="needs: python demo/fetch.py")
needs_qwen = pytest.mark.skipif(not QWEN.is_file(), reason="needs: python demo/fetch.py --qwen")
needs_demo_child = pytest.mark.skipif(not (DEMO_CHILD / "config.json").is_file(), reason="needs: make demo")
