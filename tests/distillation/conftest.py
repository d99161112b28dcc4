"""The pairs that the tests share: written once."""

from __future__ import annotations

import pytest
from distillation_pair import Pair, make_pair


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """In float64."""
    return make_pair(tmp_path_factory.mktemp("exact"), "F64")


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """In bfloat16 as models are, FFNs padded to 256."""
    return make_pair(tmp_path_factory.mktemp("pair"), "BF16", 256)
