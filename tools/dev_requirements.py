"""Print the development dependency group of pyproject.toml, a requirement a line (pip before 25.1 reads no groups)."""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
print("\n".join(project["dependency-groups"]["dev"]))
