"""The card of an export that is not the end of a run: a step's checkpoint, an adapter, a model from elsewhere."""

import json
import platform
from importlib.metadata import version

from misotune.export.base import hub_id, read_license
from misotune.export.card import MARK, load_snippet
from misotune.export.reopening import Base

_PACKAGES = ("misotune", "torch", "transformers", "peft", "safetensors")


def short_card(name: str, title: str, base: Base | None, sentences: list[str], *, is_adapter: bool, recipe: str) -> str:
    """Returns the text of the export's README.md.

    Args:
        name: Of the checkpoint.
        title: What was exported.
        base: The model that it was trained from, as far as is known.
        sentences: What was proved.
        is_adapter: It is an adapter, to be put on the base model.
        recipe: The run's, as text; empty: it is of no run.
    """
    on_hub = hub_id(base.name) if base else None
    metadata = {
        **({"base_model": on_hub, "base_model_relation": "adapter" if is_adapter else "finetune"} if on_hub else {}),
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        **(read_license(base.name, base.revision) if base else {}),
        "tags": ["misotune", *(["lora"] if is_adapter else [])],
    }
    parts = [
        # JSON's values are YAML's.
        "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in metadata.items()) + "---",
        f"{MARK}\n# {name}",
        f"Exported from {title}" + (f"; its base model is {on_hub or f'`{base.name}`'}." if base else "."),
        f"```python\n{adapter_snippet(name, base) if is_adapter and base else load_snippet(name)}\n```",
        "## Proof\n\n" + "\n".join(f"- {sentence}" for sentence in sentences),
        "Versions: "
        + ", ".join(
            [f"{package} {version(package)}" for package in _PACKAGES] + [f"Python {platform.python_version()}"]
        )
        + ".",
    ]
    if recipe:
        parts.insert(4, f"## Recipe of the run\n\n```yaml\n{recipe.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def adapter_snippet(where: str, base: Base) -> str:
    """Returns the code that loads an adapter on its base model, for people to copy."""
    revision = f', revision="{base.revision}"' if base.revision else ""
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig\n"
        f'base = AutoModelForCausalLM.from_pretrained("{hub_id(base.name) or base.name}"{revision})\n'
        f'model = PeftModel.from_pretrained(base, "{where}")\n'
        f'model.generation_config = GenerationConfig.from_pretrained("{where}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{where}")'
    )
