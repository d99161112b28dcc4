"""Keep what the demo measured for the docs: .demo/SmolLM2-135M-fused.run -> docs/results/demo.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sources import RESULTS, ROOT, stamp

RUN = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / ".demo" / "SmolLM2-135M-fused.run"


def main() -> None:
    blueprint = json.loads((RUN / "blueprint.json").read_text(encoding="utf-8"))
    result = {
        "command": "make demo",
        **stamp("demo"),
        "plan": json.loads((RUN / "plan.json").read_text(encoding="utf-8")),
        "attentions": sum(block["attention"] is not None for block in blueprint["parent"]["blocks"]),
        "child_blocks": [
            block
            for block in blueprint["blocks"]
            if block["attention"]["kind"] == "none" or block["ffn"]["kind"] == "fused"
        ],
        "quality": json.loads((RUN / "quality.json").read_text(encoding="utf-8")),
        "latency": json.loads((RUN / "latency.json").read_text(encoding="utf-8")),
    }
    (RESULTS / "demo.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
