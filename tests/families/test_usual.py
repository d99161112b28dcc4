"""A field that config.json leaves out is what transformers takes it to be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from families.cases import COMMON, NORM_AFTER, OWN_FORM, REWRITTEN
from transformers import CONFIG_MAPPING, AutoConfig

from ffn_fusion.errors import FfnFusionError
from ffn_fusion.families import ModelSpec, read_spec

FAMILIES = REWRITTEN | OWN_FORM | NORM_AFTER
SAID = {"model_type", "architectures", "transformers_version"}


def sizes(spec: ModelSpec) -> dict[str, Any]:
    """All that is read of a config, and the lists that are made of it."""
    found = {key: value for key, value in vars(spec).items() if key not in ("config", "name")}
    return found | {key: spec.config.get(key) for key in ("layer_types", "no_rope_layers")}


@pytest.mark.parametrize("name", FAMILIES)
def test_whatever_is_left_out_is_as_transformers_has_it(name: str) -> None:
    case: dict[str, Any] = json.loads(AutoConfig.for_model(**{**COMMON, **FAMILIES[name]}).to_json_string())
    compared = []
    for key in sorted(case.keys() - SAID):
        less = {other: value for other, value in case.items() if other != key}
        try:
            found = sizes(read_spec(less))
        except FfnFusionError:  # a size that there is no usual value of
            continue
        plain = {other: value for other, value in less.items() if other != "model_type"}
        whole = json.loads(CONFIG_MAPPING[case["model_type"]](**plain).to_json_string())
        assert found == sizes(read_spec(whole)), key
        compared.append(key)
    assert len(compared) > 5


def test_a_mistral_whose_config_says_nothing_of_a_window_has_one() -> None:
    config = json.loads(AutoConfig.for_model(**{**COMMON, "model_type": "mistral"}).to_json_string())
    del config["sliding_window"]
    assert read_spec(config).family == "llama"  # 64 positions: it never binds
    assert read_spec({**config, "max_position_embeddings": 32768}).family == "mistral"
    assert read_spec({**config, "max_position_embeddings": 32768, "sliding_window": None}).family == "llama"
