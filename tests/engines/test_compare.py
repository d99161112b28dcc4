"""A child in an engine against transformers: what counts as the same, and what's said where the engine isn't there.

No engine is needed here: one is made up of the reference itself, right or wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from makers import nas_config, write_model
from tiny import VOCABULARY, write_tokenizer
from torch import Tensor

from ffn_fusion.engines import compare as module
from ffn_fusion.engines import vllm
from ffn_fusion.engines.answers import Answers
from ffn_fusion.engines.compare import NEW, TOLERANCE, Comparison, compare, parse_runnable, verify_engine
from ffn_fusion.engines.llama_cpp import LlamaServer, find_server, served
from ffn_fusion.errors import CheckError, MissingExtraError, UsageError
from ffn_fusion.modeling.load import load_model
from ffn_fusion.portability import reference


def child(folder: Path) -> Path:
    sizes = {"vocab_size": VOCABULARY, "bos_token_id": 256, "eos_token_id": 257}
    blocks = [(2, 48), (None, 96)]
    write_model(folder, nas_config(blocks, **sizes), blocks)  # type: ignore[arg-type]
    write_tokenizer(folder)
    return folder


def told(folder: Path, ids_NT: Tensor, new: int, likeliest: int, program: Path | None) -> Answers:
    """What an engine would say that computes just what transformers does."""
    model = load_model(folder, torch.float32)
    logprobs_NTK, ids_NTK = reference.logits(model, ids_NT).log_softmax(-1).topk(likeliest)
    return Answers(ids_NTK, logprobs_NTK, reference.greedy(model, ids_NT, new).argmax(-1))


def other(folder: Path, ids_NT: Tensor, new: int, likeliest: int, program: Path | None) -> Answers:
    """One that reads its prompts the wrong way round."""
    return told(folder, ids_NT.flip(-1), new, likeliest, program)


@pytest.mark.parametrize(("engine", "ok"), [(told, True), (other, False)])
def test_an_engine_that_is_right_and_one_that_isnt(
    engine: Callable[..., Answers], ok: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENGINES", {"vllm": engine})
    ids = torch.arange(24).reshape(2, 12)
    found = verify_engine(child(tmp_path / "child"), "vllm", ids, "24 tokens")
    assert (found.check, found.ok) == ("vllm", ok)
    assert (found.figures["logit_error"] < 1e-6) is ok
    assert (found.figures["same_text"] == 1) is ok
    assert (f"the same {NEW} tokens of greedy text" in found.words) is ok


def test_what_counts_as_the_same() -> None:
    """The largest logit is 4: what's let pass is TOLERANCE of that."""
    logits_NTV = torch.tensor([[[4.0, 1.0, 3.999, -1.0]]])

    def found(shift: float, top: int, text: int) -> Comparison:
        """Tokens ``top`` and 1 are told of, the first ``shift`` too likely; the text goes on with ``text``."""
        ids_NTK = torch.tensor([[[top, 1]]])
        logprobs_NTK = logits_NTV.log_softmax(-1).gather(-1, ids_NTK) + torch.tensor([shift, 0.0])
        return compare(Answers(ids_NTK, logprobs_NTK, torch.tensor([[text]])), logits_NTV, logits_NTV)

    exact = found(0.0, 0, 0)
    assert (exact.ok, exact.agreement, exact.same_text, exact.lead) == (True, 1, 1, 0)
    assert exact.error == pytest.approx(0, abs=1e-7)
    assert found(4 * TOLERANCE * 0.99, 0, 0).ok
    assert not found(4 * TOLERANCE * 1.01, 0, 0).ok
    assert not found(-4 * TOLERANCE * 1.01, 0, 0).ok
    tie = found(0.0, 2, 2)
    assert (tie.ok, tie.agreement, tie.same_text) == (True, 0, 0)
    assert tie.lead == pytest.approx(0.001 / 4, rel=1e-3)
    assert not found(0.0, 0, 1).ok
    assert not found(float("nan"), 0, 0).ok


def test_what_has_no_probability() -> None:
    """llama.cpp says that a probability of 0 has the lowest logarithm that float32 knows."""
    logits_NTV = torch.tensor([[[100.0, 0.0]]])
    lowest = torch.finfo(torch.float32).min
    answers = Answers(torch.tensor([[[0, 1]]]), torch.tensor([[[0.0, lowest]]]), torch.tensor([[0]]))
    assert compare(answers, logits_NTV, logits_NTV).ok
    assert not compare(answers, logits_NTV / 2, logits_NTV).ok


def test_a_text_is_compared_until_it_parts() -> None:
    logits_NSV = torch.eye(3)[None] * 10
    answers = Answers(torch.tensor([[[0]]]), torch.zeros(1, 1, 1), torch.tensor([[0, 2, 2]]))
    assert compare(answers, torch.tensor([[[8.0, 0.0, 0.0]]]), logits_NSV).lead == pytest.approx(10 / 8)


def test_names() -> None:
    assert parse_runnable("llama.cpp") == "llama.cpp"
    assert parse_runnable("transformers") == "transformers"
    for name in ("sglang", "all", "onnx"):
        with pytest.raises(UsageError):
            parse_runnable(name)


# ---- engines that aren't there, or give up


def script(path: Path, lines: str) -> Path:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return path


def test_where_llama_cpp_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_SERVER", raising=False)
    with pytest.raises(MissingExtraError, match="llama-server, which isn't on the PATH"):
        find_server(None)
    program = script(tmp_path / "llama-server", "exit 1")
    assert find_server(None) == program
    named = script(tmp_path / "mine", "exit 1")
    monkeypatch.setenv("LLAMA_SERVER", str(named))
    assert find_server(None) == named
    assert find_server(program) == program
    with pytest.raises(UsageError, match="--engine-program"):
        find_server(tmp_path / "nothing")


def test_llama_cpp_that_gives_up(tmp_path: Path) -> None:
    program = script(tmp_path / "llama-server", "echo loading; echo 'error: unknown architecture'; exit 1")
    with (
        pytest.raises(CheckError, match=r"llama\.cpp can't load it: error: unknown architecture"),
        served(tmp_path / "model.gguf", program, context=8),
    ):
        pass


def test_llama_cpp_that_a_signal_ends(tmp_path: Path) -> None:
    """Its last line says nothing of why: it wrote that before it met the instruction."""
    complaint = "the slot context (256) exceeds the training context"
    program = script(tmp_path / "llama-server", f"echo 'error: {complaint}'; kill -ILL $$")
    with (
        pytest.raises(
            CheckError, match=r"^llama-server was ended by SIGILL: .*instruction that this processor"
        ) as found,
        served(tmp_path / "model.gguf", program, context=8),
    ):
        pass
    assert "without native tuning" in found.value.hint


def test_vllm_that_a_signal_ends(tmp_path: Path) -> None:
    python = script(tmp_path / "python", "echo loading >&2; kill -KILL $$")
    with pytest.raises(CheckError, match=r"^vllm was ended by SIGKILL: .*memory"):
        vllm.ask(python, {}, {})
    python = script(tmp_path / "python", """echo '{"model": {"status": -11}}' > $3""")
    with pytest.raises(CheckError, match=r"^vllm was ended by SIGSEGV"):
        vllm.ask(python, {}, {})
    python = script(tmp_path / "python", """echo '{"model": {"status": 3}}' > $3""")
    assert vllm.ask(python, {}, {})["model"].error == "ended with status 3"


def test_an_older_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers without the ids of tokens, in fields of other names."""
    older = {"completion_probabilities": [{"probs": [{"tok_str": "a", "prob": 1.0}]}]}
    said = {"tokenize": {"tokens": []}, "completion": older}
    monkeypatch.setattr(LlamaServer, "ask", lambda self, what, asked: said[what])
    with pytest.raises(CheckError, match="no token probabilities"):
        LlamaServer("http://127.0.0.1:1").next([1, 2], 3)


def test_where_vllm_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FFN_FUSION_VLLM_PYTHON", raising=False)
    lacks, has = script(tmp_path / "lacks", "exit 1"), script(tmp_path / "has", "exit 0")
    with pytest.raises(MissingExtraError, match=f"no vLLM is installed for {lacks}"):
        vllm.find_python(lacks)
    monkeypatch.setenv("FFN_FUSION_VLLM_PYTHON", str(has))
    assert vllm.find_python(None) == has
    with pytest.raises(UsageError, match="--engine-program"):
        vllm.find_python(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("lines", "says", "hint"),
    [
        ("echo 'ImportError: libtorch' >&2; exit 1", "vllm didn't start: ImportError: libtorch", "import vllm"),
        ('echo \'{"model": {"ours": false, "said": "too many values"}}\' > "$3"', "too many values", "check OUT"),
        ('echo \'{"model": {"ours": false, "said": "trust_remote_code"}}\' > "$3"', "trust_rem", "install ffn-fusion"),
    ],
)
def test_vllm_that_gives_up(lines: str, says: str, hint: str, tmp_path: Path) -> None:
    python = script(tmp_path / "python", f'[ "$1" = -c ] && exit 0\n{lines}')
    with pytest.raises(CheckError, match=says) as error:
        vllm.vllm_answers(tmp_path, torch.zeros(1, 4, dtype=torch.int64), 2, 3, python)
    assert hint in error.value.hint
