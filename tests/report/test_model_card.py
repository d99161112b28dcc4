"""The model card: front matter that loads whatever the names are, and the facts in the text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.sidecars import read_licence
from ffn_fusion.report.model_card import model_card


def front_matter(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    loaded = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(loaded, dict)
    return loaded


def renamed(blueprint: Blueprint, name: str) -> Blueprint:
    return blueprint.model_copy(update={"parent": blueprint.parent.model_copy(update={"name": name})})


def test_metadata(small: Any) -> None:
    about = front_matter(model_card("child", small.blueprint, "0.1.0", "apache-2.0"))
    assert about["base_model"] == "maker/small-model"
    assert about["base_model_relation"] == "finetune"
    assert about["license"] == "apache-2.0"
    assert about["library_name"] == "transformers"
    assert about["pipeline_tag"] == "text-generation"
    assert {"ffn-fusion", "nemotron-nas"} <= set(about["tags"])
    assert "license" not in front_matter(model_card("child", small.blueprint, "0.1.0"))


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "a: b\n---\nlicense: mit", "- {x", "!!python/object:x", "é 模型", "'\"", "yes"],
)
def test_metadata_survives_hostile_names(small: Any, name: str) -> None:
    card = model_card(name, renamed(small.blueprint, name), "0.1.0", name)
    about = front_matter(card) if "---\n" not in name else yaml.safe_load(re.split(r"(?m)^---$", card)[1])
    assert about["license"] == name
    assert about.get("base_model") in (None, name)
    assert ("base_model" in about) == (name == "yes")  # what can't be an id on the hub isn't named as one
    assert card.count("\n# ") == 1


def test_names_are_no_markup(small: Any) -> None:
    card = model_card("<script>x</script> [a](b) | `c`", small.blueprint, "0.1.0")
    heading = next(line for line in card.splitlines() if line.startswith("# "))
    assert heading == r"# &lt;script&gt;x&lt;/script&gt; \[a\](b) \| \`c\`"


def test_text(small: Any) -> None:
    card = model_card("child", small.blueprint, "0.1.0", "mit", small.quality, small.latency)
    for shown in (
        "4 of 8 attentions were dropped (blocks 2-5)",
        "3 FFNs were fused into one wide FFN (run 2-4)",
        "| 2 | 2-4 | dropped | 3 fused | 3 × 1,536 = 4,608 |",  # noqa: RUF001
        "| fused | 19.16 ± 0.23 | +0.1127 | 0.1141 ± 0.0034 | 81.2 ± 0.4 |",
        "decode, batch 1",
        "not trained after surgery",
        "Unrepaired",
        "import ffn_fusion",
        "trust_remote_code=True",
        "revision: 0123456789abcdef",
        "ffn-fusion 0.1.0",
        "(mit)",
    ):
        assert shown in card
    bare = model_card("child", small.blueprint, "0.1.0")
    assert "## Quality" not in bare
    assert "## Latency" not in bare


def test_tables_are_rectangular(thirty: Any) -> None:
    card = model_card("child", thirty.blueprint, "0.1.0", None, thirty.quality, thirty.latency)
    for table in re.findall(r"(?m)(?:^\|.*\n)+", card):
        assert len({line.count("|") for line in table.splitlines()}) == 1


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# Model\n", "apache-2.0"),
        ("\ufeff---\r\nlicense: mit\r\n---\r\ntext", "mit"),
        ("---\nlicense:\n- llama3.1\n- other\n---\n", "llama3.1"),
        ("---\ntags: [a]\n---\n", None),
        ("---\nlicense: 3\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\n- a list\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("# no front matter\nlicense: mit\n", None),
        ("---\na: " + "[" * 5000 + "\n---\n", None),
        ("", None),
    ],
)
def test_licence_of_the_parent(readme: str, licence: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    assert read_licence(tmp_path) == licence


def test_licence_where_there_is_no_readable_card(tmp_path: Path) -> None:
    assert read_licence(tmp_path) is None
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\xfe\x00\n---\n")
    assert read_licence(tmp_path) is None or isinstance(read_licence(tmp_path), str)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "README.md").mkdir()
    assert read_licence(tmp_path / "b") is None


def test_how_it_was_trained(small: Any) -> None:
    """Distilled twice with other tools in between: tokens add up, and the tools are named in their order."""
    objective = {"kl": 1.0, "cosine": 0.0, "lm": 0.0, "direction": "forward", "temperature": 1.0}
    settings = {"objective": objective, "trained": "lora-touched", "lora_rank": 8, "batch": 2, "learning_rate": 1e-3}
    first = {"tokens": 1000, "context": 50, "steps": 10, "settings": {**settings, "trained": "all"}, "before": None}
    tuned = {"how": "pre-training", "before": first}
    aligned = {"how": "alignment", "before": tuned}
    last = {"tokens": 234, "context": 39, "steps": 3, "settings": settings, "before": aligned}
    card = model_card("child", small.blueprint, "0.1.0", distillation=last)
    assert "**Distilled from its parent** on 1,234 tokens of text in 2 stages, of windows of 39 to 50 tokens:" in card
    assert "tokens: all weights; then LoRA adapters of rank 8 on the matrices of the attentions and FFNs" in card
    assert "the attentions and FFNs of the blocks that surgery touched, merged now, were trained on the div" in card
    assert "**Also trained:** pre-training; then alignment." in card
    only = model_card("child", small.blueprint, "0.1.0", distillation={"how": "pre-training", "before": None})
    assert "**Trained further:** pre-training." in only
    assert "not trained after surgery" not in only


def repaired(*places: tuple[str, str | None], bias: bool = False) -> dict[str, Any]:
    """A record of repair: (part, reason why its weights were kept) of each place, as ``repairs.json`` has them."""
    names = {"attention": "self_attn.o_proj", "ffn": "mlp.down_proj"}
    modules = [f"model.layers.{k}.{names[part]}" for k, (part, reason) in enumerate(places) if reason is None]
    tensors = [f"{module}.{what}" for module in modules for what in ("weight", "bias")[: 1 + bias]]
    rows = [{"block": k, "part": part, "reason": reason} for k, (part, reason) in enumerate(places)]
    return {"calibration": {"tokens": 4096}, "files": {name: f"{name}.safetensors" for name in tensors}, "places": rows}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            repaired(("ffn", None)),
            "on 4,096 tokens of text. The output projection of 1 FFN was solved in",
        ),
        (
            repaired(("attention", None), ("ffn", None), ("attention", None), ("ffn", None), ("ffn", None)),
            "The output projections of 2 attentions and 3 FFNs were solved",
        ),
        (
            repaired(("attention", None), ("ffn", None), bias=True),
            "The output projections of 1 attention and 1 FFN with their biases were solved",
        ),
        (repaired(("attention", None), ("ffn", "no gain on held-out tokens")), "projection of 1 attention was solved"),
        (repaired(("ffn", "singular")), "Repair on 4,096 tokens of text improved no output projection"),
    ],
)
def test_repaired_projections_are_counted_by_kind(small: Any, record: dict[str, Any], said: str) -> None:
    """Tensors aren't FFNs: attentions and biases are among them, and places that kept their weights aren't."""
    assert said in model_card("child", small.blueprint, "0.1.0", repairs=record)


def test_mapped_inputs_are_said(small: Any) -> None:
    record = repaired(("attention", None), ("ffn", None))
    record["places"][1]["inputs"] = {"5": 0.46, "6": 0.58}
    card = model_card("child", small.blueprint, "0.1.0", repairs=record)
    assert "The input of the FFN of blocks 5-6 was mapped to its own in the parent: 46% to 58% of the squared" in card
    assert "All other weights are the parent's own." in card
