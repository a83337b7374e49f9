"""Writing the plain checkpoint: weights, tokenizer, configuration, generation settings."""

import json
import shutil
from pathlib import Path
from typing import Any

from misotune.export.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

# Not part of a plain checkpoint: peft's card, the trainer's pickled settings, code.
_LEFT_OUT = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "README.md", "*.bin", "*.pt", "*.pth", "*.py")


def copy_checkpoint(final: Path, folder: Path) -> None:
    """Copies the files of a trained model, its weights to the bit; of an adapter, the tokenizer's."""
    shutil.copytree(final, folder, ignore=shutil.ignore_patterns(*_LEFT_OUT), dirs_exist_ok=True)


def save_merged(model: Any, folder: Path) -> None:
    """Writes a model that was put together in memory."""
    from transformers import GenerationConfig

    # Some published models have settings (temperature without sampling) that transformers loads and refuses
    # to save (transformers#29988): they are written as they are.
    settings = model.generation_config.to_diff_dict() if model.generation_config else {}
    model.generation_config = GenerationConfig()
    model.save_pretrained(folder)
    _write_json(folder / GENERATION_CONFIG, settings)


def tidy_configuration(folder: Path, end_of_turn_id: int) -> None:
    """Makes the configuration one for inference: cache on, stock attention, stops at the turn's end."""
    config = _read_json(folder / CONFIG)
    for key in ("_attn_implementation", "attn_implementation", "_attn_implementation_internal"):
        config.pop(key, None)
    _write_json(folder / CONFIG, {**config, "use_cache": True})
    settings = _read_json(folder / GENERATION_CONFIG) if (folder / GENERATION_CONFIG).is_file() else {}
    known = settings.get("eos_token_id", config.get("eos_token_id"))
    ids = [known] if isinstance(known, int) else list(known or [])
    if end_of_turn_id not in ids:
        ids.append(end_of_turn_id)
    settings["eos_token_id"] = ids[0] if len(ids) == 1 else ids
    settings.pop("use_cache", None)
    _write_json(folder / GENERATION_CONFIG, settings)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
