"""Stands in for llama.cpp's benchmark programs: notes how it was called, answers as they do."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path


def main() -> None:
    words = sys.argv[1:]
    option = dict(zip(words[::2], words[1::2], strict=False))
    log = Path(__file__).with_name("calls.jsonl")
    with log.open("a") as file:
        file.write(json.dumps({"program": Path(__file__).name, **option}) + "\n")
    if "killed" in option["-m"]:
        os.kill(os.getpid(), signal.SIGILL)
    if "broken" in option["-m"]:
        sys.exit("llama_model_load: error loading model: no such architecture")
    if "--output-format" in option:
        print("a line of another kind")
        pp, tg, pl = (int(option[f"-n{k}"]) for k in ("pp", "tg", "pl"))
        print(json.dumps({"pp": pp, "tg": tg, "pl": pl, "t_pp": pp * pl / 1e3, "t_tg": tg / 1e2}))
        return
    tokens = int(option["-p"]) + 10 * int(option["-n"])
    print(json.dumps([{"samples_ns": [tokens * 1_000_000]}]))


main()
