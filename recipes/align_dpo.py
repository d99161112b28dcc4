"""A child aligned with preferences, by TRL's direct preference optimisation: `pip install 'ffn-fusion[train]' trl`.

python recipes/align_dpo.py CHILD -o ALIGNED --pairs PAIRS.jsonl

Each line of PAIRS holds a "prompt", a "chosen" and a "rejected" answer, as text or as messages (then the child's chat
template is used). The reference is the child itself, as it was. A killed run goes on with --resume. The result is a
child like any other: it loads, checks, verifies and exports (docs/after-distillation.md).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

import ffn_fusion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("child", type=Path, help="a child that ffn-fusion wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, help="where it goes; must not exist")
    parser.add_argument("--pairs", nargs="+", required=True, help=".jsonl files of prompt, chosen and rejected")
    parser.add_argument("--beta", type=float, default=0.1, help="how near to the child it stays (default: 0.1)")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of a prompt and an answer")
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step (default: 8)")
    parser.add_argument("--micro", type=int, default=1, help="pairs at a time (default: 1)")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--bf16", action="store_true", help="matrix products in bfloat16")
    parser.add_argument("--resume", action="store_true", help="from the last checkpoint in OUTPUT.training")
    options = parser.parse_args()
    try:
        ffn_fusion.check_trainable(options.child, options.output)
    except ffn_fusion.FfnFusionError as error:
        parser.error(f"{error.message}; {error.hint}")

    pairs = load_dataset("json", data_files=options.pairs, split="train")
    work = options.output.with_name(f"{options.output.name}.training")
    arguments = DPOConfig(
        output_dir=str(work),
        beta=options.beta,
        max_length=options.max_length,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.micro,
        gradient_accumulation_steps=max(1, options.batch // options.micro),
        learning_rate=options.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        bf16=options.bf16,
        save_steps=0.1,
        save_total_limit=1,
        logging_steps=0.05,
        report_to="none",
    )
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(options.child, dtype=torch.float32, trust_remote_code=False),
        args=arguments,
        train_dataset=pairs,
        processing_class=AutoTokenizer.from_pretrained(options.child),
    )
    trainer.train(resume_from_checkpoint=options.resume)
    trainer.save_model(str(work / "last"))
    how = f"direct preference optimisation on {len(pairs):,} pairs"
    if trainer.is_world_process_zero():
        ffn_fusion.write_trained(options.child, work / "last", how, options.output)
        shutil.rmtree(work)
        print(f"{how}: {options.output}")


if __name__ == "__main__":
    main()
