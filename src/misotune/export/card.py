"""The model card: what was trained from what, on what, and how well it does, for people and for the hub."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from misotune.export.adapter import MergeProof
from misotune.export.base import hub_id, read_license
from misotune.export.card_scores import scores_section
from misotune.export.card_tables import pairs_table
from misotune.export.proof import Proof
from misotune.export.sentences import proof_sentences
from misotune.recipe.schema import Recipe
from misotune.runs import RunFolder

MARK = "<!-- exported by misotune -->"

_PACKAGES = ("misotune", "torch", "transformers", "peft", "safetensors")
_MODES = {
    "para": "parallel inputs (MISO-para): each input attends to itself alone, and the response to all of them",
    "succ": "successive inputs (MISO-succ): the instruction in chunks, and the response attends to all",
    "sft": "plain supervised fine-tuning, the baseline",
    "flat": "every pair of an input and the response as a sample of its own, without MISO attention",
}

# What the plan says of how the loss comes about, by its name in the card.
_PLANNED = {
    "trains": "trains",
    "engine": "engine",
    "weighting": "weighting",
    "weights by role": "weights",
    "positions": "positions",
    "loss taken as": "loss",
}

_CARD = """\
---
{metadata}---

{mark}
# {name}

{base}, fine-tuned with misotune to follow instructions with several constraints.
Training used Multi-Input Single-Output attention; inference does not: this is a plain Hugging Face checkpoint,
and standard inference needs no misotune.

```python
{snippet}
```

## Training

{training}

{figures}

## Data

{data}

## Scores

{scores}

## Recipe

With this as `recipe.yaml` and the dataset prepared, `misotune train recipe.yaml` trains it again.

```yaml
{recipe}```

## Proof

{proof}

Versions: {versions}.
"""


def load_snippet(where: str) -> str:
    """Returns the code that loads the checkpoint, for people to copy."""
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f'model = AutoModelForCausalLM.from_pretrained("{where}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{where}")'
    )


def model_card(name: str, run: RunFolder, recipe: Recipe, proof: Proof, merge: MergeProof | None) -> str:
    """Returns the text of the checkpoint's README.md.

    Args:
        name: Of the checkpoint.
        run: Where plan, metrics and scores lie.
        recipe: The run's.
        proof: The checkpoint's.
        merge: The merged adapter's.
    """
    base = recipe.model.name
    on_hub = hub_id(base)
    plan = run.read_plan() if run.plan.is_file() else {}
    adapter = f", LoRA of rank {recipe.lora.rank} merged into the weights" if recipe.lora else ""
    return _CARD.format(
        metadata=yaml.safe_dump(_metadata(recipe), sort_keys=False, allow_unicode=True),
        mark=MARK,
        name=name,
        base=f"[{on_hub}](https://huggingface.co/{on_hub})" if on_hub else f"`{base}`",
        snippet=load_snippet(name),
        training=f"Mode `{recipe.miso.mode}`: {_MODES[recipe.miso.mode]}. {recipe.train.precision}{adapter}.",
        figures=pairs_table(_training_figures(run, plan)),
        data=pairs_table(_data_account(recipe, plan)),
        scores=scores_section(run),
        recipe=yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True),
        proof="\n".join(f"- {line}" for line in proof_sentences(proof, merge)),
        versions=", ".join(
            [f"{package} {version(package)}" for package in _PACKAGES] + [f"Python {platform.python_version()}"]
        ),
    )


def _metadata(recipe: Recipe) -> dict[str, Any]:
    base = recipe.model.name
    on_hub = hub_id(base)
    tags = ["misotune", "instruction-following", *(["lora"] if recipe.lora else [])]
    return {
        **({"base_model": on_hub, "base_model_relation": "finetune"} if on_hub else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **read_license(base, recipe.model.revision),
        "tags": tags,
    }


def _training_figures(run: RunFolder, plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        (what, f"{plan[key]:,}")
        for what, key in (("tokens", "tokens"), ("tokens in the loss", "trained_tokens"))
        if key in plan
    ]
    rows += [(what, _told(plan[key])) for what, key in _PLANNED.items() if plan.get(key)]
    metrics = [json.loads(line) for line in _lines(run.metrics)]
    if metrics:
        first, last = metrics[0], metrics[-1]
        rows = [
            ("steps", f"{last['step']:,}"),
            ("epochs", f"{last['epoch']:.2f}"),
            ("loss at the first logged step", f"{first['loss']:.4f}"),
            ("loss at the last", f"{last['loss']:.4f}"),
            *rows,
        ]
    return rows


def _told(value: Any) -> str:
    """Returns a value of the plan; of shares by role, each with its role."""
    return ", ".join(f"{role} {share:g}" for role, share in value.items()) if isinstance(value, dict) else str(value)


def _data_account(recipe: Recipe, plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("dataset", f"`{recipe.data.path}`")]
    manifest_file = Path(recipe.data.path) / "manifest.json"
    if manifest_file.is_file():
        manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
        source, account = manifest["source"], manifest["account"]
        rows += [("source", f"`{source['name']}`"), ("prepared for", f"mode {manifest['mode']}")]
        rows += [(f"{key} by prepare", f"{account[key]:,}") for key in ("read", "kept")]
        rows += [(f"dropped by prepare: {reason}", f"{n:,}") for reason, n in account["dropped"].items()]
        rows += [("SHA-256 of the rows", f"`{manifest['data_sha256']}`")]
    if "data" in plan:
        data = plan["data"]
        rows += [("samples", f"{data['samples']:,}"), ("samples cut", f"{data['cut']:,}")]
        rows += [(f"dropped by training: {why}", f"{what['samples']:,}") for why, what in data["dropped"].items()]
    return rows


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
