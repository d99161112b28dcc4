"""A child trained further on text, by transformers' Trainer: `pip install 'ffn-fusion[train]' datasets`.

python recipes/continue_pretraining.py CHILD -o BETTER --text TEXT.txt

The language-model loss alone; documents are packed, one after another with an end-of-text between them, into windows
of --context tokens. The parent has no part in it. A killed run goes on with --resume. The result is a child like any
other: it loads, checks, verifies and exports (docs/after-distillation.md).
"""

from __future__ import annotations

import argparse
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, default_data_collator

import ffn_fusion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("child", type=Path, help="a child that ffn-fusion wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, help="where it goes; must not exist")
    parser.add_argument("--text", nargs="+", required=True, help=".txt (a document each), or .jsonl with a 'text'")
    parser.add_argument("--context", type=int, default=512, help="tokens of a window (default: 512)")
    parser.add_argument("--batch", type=int, default=8, help="windows of a step (default: 8)")
    parser.add_argument("--micro", type=int, default=1, help="windows at a time (default: 1)")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--bf16", action="store_true", help="matrix products in bfloat16")
    parser.add_argument("--resume", action="store_true", help="from the last checkpoint in OUTPUT.training")
    options = parser.parse_args()
    try:
        ffn_fusion.check_trainable(options.child, options.output)
    except ffn_fusion.FfnFusionError as error:
        parser.error(f"{error.message}; {error.hint}")

    model = AutoModelForCausalLM.from_pretrained(options.child, dtype=torch.float32, trust_remote_code=False)
    windows = pack(options.text, AutoTokenizer.from_pretrained(options.child), options.context)
    work = options.output.with_name(f"{options.output.name}.training")
    arguments = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.micro,
        gradient_accumulation_steps=max(1, options.batch // options.micro),
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        bf16=options.bf16,
        save_steps=0.1,
        save_total_limit=1,
        logging_steps=0.05,
        report_to="none",
    )
    trainer = Trainer(model, arguments, train_dataset=windows, data_collator=default_data_collator)
    trainer.train(resume_from_checkpoint=options.resume)
    trainer.save_model(str(work / "last"))
    tokens = round(len(windows) * options.context * options.epochs)
    how = f"continued pre-training on {tokens:,} tokens of text, with the language-model loss alone"
    if trainer.is_world_process_zero():
        ffn_fusion.write_trained(options.child, work / "last", how, options.output)
        shutil.rmtree(work)
        print(f"{how}: {options.output}")


def pack(texts: list[str], tokenizer: Any, context: int) -> Dataset:
    """Windows of ``context`` tokens; what's left over at the end of a thousand documents is left out."""

    def cut(documents: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        found = tokenizer(documents["text"])["input_ids"]
        ids = list(chain.from_iterable([*document, tokenizer.eos_token_id] for document in found))
        windows = [ids[start : start + context] for start in range(0, len(ids) - context + 1, context)]
        return {"input_ids": windows, "labels": windows}

    kind, more = ("json", {}) if texts[0].endswith(".jsonl") else ("text", {"sample_by": "document"})
    documents = load_dataset(kind, data_files=texts, split="train", **more)
    return documents.map(cut, batched=True, remove_columns=documents.column_names)


if __name__ == "__main__":
    main()
