# SPDX-License-Identifier: Apache-2.0
"""Config of a model of any family of transformers whose blocks differ, as ``per_layer_config`` says.

This file is self-contained (transformers and nothing else): it travels inside a child checkpoint.
"""

from functools import lru_cache
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig


class PerBlockConfig(PreTrainedConfig):
    """The config of ``base_model_type`` with ``per_layer_config``, ``{block: {field: value, "skip": [...]}}``.

    ``sub_blocks`` names, of the attention and the FFN of a decoder layer, the module that computes it, those that do
    nothing where ``skip`` leaves it out, and the one whose result is added to the state. What is made of a config.json
    is an instance of the family's own config class.
    """

    model_type = "per-block"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The config of the family that the dictionary names."""
        return config_class(config_dict["base_model_type"]).from_dict(config_dict, **kwargs)


@lru_cache(None)
def config_class(base_model_type: str) -> type[Any]:
    """The family's own config class under this form's model_type."""
    own = {
        "model_type": PerBlockConfig.model_type,
        "__module__": __name__,
        "_auto_class": "AutoConfig",
        "__reduce__": lambda config: (_empty, (base_model_type,), vars(config)),  # no name leads pickle to this class
    }
    return type("PerBlockConfig", (CONFIG_MAPPING[base_model_type],), own)


def _empty(base_model_type: str) -> Any:
    own: Any = config_class(base_model_type)
    return own.__new__(own)


__all__ = ["PerBlockConfig"]
