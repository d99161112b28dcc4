"""Every example of docs/api.md runs, from top to bottom, on a tiny model and little text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_text

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
RECIPE = """
model: parent
output: whole
calibration: {texts: [calibration.txt], tokens: 256, context: 32}
analysis: {max_run: 2, parts: [attention]}
repair: {texts: [calibration.txt], tokens: 256, context: 32}
evaluation: {texts: [held_out.txt], tokens: 256, context: 32, controls: false}
bench: {enabled: false}
samples: {prompts: [], new_tokens: 1}
"""


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = tiny_model(tmp_path / "parent", blocks=10, max_position_embeddings=512).folder
    tiny_text(tmp_path / "calibration.txt", words=4000)
    tiny_text(tmp_path / "held_out.txt", words=8000, start=7)
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S):
        code = code.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(parent))
        code = re.sub(r"context=512, tokens=\d+", "context=32, tokens=256", code)
        exec(compile(code, "docs/api.md", "exec"), names)
    for folder in ("by-hand", "child", "child-bf16", "plain-llama", "whole"):
        assert (tmp_path / folder / "config.json").exists(), folder
    assert {"scores", "latency", "result"} <= names.keys()
