"""Who may know what a tensor is called: families, the torch modules, and the table of GGUF's names."""

from __future__ import annotations

import re
from pathlib import Path

import ffn_fusion

SOURCE = Path(ffn_fusion.__file__).parent
ROOMS = ("families/", "modeling/", "gguf/names.py")
NAME = re.compile(
    r"\b([qkvo]|gate|up|down)_proj\b|\b(input|post_attention)_layernorm\b|\bself_attn\b|\blinear_(attn|mlp)\b"
    r"|\bmodel\.(layers|norm|embed_tokens)\b|\bembed_tokens\b|\blm_head\b|[\"'.]mlp\."
)


def test_no_other_room_names_a_tensor() -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{number}: {line.strip()}"
        for path in sorted(SOURCE.rglob("*.py"))
        if not str(path.relative_to(SOURCE)).startswith(ROOMS)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if NAME.search(line)
    ]
    assert not found, "\n".join(found)
