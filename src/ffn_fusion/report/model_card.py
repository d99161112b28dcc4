"""The model card of a child: README.md with the hub's metadata, what was done, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.report.grid import markdown
from ffn_fusion.report.grid import plain_markdown as _plain
from ffn_fusion.report.latency_grids import latency_grid
from ffn_fusion.report.model_grids import plan_grid
from ffn_fusion.report.quality_grids import quality_grid
from ffn_fusion.report.summary import MODELS, sentence
from ffn_fusion.report.task_grids import model_index, tasks_grid
from ffn_fusion.report.training_grids import (
    distillation_grid,
    from_library,
    mapped_inputs,
    solved_projections,
    stages_grid,
    trained_further,
    trainings,
)

if TYPE_CHECKING:
    from ffn_fusion.evaluation.quality import Quality
    from ffn_fusion.latency.timing import Latency

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)


def model_card(
    name: str,
    blueprint: Blueprint,
    version: str,
    licence: str | None = None,
    quality: Quality | None = None,
    latency: Latency | None = None,
    repairs: Mapping[str, Any] | None = None,
    form: str = "nemotron-nas",
    rewritten: Sequence[str] = (),
    distillation: Mapping[str, Any] | None = None,
) -> str:
    """README.md of a child, or of a model that was just written in another form.

    Args:
        name: what the child is called.
        version: of ffn-fusion.
        repairs: the record of what repair did (``repairs.json``); None: nothing.
        distillation: the record of its distillation (``distillation.json``); None: it wasn't.
        licence: the parent's, as the hub names it; the child has the same.
        form: the model_type of the form it is written in, or ``llama``.
        rewritten: what writing it in this form changed, in words; the function stays the same.
    """
    changed = blueprint != Blueprint.identity(blueprint.parent)
    parts = [
        _front_matter(blueprint.parent.name, licence, form, changed, _index(name, quality)),
        f"# {_plain(name)}\n",
        *(
            _surgery(blueprint, repairs, distillation)
            if changed
            else [f"{_plain(blueprint.parent.name)} in another form.\n"]
        ),
        *_learnt(distillation, quality),
        *_rewritten(rewritten),
        *_measured(quality, latency),
        _LOADING_LLAMA if form == "llama" else _LOADING,
        _provenance(blueprint, version, licence),
    ]
    return "\n".join(parts)


def _surgery(
    blueprint: Blueprint, repairs: Mapping[str, Any] | None, distillation: Mapping[str, Any] | None
) -> list[str]:
    return [
        f"{_plain(blueprint.parent.name)} rebuilt with ffn-fusion so that it answers sooner. {sentence(blueprint)}\n",
        _distilled(distillation, repairs) if distillation else _training(repairs),
        "## What was done\n",
        markdown(plan_grid(blueprint)),
        "A fused FFN computes the FFNs of a run of blocks side by side, on one shared input.\n",
    ]


def _rewritten(steps: Sequence[str]) -> list[str]:
    if not steps:
        return []
    lines = "\n".join(f"- {_plain(step)}" for step in steps)
    return [f"Written in this form, it computes the same, but for rounding:\n\n{lines}\n"]


def _training(repairs: Mapping[str, Any] | None) -> str:
    if repairs is None:
        return (
            "**Unrepaired: not trained after surgery.** The weights are the parent's, rearranged; quality that "
            "was lost stays lost until the model is distilled or fine-tuned.\n"
        )
    what, tokens = solved_projections(repairs), repairs["calibration"]["tokens"]
    mapped, chosen = mapped_inputs(repairs), from_library(repairs)
    if what is None and mapped is None and chosen is None:
        return (
            f"**Not trained after surgery.** Repair on {tokens:,} tokens of text improved no output projection on "
            "held-out text, so every weight is the parent's, rearranged.\n"
        )
    done = [chosen] if chosen else []
    done += [f"{what} solved in closed form, so that the states come close to the parent's."] if what else []
    done += [mapped] if mapped else []
    trained = any(row["how"] == "trained" for row in repairs.get("library", ()))
    how = "Trained sub-block by sub-block" if trained else "Repaired, not trained"
    return (
        f"**{how}**, on {tokens:,} tokens of text. {' '.join(done)} All other weights are the parent's "
        "own. Distillation or fine-tuning can bring it closer.\n"
    )


def _distilled(record: Mapping[str, Any], repairs: Mapping[str, Any] | None) -> str:
    """Distilled, or trained further by other tools, or both."""
    stages, further = trainings(record), "; then ".join(_plain(how) for how in trained_further(record))
    if not stages:
        return f"**{'Repaired, then trained' if repairs else 'Trained'} further:** {further}.\n"
    tokens = sum(stage["tokens"] for stage in stages)
    objectives = [stage["settings"]["objective"] for stage in stages]
    terms = {"kl": "the divergence of its next-token distributions", "cosine": "the cosine distance of hidden states"}
    terms |= {"lm": "the language-model loss"}
    learnt = [words for key, words in terms.items() if any(objective[key] for objective in objectives)]
    which = "; then ".join(dict.fromkeys(_which(stage["settings"]) for stage in stages))
    contexts = sorted({stage["context"] for stage in stages})
    windows = f"{contexts[0]:,} to {contexts[-1]:,}" if len(contexts) > 1 else f"{contexts[0]:,}"
    in_stages = f" in {len(stages)} stages, of windows of {windows} tokens" if len(stages) > 1 else ""
    done = "Repaired and distilled" if repairs else "Distilled"
    what = f"{which} were trained on {' and '.join(learnt)}"
    said = f"**{done} from its parent** on {tokens:,} tokens of text{in_stages}: {what}.\n"
    return said + (f"\n**Also trained:** {further}.\n" if further else "")


def _which(settings: Mapping[str, Any]) -> str:
    where = {
        "all": "all weights",
        "touched": "the weights that surgery touched",
        "lora": "all attentions and FFNs",
        "lora-touched": "the attentions and FFNs of the blocks that surgery touched",
    }[settings["trained"]]
    if not settings["trained"].startswith("lora"):
        return where
    return f"LoRA adapters of rank {settings['lora_rank']} on the matrices of {where}, merged now,"


def _learnt(record: Mapping[str, Any] | None, quality: Quality | None) -> list[str]:
    """Stages, and gains; those of a run stand among its scores."""
    if record is None:
        return []
    parts = [markdown(stages_grid(record))] if quality or len(trainings(record)) > 1 else []
    if not quality and record.get("gains"):
        parts.append(markdown(distillation_grid(record)))
    return ["## Distillation\n", *parts] if parts else []


def _index(name: str, quality: Quality | None) -> dict[str, object]:
    """The child's scores on tasks; its name in the tables is that of the last form it has there."""
    if not quality or not quality.tasks:
        return {}
    child = next(model for model in reversed(MODELS) if model in quality.models)
    return {"model-index": model_index(name, quality.tasks, child)}


def _front_matter(parent: str, licence: str | None, form: str, changed: bool, more: Mapping[str, object]) -> str:
    about: dict[str, object] = {}
    if licence:
        about["license"] = licence
    if _HUB_ID.fullmatch(parent):  # the hub refuses a card whose base model can't be an id, such as a path
        # the hub knows adapter, finetune, merge and quantized; none is for pruned, this one is nearest
        about |= {"base_model": parent} | ({"base_model_relation": "finetune"} if changed else {})
    about |= {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["ffn-fusion", form, *(["pruned"] if changed else [])],
        **more,
    }
    return f"---\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}---\n"


def _measured(quality: Quality | None, latency: Latency | None) -> list[str]:
    parts = []
    if quality:
        parts += ["## Quality\n", *([markdown(quality_grid(quality))] if quality.texts else [])]
        parts += [f"- {_plain(c.name)}: {_plain(c.meaning)}" for c in quality.controls]
        parts += [""] if quality.controls else []
        parts += [markdown(tasks_grid(quality.tasks))] if quality.tasks else []
    if latency:
        parts += ["## Latency\n", markdown(latency_grid(latency))]
    return parts


_LOADING = """## How to load it

With ffn-fusion installed:

```python
import ffn_fusion  # makes transformers know the architecture
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```

Without it, by the files of model code in this folder:

```python
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
```
"""
_LOADING_LLAMA = """## How to load it

As any Llama: it needs neither ffn-fusion nor code of its own.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```
"""


def _provenance(blueprint: Blueprint, version: str, licence: str | None) -> str:
    parent = blueprint.parent
    return f"""## Provenance

- parent: {_plain(parent.name)}
- revision: {_plain(parent.revision) if parent.revision else "unknown"}
- made by: ffn-fusion {_plain(version)}
- licence: {f"the parent's ({_plain(licence)})" if licence else "the parent's"}
"""
