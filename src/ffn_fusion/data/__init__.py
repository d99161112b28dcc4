"""Turn text into token windows for calibration, training and evaluation; seeded, and the same on every machine."""

from ffn_fusion.checkpoint.sidecars import load_tokenizer
from ffn_fusion.data.hub_text import HubText
from ffn_fusion.data.text import BUILT_IN_CALIBRATION, BUILT_IN_HELD_OUT, read_documents
from ffn_fusion.data.window_file import write_windows
from ffn_fusion.data.window_rows import TokenWindows, WindowRows
from ffn_fusion.data.windows import make_windows

__all__ = [
    "BUILT_IN_CALIBRATION",
    "BUILT_IN_HELD_OUT",
    "HubText",
    "TokenWindows",
    "WindowRows",
    "load_tokenizer",
    "make_windows",
    "read_documents",
    "write_windows",
]
