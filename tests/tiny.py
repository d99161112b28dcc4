"""A tiny whole model with a byte-level tokenizer, and texts: what the pipeline and the command line are tested on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from makers import Made, llama_config, write_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 258


def write_tokenizer(folder: Path, *, bos: bool = False) -> None:
    """Every byte is a token; 256 begins and 257 ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    if bos:
        from tokenizers.processors import TemplateProcessing

        fast._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    fast.save_pretrained(folder)


def tiny_model(folder: Path, *, blocks: int = 6, **changes: Any) -> Made:
    """A Llama of six blocks that knows bytes."""
    config = llama_config(
        vocab_size=VOCABULARY, num_hidden_layers=blocks, bos_token_id=256, eos_token_id=257, **changes
    )
    made = write_model(folder, config)
    write_tokenizer(folder)
    return made


def tiny_text(path: Path, words: int = 400, start: int = 0) -> Path:
    path.write_text(" ".join(f"word{(i * 7919 + start) % 1000}" for i in range(words)), encoding="utf-8")
    return path
