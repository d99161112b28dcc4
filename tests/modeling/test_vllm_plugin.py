"""What vLLM finds in our package: the entry point that lets it read children. tests/engines runs it in vLLM."""

from __future__ import annotations

import subprocess
import sys
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


_ASKED = """
import sys
from importlib.util import find_spec
sys.path.insert(0, sys.argv[1])
import ffn_fusion
from vllm.model_executor.models.registry import ModelRegistry
((architecture, (place, name)),) = ModelRegistry.named.items()
assert "torch" not in sys.modules
print(architecture, find_spec(place).origin, name)
"""
_REGISTRY = """
class ModelRegistry:
    named = {}
    @classmethod
    def register_model(cls, architecture, named):
        cls.named[architecture] = named.split(":")
"""


def test_vllms_registry_learns_our_class_when_it_is_imported(tmp_path: Path) -> None:
    """With a registry that has vLLM's method."""
    folder = tmp_path / "vllm" / "model_executor" / "models"
    folder.mkdir(parents=True)
    (folder / "registry.py").write_text(_REGISTRY)
    done = subprocess.run([sys.executable, "-c", _ASKED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    architecture, place, name = done.stdout.split()
    assert architecture == name == "PerBlockForCausalLM"
    assert f"class {name}(" in Path(place).read_text()
