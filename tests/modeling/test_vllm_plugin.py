"""What vLLM finds in our package: the entry point that lets it read children. tests/engines runs it in vLLM."""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

from transformers import AutoConfig, LlamaConfig

GROUP = "vllm.general_plugins"


def test_the_entry_point_registers_our_config() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, value),) = project["entry-points"][GROUP].items()
    plugin = EntryPoint(name, value, GROUP).load()
    assert plugin() is None
    assert plugin() is None  # vLLM calls it in each of its processes, and may call it twice
    config = AutoConfig.for_model(
        "nemotron-nas", block_configs=[{"attention": {"no_op": True}, "ffn": {"no_op": True}}]
    )
    assert isinstance(config, LlamaConfig)
    assert config.block_configs[0].attention.no_op is True
