"""What tests of data share with those of other rooms."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "checkpoint"))  # fake_hub
