"""Text -> token windows, for calibration and evaluation: seeded, and the same on every machine."""

from ffn_fusion.data.text import BUILT_IN_CALIBRATION, BUILT_IN_HELD_OUT, read_documents
from ffn_fusion.data.windows import TokenWindows, load_tokenizer, make_windows

__all__ = [
    "BUILT_IN_CALIBRATION",
    "BUILT_IN_HELD_OUT",
    "TokenWindows",
    "load_tokenizer",
    "make_windows",
    "read_documents",
]
