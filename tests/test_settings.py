"""Settings: every one describes itself, and the shared field types read what a person writes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import Field, ValidationError

from ffn_fusion.blueprint.fields import Blocks, Runs
from ffn_fusion.pipeline.recipe import Recipe  # imports every room that has settings
from ffn_fusion.settings import MemorySize, Settings


def subclasses(kind: type[Settings]) -> Iterator[type[Settings]]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


class Toy(Settings):
    """Settings made for these tests."""

    memory: MemorySize | None = Field(None, description="Memory.")
    blocks: Blocks = Field((), description="Blocks.")
    runs: Runs = Field((), description="Runs.")


@pytest.mark.parametrize("kind", [kind for kind in subclasses(Settings) if kind.__module__.startswith("ffn_fusion")])
def test_every_field_says_what_it_means(kind: type[Settings]) -> None:
    for name, field in kind.model_fields.items():
        assert field.description, f"{kind.__name__}.{name}"
        assert field.description.endswith("."), f"{kind.__name__}.{name}"


def test_recipes_are_among_them() -> None:
    assert Recipe.model_fields


def test_field_types() -> None:
    read = Toy.model_validate({"memory": "16GiB", "blocks": "5-7, 17", "runs": 5})
    assert (read.memory, read.blocks, read.runs) == (16 << 30, (5, 6, 7, 17), ((5, 5),))
    assert Toy.model_validate(read.model_dump(mode="json")) == read
    assert Toy.model_validate(Toy().model_dump(mode="json")) == Toy()


@pytest.mark.parametrize(
    ("value", "says"),
    [({"memory": "much"}, "'much' isn't a size"), ({"runs": "9-5"}, "not a range"), ({"more": 1}, "not permitted")],
)
def test_values_that_can_t_be_read(value: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Toy.model_validate(value)
