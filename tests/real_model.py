"""SmolLM2-135M and texts, as demo/fetch.py puts them into .demo (make test does that first), and the demo's child."""

from __future__ import annotations

from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / ".demo"
REAL_MODEL = DEMO / "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_CHILD = DEMO / "SmolLM2-135M-fused"
HELD_OUT = DEMO / "texts" / "held-out"

needs_real_model = pytest.mark.skipif(not REAL_MODEL.is_file(), reason="needs: python demo/fetch.py")
needs_demo_child = pytest.mark.skipif(not (DEMO_CHILD / "config.json").is_file(), reason="needs: make demo")
