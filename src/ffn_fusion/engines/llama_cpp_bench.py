"""llama.cpp timed by its own programs: llama-bench for one sequence, llama-batched-bench for several at once.

Each call of a program is one round: it loads the file, warms up and measures once, so that models take turns.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from ffn_fusion.checkpoint.gguf_file import GgufFile, is_gguf, read_gguf
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.checkpoint.source import default_cache, open_model
from ffn_fusion.errors import CheckError, CheckpointError, MissingExtraError
from ffn_fusion.families import AttentionSpec, BlockSpec, FfnSpec, ModelSpec
from ffn_fusion.latency.interleave import Progress, Run, Setting
from ffn_fusion.latency.traffic import Traffic
from ffn_fusion.programs import named_program, program_on_path

PROGRAM, BATCHED = "llama-bench", "llama-batched-bench"
VARIABLE = "LLAMA_BENCH"

_DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_KV_SIZE = 2.0  # llama.cpp keeps keys and values in float16
_HINT = "ffn-fusion check OUT --engine llama.cpp says what it can't run"
_STEP = 0.01
_ATTEMPTS = 5


@dataclass(frozen=True)
class Programs:
    """llama-bench, and where its sister should be."""

    bench: Path

    @property
    def batched(self) -> Path:
        """Raises: MissingExtraError: it isn't there."""
        beside = self.bench.with_name(BATCHED)
        found = beside if beside.is_file() else program_on_path(BATCHED)
        if found is None:
            raise MissingExtraError(
                f"batches are timed by llama.cpp's {BATCHED}, which isn't beside {self.bench}",
                "build that target of llama.cpp too (tools/engines/llama_cpp.sh does), or time --batch 1 alone",
            )
        return found


def find_programs(given: Path | None) -> Programs:
    """llama-bench: the one that is given, else $LLAMA_BENCH, else the one on the PATH.

    Raises:
        UsageError: the one given isn't a program. MissingExtraError: there is none.
    """
    found = named_program(f"llama.cpp's {PROGRAM}", given, "--engine-program", VARIABLE) or program_on_path(PROGRAM)
    if found is None:
        raise MissingExtraError(
            f"llama.cpp is timed by its {PROGRAM}, which isn't on the PATH",
            f"install llama.cpp (tools/engines/llama_cpp.sh builds it) and give --engine-program PATH or ${VARIABLE}",
        )
    return Programs(found)


class LlamaCppRunner:
    """See ``interleave.Runner``: a GGUF file."""

    def __init__(self, file: Path, programs: Programs, threads: int, device: str) -> None:
        self._file = file
        self._programs = programs
        where = ("-dev", "none") if device == "cpu" else ()
        self._words = ("-m", str(file), "-t", str(threads), *where)
        self._on_cpu = device == "cpu"

    def warm_up(self, setting: Setting) -> int | None:
        """The file's pages that were read count as memory."""
        peak = max(self._timed(setting)[1])
        return peak or None if self._on_cpu else None

    def run(self, setting: Setting) -> Run:
        return self._timed(setting)[0]

    def _timed(self, setting: Setting) -> tuple[Run, list[int]]:
        if setting.batch > 1:
            return self._batched(setting)
        once = ("-r", "1", "-o", "json")
        context, new = str(setting.context), str(setting.new_tokens)
        prefill, first = self._call(self._programs.bench, (*once, "-p", context, "-n", "0"))
        decode, second = self._call(self._programs.bench, (*once, "-p", "0", "-n", new, "-d", context))
        return Run(*(json.loads(out)[0]["samples_ns"][0] / 1e9 for out in (prefill, decode))), [first, second]

    def _batched(self, setting: Setting) -> tuple[Run, list[int]]:
        room = setting.batch * (setting.context + setting.new_tokens + 1)
        sizes = {"-npp": setting.context, "-ntg": setting.new_tokens, "-npl": setting.batch, "-c": room}
        words = [str(word) for pair in sizes.items() for word in pair]
        out, peak = self._call(self._programs.batched, (*words, "--output-format", "jsonl"))
        (found,) = (json.loads(line) for line in out.splitlines() if line.startswith("{"))
        return Run(found["t_pp"], found["t_tg"]), [peak]

    def _call(self, program: Path, words: tuple[str, ...]) -> tuple[str, int]:
        """What a program says, and the peak of its memory. Its last words are lost now and then: it ends before the
        thread that writes them has.

        Raises:
            CheckError: it failed.
        """
        for _ in range(_ATTEMPTS):
            said, peak = self._once(program, words)
            if "{" in said:
                return said, peak
        raise CheckError(f"llama.cpp's {program.name} said nothing of {self._file.name}", "try another llama.cpp")

    def _once(self, program: Path, words: tuple[str, ...]) -> tuple[str, int]:
        with TemporaryFile("w+") as out, TemporaryFile("w+") as log:
            running = subprocess.Popen([str(program), *self._words, *words], stdout=out, stderr=log)
            try:
                peak = _watched(running)
            finally:
                running.kill()
                running.wait()
            out.seek(0)
            log.seek(0)
            said = out.read()
            if running.returncode:
                raise CheckError(f"llama.cpp can't run {self._file.name}: {_last_word(log.read())}", _HINT)
        return said, peak


def _watched(running: subprocess.Popen[bytes]) -> int:
    """Wait for the end; the largest resident set meanwhile, 0 where the system doesn't tell."""
    status, peak = Path(f"/proc/{running.pid}/status"), 0
    while running.poll() is None:
        try:
            found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        except OSError:
            found = None
        peak = max(peak, int(found[1]) << 10) if found else peak
        time.sleep(_STEP)
    return peak


def _last_word(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or "fail" in line.lower()]
    return (errors or lines or ["it said nothing"])[0 if errors else -1]


def gguf_files(models: Mapping[str, str], dtype: str, progress: Progress) -> dict[str, Path]:
    """A GGUF file of every model: the file itself, or its export, which is kept in the cache.

    Raises:
        CheckError: llama.cpp can't run it. Whatever opening and exporting raise.
    """
    return {name: _gguf_file(place, dtype, progress) for name, place in models.items()}


def _gguf_file(place: str, dtype: str, progress: Progress) -> Path:
    from ffn_fusion.export.gguf_writer import plan_gguf, write_gguf

    given = Path(place).expanduser()
    if given.is_file() and is_gguf(given):
        return given.absolute()
    checkpoint = open_model(place)
    plan = plan_gguf(checkpoint, dtype=_DTYPES.get(dtype, dtype))
    target = default_cache() / "bench" / f"{_key(checkpoint, plan.dtype)}.gguf"
    return target if target.is_file() else write_gguf(plan, target, progress)


def _key(checkpoint: Checkpoint, dtype: str) -> str:
    """Another name as soon as a file of the checkpoint changes."""
    files = sorted(path for path in checkpoint.folder.resolve().iterdir() if path.is_file())
    state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    identity = hashlib.sha256(repr((str(checkpoint.folder.resolve()), state)).encode()).hexdigest()
    return f"{checkpoint.folder.name}-{dtype}-{identity[:16]}"


def gguf_traffic(file: Path) -> Traffic:
    """What llama.cpp can't do without: the tensors as they're stored, the KV cache in float16.

    Raises:
        CheckpointError: the header doesn't say what the model is made of.
    """
    gguf = read_gguf(file)
    spec = gguf_spec(gguf)
    every = {name: tensor.nbytes for name, tensor in gguf.tensors.items()}
    embedding = 0 if spec.tied else every["token_embd.weight"]
    return Traffic(spec, sum(every.values()) - embedding, _KV_SIZE)


def gguf_spec(gguf: GgufFile) -> ModelSpec:
    """The model in a GGUF file, which may be quantised and have blocks that differ: its sizes, of its weights nothing.

    Raises:
        CheckpointError: the header doesn't say them.
    """
    try:
        return _spec(gguf, str(gguf.metadata["general.architecture"]))
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{gguf.path}: its header doesn't say {error}", "get the file again") from error


def _spec(gguf: GgufFile, architecture: str) -> ModelSpec:
    def read(key: str, default: Any = None) -> Any:
        value = gguf.metadata.get(f"{architecture}.{key}", default)
        if value is None:
            raise KeyError(key)
        return value

    count = int(read("block_count"))

    def each(key: str) -> list[int]:
        value = read(key)
        return [int(v) for v in value] if hasattr(value, "__len__") else [int(value)] * count

    heads, kv_heads, widths = (
        each(k) for k in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    )
    hidden, most = int(read("embedding_length")), max(heads)
    return ModelSpec(
        family=architecture,
        hidden_size=hidden,
        heads=most,
        head_dim=int(read("attention.key_length", hidden // most)),
        vocab_size=gguf.tensors["token_embd.weight"].shape[0],
        blocks=tuple(_block(*sizes) for sizes in zip(heads, kv_heads, widths, strict=True)),
        tied="output.weight" not in gguf.tensors,
        attention_bias=False,
        mlp_bias=False,
        activation="silu",
        norm_eps=1e-5,
        config={"max_position_embeddings": int(read("context_length"))},
    )


def _block(heads: int, kv_heads: int, width: int) -> BlockSpec:
    attention = AttentionSpec("attention" if kv_heads else "linear", kv_heads) if heads else None
    return BlockSpec(attention, FfnSpec("gated", width) if width else None)
