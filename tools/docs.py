"""Has cog write the generated parts of docs/, which the functions of the package beside this file (tools/docs/) return.

``python tools/docs.py`` rewrites them, ``--check`` only says whether they are up to date (a test runs it).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> int:
    candidates = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    pages = sorted(str(path) for path in candidates if "[[[cog" in path.read_text(encoding="utf-8"))
    check = ["--check", "--diff"] if "--check" in sys.argv[1:] else ["-r"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    return subprocess.run([sys.executable, "-m", "cogapp", *check, *pages], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
