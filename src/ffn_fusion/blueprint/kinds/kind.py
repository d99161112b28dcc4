"""What every kind of sub-block can say about itself, and the registry that JSON is read with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import SerializeAsAny, WrapValidator

from ffn_fusion.blueprint.ranges import format_blocks
from ffn_fusion.blueprint.sub_blocks import Part, SubBlock
from ffn_fusion.settings import Frozen

Operation = Literal[
    "analyse",
    "drop attention",
    "drop FFN",
    "narrow",
    "make linear",
    "pool KV heads",
    "fuse",
    "side by side",
    "repair",
    "distil",
]
"""What can be done with a model; a family says which of them it doesn't take, and why."""

NAMES: Mapping[Part, str] = {"attention": "attention", "ffn": "FFN"}


class Kind(Frozen):
    """One way to make a sub-block of a child; ``kind`` is its word in JSON.

    ``had`` is always what the parent has at ``sources``, one description a source.
    """

    parts: ClassVar[frozenset[Part]]
    """Which sub-blocks can be made in this way."""
    glyph: ClassVar[str | None] = None
    """How the text diagram draws it; None: like the parent's."""
    fate: ClassVar[str]
    """What becomes of each of its sources, as a participle."""
    changes: ClassVar[bool] = True
    """Whether what the sub-block computes differs from the parent's."""

    kind: str

    if TYPE_CHECKING:  # a field of some kinds, a property of others

        @property
        def sources(self) -> tuple[int, ...]:
            """The parent blocks that it's made of, in order; empty where there is no sub-block."""

    @property
    def present(self) -> bool:
        """Whether the child has the sub-block at all."""
        return bool(self.sources)

    @abstractmethod
    def sizes(self, had: Sequence[SubBlock]) -> SubBlock | None:
        """The sub-block that the child gets, before padding; None: none."""

    def check(self, had: Sequence[SubBlock]) -> None:
        """Raises: ValueError: the sub-block can't be made of these."""

    def operation(self, part: Part) -> Operation | None:
        """The operation that makes it; None where nothing is done."""
        return None

    def words(self, part: Part) -> str:
        """What was done, like ``FFN 5-7 fused``; empty where nothing was."""
        return f"{NAMES[part]} {format_blocks(self.sources)} {self.fate}" if self.changes else ""

    def cells(self, part: Part, had: Sequence[SubBlock]) -> tuple[str, str]:
        """What it is and, of an FFN, how wide, for the table of a plan."""
        if part == "attention":
            return self.fate, ""
        width = getattr(self.sizes(had), "width", 0)
        return self.fate, f"{width:,}" if width else "linear"

    def label(self, part: Part, had: Sequence[SubBlock]) -> str:
        """What it is, for a drawing: ``FFN 1,536 wide``."""
        sizes = self.sizes(had)
        width = getattr(sizes, "width", 0)
        if part == "ffn":
            return f"FFN {width:,} wide" if width else "linear FFN"
        return sizes.kind if sizes else "none"


KINDS: dict[str, type[Kind]] = {}
K = TypeVar("K", bound=type[Kind])


def register_kind(cls: K) -> K:
    """Make a kind known to JSON by its ``kind`` word: a class decorator."""
    kind: type[Kind] = cls
    word = kind.model_fields["kind"].default
    assert isinstance(word, str), f"{cls.__name__}.kind needs a default"
    assert word not in KINDS, word
    KINDS[word] = cls
    return cls


def _of(part: Part) -> Callable[[Any, Any], Kind]:
    """JSON -> the kind that its ``kind`` word names, if that makes this part."""

    def read(value: Any, handler: Any) -> Kind:
        if isinstance(value, Kind):
            found = value
        else:
            word = value.get("kind") if isinstance(value, Mapping) else None
            if not isinstance(word, str) or word not in KINDS:
                raise ValueError(f"kind {word!r} isn't known; known are {', '.join(KINDS)}")
            found = KINDS[word].model_validate(value)
        if part not in found.parts:
            raise ValueError(f"an {NAMES[part]} can't be {found.kind}")
        return found

    return read


PlannedAttention = Annotated[SerializeAsAny[Kind], WrapValidator(_of("attention"))]
PlannedFfn = Annotated[SerializeAsAny[Kind], WrapValidator(_of("ffn"))]
