from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
from makers import LLAMA3_ROPE, llama_config, nas_config

from ffn_fusion.families import child_family, llama, read_spec
from ffn_fusion.families.rotary import read_rotary, rotary_contradicts, rotary_settings
from ffn_fusion.gguf.rotary import rotary_metadata

_LINEAR = {"rope_type": "linear", "factor": 2.0}
_THETAS = (None, 5e5)
_SCALINGS = (None, {}, _LINEAR, {"type": "linear", "factor": 4.0}, {**LLAMA3_ROPE, "rope_theta": 7e5})
_PARAMETERS = (None, {"rope_type": "default", "rope_theta": 3e4}, {**_LINEAR, "rope_theta": 2e4}, dict(LLAMA3_ROPE))
EVERY = [
    {key: value for key, value in zip(("rope_theta", "rope_scaling", "rope_parameters"), said, strict=True) if value}
    for said in product(_THETAS, _SCALINGS, _PARAMETERS)
]


def transformers_makes_of(config: dict[str, Any]) -> dict[str, Any]:
    from transformers import LlamaConfig

    made: dict[str, Any] = LlamaConfig(**copy.deepcopy(config)).rope_parameters
    return {key: value for key, value in made.items() if key != "type"}


@pytest.mark.parametrize("said", EVERY)
def test_every_spelling_means_what_transformers_makes_of_it(said: dict[str, Any]) -> None:
    config = {key: value for key, value in llama_config().items() if key != "rope_theta"} | said
    found = read_rotary(config)
    theirs = transformers_makes_of(config)
    assert {"rope_type": found.kind, "rope_theta": found.theta, **found.scaling} == theirs
    assert rotary_metadata(config)["rope.freq_base"] == theirs["rope_theta"]
    written = {**config, **rotary_settings(config)}
    assert not rotary_contradicts(written)
    assert transformers_makes_of(written) == theirs
    assert read_rotary(written) == found


@pytest.mark.parametrize("said", EVERY)
def test_what_is_written_agrees_in_both_spellings(said: dict[str, Any]) -> None:
    config = {key: value for key, value in nas_config([(2, 256)]).items() if key != "rope_theta"} | said
    spec = read_spec(config)
    write = child_family(spec).write
    assert write is not None
    for written in (write(spec, 256), llama.write(spec, 256)):
        assert not rotary_contradicts(written)
        assert written["rope_theta"] == read_rotary(config).theta
        assert (written["rope_scaling"] or {}).get("rope_type", "default") == written["rope_parameters"]["rope_type"]
