"""Token ids against the vocabulary of the model that will read them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ffn_fusion.errors import CheckpointError


def check_ids(ids: Collection[int], vocabulary: int | None, tokenizer: Any, source: object) -> None:
    """Check that a model has an embedding for every token of a text.

    Args:
        vocabulary: size of the model's vocabulary; None: nothing is checked.
        source: where the text is from, for the error.

    Raises:
        CheckpointError: it has none; names the token, its id and the vocabulary.
    """
    largest = max(ids, default=0)
    if vocabulary is not None and largest >= vocabulary:
        word = tokenizer.convert_ids_to_tokens(largest)
        raise CheckpointError(
            f"{source}: token {word!r} is number {largest:,} of the tokenizer, and the model's vocabulary has "
            f"{vocabulary:,} tokens, 0 to {vocabulary - 1:,}",
            "put the model's own tokenizer beside its weights, or save the model with resized embeddings "
            "(resize_token_embeddings)",
        )
