"""llama.cpp through its own llama-server: a checkpoint's GGUF file in float32, token ids in, log-probabilities out.

Each request asks for one token after a given beginning. When a beginning grows by one token, the server answers from
its KV cache, which is thereby checked too; the last token of a prompt is asked for without the cache.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.engines.answers import Answers
from ffn_fusion.errors import CheckError, MissingExtraError
from ffn_fusion.programs import check_signal, named_program, program_on_path

PROGRAM = "llama-server"
VARIABLE = "LLAMA_SERVER"

EXACT = ("--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off", "--n-gpu-layers", "0")
_ONE_AT_A_TIME = ("--parallel", "1", "--no-warmup", "--no-webui", "--offline")
_HARMLESS = "a"
_PATIENCE = 600.0  # seconds, for a model to load and for an answer
_STEP = 0.05


def llama_cpp_answers(folder: Path, ids_NT: Tensor, new: int, likeliest: int, program: Path | None) -> Answers:
    """Ask llama.cpp (see ``Ask``) with the checkpoint's GGUF file in float32, in a temporary folder."""
    from ffn_fusion.export.gguf import plan_gguf
    from ffn_fusion.gguf.write import write_gguf

    server = find_server(program)
    with TemporaryDirectory(prefix="ffn-fusion-") as place:
        file = write_gguf(plan_gguf(open_folder(folder), dtype="f32"), Path(place) / "model.gguf")
        with served(file, server, context=ids_NT.shape[1] + new + 1) as llama:
            return answers(llama, ids_NT, new, likeliest)


def find_server(given: Path | None) -> Path:
    """Find llama-server: the given one, else $LLAMA_SERVER, else the one on the PATH.

    Raises:
        UsageError: the given one isn't a program. MissingExtraError: there is none.
    """
    return find_program(PROGRAM, given, VARIABLE, "run")


def find_program(name: str, given: Path | None, variable: str, used: str) -> Path:
    """Find one of llama.cpp's programs: the given one, else that of the variable, else the one on the PATH.

    Args:
        used: what the program does to llama.cpp, as a participle: run, timed.

    Raises:
        UsageError: the given one isn't a program. MissingExtraError: there is none.
    """
    found = named_program(f"llama.cpp's {name}", given, "--engine-program", variable) or program_on_path(name)
    if found is None:
        raise MissingExtraError(
            f"llama.cpp is {used} by its {name}, which isn't on the PATH",
            f"install llama.cpp (tools/engines/llama_cpp.sh builds it) and give --engine-program PATH or ${variable}",
        )
    return found


def last_word(log: str) -> str:
    """Return the first error in what a program wrote, else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or "fail" in line.lower()]
    return (errors or lines or ["it said nothing"])[0 if errors else -1]


class LlamaServer:
    """A running llama-server, asked about tokens and texts."""

    def __init__(self, address: str) -> None:
        self._address = address
        # What the server samples is ignored, but it must not be half of a character, which the server would hold back.
        self._sampled = (self.tokens(_HARMLESS) or [0])[0]

    def next(self, ids: Sequence[int], likeliest: int, *, cached: bool = True) -> list[tuple[int, float]]:
        """Return (id, log-probability) of the most likely tokens after these, the most likely first."""
        asked = {
            "prompt": list(ids),
            "n_predict": 1,
            "n_probs": likeliest,
            "temperature": 0,
            "logit_bias": [[self._sampled, 1e6]],  # probabilities are those before it
            "cache_prompt": cached,
        }
        answer = self.ask("completion", asked)
        try:
            found = answer["completion_probabilities"][0]["top_logprobs"]
            return [(int(entry["id"]), float(entry["logprob"])) for entry in found]
        except (KeyError, IndexError) as error:
            raise CheckError("llama.cpp reports no token probabilities", "try a newer llama-server") from error

    def tokens(self, text: str) -> list[int]:
        """Return the token ids of a text; special tokens in it are recognised, and none are added."""
        found = self.ask("tokenize", {"content": text, "add_special": False, "parse_special": True})
        return [int(token) for token in found["tokens"]]

    def ask(self, what: str, asked: dict[str, Any]) -> Any:
        """Post a request to ``/what`` and return its JSON answer.

        Raises:
            CheckError: the server refused, or ended.
        """
        body = json.dumps(asked).encode()
        request = Request(f"{self._address}/{what}", body, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=_PATIENCE) as answer:
                return json.load(answer)
        except HTTPError as error:
            raise CheckError(f"llama.cpp refused: {error.read().decode(errors='replace')[:300]}", _HINT) from error
        except (OSError, ValueError) as error:
            raise CheckError(f"llama.cpp failed while it ran the model: {error}", _HINT) from error


def answers(llama: LlamaServer, ids_NT: Tensor, new: int, likeliest: int) -> Answers:
    """Ask about prompt after prompt, position after position."""
    rows, texts = [], []
    for prompt in ids_NT.tolist():
        rows += [llama.next(prompt[:end], likeliest) for end in range(1, len(prompt))]
        rows.append(llama.next(prompt, likeliest, cached=False))
        text = list(prompt)
        for _ in range(new):
            text.append(llama.next(text, 1)[0][0])
        texts.append(text[len(prompt) :])
    shape = (*ids_NT.shape, -1)
    return Answers(
        ids_NTK=torch.tensor([[token for token, _ in row] for row in rows]).reshape(shape),
        logprobs_NTK=torch.tensor([[logprob for _, logprob in row] for row in rows]).reshape(shape),
        new_NS=torch.tensor(texts, dtype=torch.int64).reshape(len(texts), new),
    )


@contextmanager
def served(file: Path, program: Path, context: int, words: Sequence[str] = EXACT) -> Iterator[LlamaServer]:
    """Run llama-server on a GGUF file, with room for ``context`` tokens, reachable only from this machine.

    Args:
        words: more options of the server.

    Raises:
        CheckError: it doesn't load the file.
    """
    port = _free_port()
    where = ("--host", "127.0.0.1", "--port", str(port))
    command = [str(program), "--model", str(file), "--ctx-size", str(context), *where, *words, *_ONE_AT_A_TIME]
    with TemporaryDirectory(prefix="ffn-fusion-") as place, (Path(place) / "log").open("w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_environment())
        try:
            _wait(server, f"http://127.0.0.1:{port}/health", Path(log.name))
            yield LlamaServer(f"http://127.0.0.1:{port}")
        except CheckError:
            if _ended(server):  # a signal explains more than a connection that broke
                check_signal(PROGRAM, server.returncode)
            raise
        finally:
            server.kill()
            server.wait()


_HINT = "ffn-fusion check OUT --for-engine llama.cpp says what it can't run; or try another build of llama.cpp"


def _environment() -> dict[str, str]:
    """Return our environment without settings of the server, except for its number of threads."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("LLAMA_ARG_") or name.startswith("LLAMA_ARG_THREADS")
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _wait(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while not _healthy(address):
        if server.poll() is not None or time.monotonic() > until:
            raise CheckError(f"llama.cpp can't load it: {last_word(log.read_text(errors='replace'))}", _HINT)
        time.sleep(_STEP)


def _ended(server: subprocess.Popen[bytes]) -> bool:
    """Return whether the server has ended; a connection breaks a moment before the system reports the end."""
    try:
        server.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return False
    return True


def _healthy(address: str) -> bool:
    """Return whether the server answers and has loaded the model."""
    try:
        with urlopen(address, timeout=_PATIENCE):
            return True
    except (URLError, OSError):
        return False
