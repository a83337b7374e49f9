"""Writing the plain checkpoint: weights, tokenizer, configuration, generation settings; never code."""

import json
import shutil
from pathlib import Path
from typing import Any

from misotune.export.source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG

GENERATION_CONFIG = "generation_config.json"

# Of a checkpoint's files beside its weights: tokenizer, configurations and licence. All else stays: code (*.py),
# pickles (*.bin, *.pt), the trainer's state, weights in other frameworks' formats.
_KINDS = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "LICENSE*", "NOTICE*", "USE_POLICY*")
_LEFT_OUT = (ADAPTER_CONFIG, "manifest.json", "trainer_state.json", "misotune_export.json", "*.index.json", "*.py")
_TEMPLATES = "additional_chat_templates"


def copy_weights(folder: Path, out: Path) -> None:
    """Copies a model's weight files, to the bit."""
    for path in [*folder.glob("model*.safetensors"), *folder.glob("model.safetensors.index.json")]:
        shutil.copyfile(path, out / path.name)


def copy_adapter(folder: Path, out: Path) -> None:
    """Copies an adapter's two files, to the bit."""
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        shutil.copyfile(folder / name, out / name)


def copy_companions(folder: Path, out: Path) -> None:
    """Copies what belongs to a model beside its weights; what is there already stays."""
    for pattern in _KINDS:
        for path in folder.glob(pattern):
            is_wanted = path.is_file() and not any(path.match(name) for name in _LEFT_OUT)
            if is_wanted and not (out / path.name).exists():
                shutil.copyfile(path, out / path.name)
    if (folder / _TEMPLATES).is_dir():
        shutil.copytree(folder / _TEMPLATES, out / _TEMPLATES, ignore=shutil.ignore_patterns("*.py"))


def save_model(model: Any, out: Path, max_shard_size: int) -> None:
    """Writes a model that was put together in memory, and its configurations."""
    from transformers import GenerationConfig

    # Some published models have settings (temperature without sampling) that transformers loads and refuses
    # to save (transformers#29988): they are written as they are.
    settings = model.generation_config.to_diff_dict() if model.generation_config else {}
    model.generation_config = GenerationConfig()
    model.save_pretrained(out, max_shard_size=max_shard_size)
    _write_json(out / GENERATION_CONFIG, settings)
    for path in out.glob("*.py"):
        path.unlink()


def tidy_configuration(out: Path, end_of_turn_id: int, dtype: str | None = None) -> None:
    """Makes the configuration one for inference: cache on, stock attention and code, stops at the turn's end.

    Args:
        out: The checkpoint.
        end_of_turn_id: The token that ends a response.
        dtype: The weights' format, where it was changed.
    """
    for path in out.glob("*.json"):
        content = _read_json(path)
        # It names code to be fetched and run in the place of transformers' own.
        if isinstance(content, dict) and content.pop("auto_map", None) is not None:
            _write_json(path, content)
    config: dict[str, Any] = {}
    if (out / CONFIG).is_file():
        config = _read_json(out / CONFIG)
        for key in ("_attn_implementation", "attn_implementation", "_attn_implementation_internal"):
            config.pop(key, None)
        if dtype is not None:
            _set_dtype(config, dtype)
        _write_json(out / CONFIG, {**config, "use_cache": True})
    settings = _read_json(out / GENERATION_CONFIG) if (out / GENERATION_CONFIG).is_file() else {}
    known = settings.get("eos_token_id", config.get("eos_token_id"))
    ids = [known] if isinstance(known, int) else list(known or [])
    if end_of_turn_id not in ids:
        ids.append(end_of_turn_id)
    settings["eos_token_id"] = ids[0] if len(ids) == 1 else ids
    settings.pop("use_cache", None)
    _write_json(out / GENERATION_CONFIG, settings)


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Sets the format of the weights, also in the parts of a composed configuration."""
    if config.pop("torch_dtype", None) is not None or "dtype" in config or "model_type" in config:
        config["dtype"] = dtype
    for part in config.values():
        if isinstance(part, dict) and ("dtype" in part or "torch_dtype" in part):
            _set_dtype(part, dtype)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
