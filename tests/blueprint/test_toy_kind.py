"""A kind of sub-block that this test defines goes through plan, build, verifying and report without another line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from makers import llama_config, random_ids, write_model
from reference import Reference, identity_steps
from torch import Tensor

from ffn_fusion.analysis.changes import change_of
from ffn_fusion.blueprint import Block, Blueprint, Kind, Part, SubBlock
from ffn_fusion.blueprint.kinds import KINDS
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.portability.verify import Against, verify
from ffn_fusion.report.diagram import block_diagram
from ffn_fusion.report.model_grids import plan_grid
from ffn_fusion.report.summary import sentence
from ffn_fusion.surgery.build import build
from ffn_fusion.surgery.joins import Copy, Join, Rows, Wanted
from ffn_fusion.surgery.transforms import TRANSFORMS, Transform


class Softened(Kind):
    """A sub-block whose output is ``share`` of the parent's."""

    parts: ClassVar[frozenset[Part]] = frozenset(("attention", "ffn"))
    glyph: ClassVar[str | None] = "▿"
    fate: ClassVar[str] = "softened"

    kind: Literal["softened"] = "softened"
    source: int
    share: float

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.source,)

    def sizes(self, had: Sequence[SubBlock]) -> SubBlock:
        return had[0]

    def check(self, had: Sequence[SubBlock]) -> None:
        if self.share <= 0:
            raise ValueError("nothing would be left")


@dataclass(frozen=True)
class Scaled(Join):
    source: str
    share: float

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def rows(self, parent: Rows, shape: tuple[int, ...], dtype: torch.dtype, start: int, stop: int) -> Tensor:
        return parent.rows(self.source, start, stop).to(dtype) * self.share


def softened(kind: Softened, wanted: Wanted) -> Join:
    (source,) = wanted.sources
    return Scaled(source, kind.share) if wanted.tensor.role == "out of" else Copy(source)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "softened", Softened)
    transform = Transform(softened, lambda kind, wanted, at, rounded: softened(kind, wanted))
    monkeypatch.setitem(TRANSFORMS, Softened, transform)


@pytest.fixture
def parent(tmp_path: Path) -> Checkpoint:
    folder = write_model(tmp_path / "parent", llama_config(intermediate_size=256), dtype="F64").folder
    (folder / "tokenizer.json").write_text("{}")
    return open_folder(folder)


@pytest.fixture
def blueprint(parent: Checkpoint) -> Blueprint:
    same = Blueprint.identity(parent.spec.parent("p"))
    first, *others = same.blocks
    block = Block(
        parent_blocks=(0, 0),
        attention=Softened(source=0, share=0.25),
        ffn=Softened(source=0, share=0.5),
    )
    assert first != block
    return Blueprint(parent=same.parent, blocks=(block, *others))


def test_it_is_read_back_and_checked(blueprint: Blueprint, tmp_path: Path) -> None:
    blueprint.save(tmp_path / "blueprint.json")
    assert Blueprint.load(tmp_path / "blueprint.json") == blueprint
    with pytest.raises(ValueError, match="block 0: nothing would be left"):
        Blueprint.model_validate_json(blueprint.to_json().replace("0.25", "-1"))


def test_it_is_said_and_drawn(blueprint: Blueprint) -> None:
    assert change_of(blueprint.blocks[0]) == "attention 0 softened, FFN 0 softened"
    assert "1 FFN was softened (block 0)" in sentence(blueprint)
    assert list(plan_grid(blueprint).texts) == [("0", "0", "softened", "softened", "256")]
    drawn = block_diagram(blueprint).plain
    assert "▿ ■ ■ ■" in drawn
    assert "softened FFN" in drawn


def test_it_is_built_and_verified(parent: Checkpoint, blueprint: Blueprint, tmp_path: Path) -> None:
    folder = build(parent, blueprint, tmp_path / "child")
    child = open_folder(folder)
    config = dict(parent.spec.config)
    ids = random_ids(config, 2, 9)
    changed = {name: child.read(name) for name in child.tensors}
    name = "model.layers.0.self_attn.o_proj.weight"
    assert torch.equal(changed[name], parent.read(name) * 0.25)
    assert torch.equal(changed["model.layers.1.mlp.up_proj.weight"], parent.read("model.layers.1.mlp.up_proj.weight"))
    assert Reference(config, changed).logits(ids, identity_steps(4)).isfinite().all()
    findings = list(verify(folder, Against(parent, ids, "random tokens")))
    assert all(finding.ok for finding in findings), findings
    assert findings[-1].check == "logits"
