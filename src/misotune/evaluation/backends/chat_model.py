"""A chat model in this process: loading it, with its tokenizer and the ids that end a response."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from misotune.errors import RunError, UsageError
from misotune.hub import require_model
from misotune.layout.template import ChatTemplate

DTYPES = ("auto", "bfloat16", "float32")


@dataclass(frozen=True, slots=True)
class ChatModel:
    """A model in memory, with its tokenizer and the ids that end a response."""

    name: str
    model: Any
    tokenizer: Any
    eos_ids: tuple[int, ...]

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return self.model.device

    @property
    def dtype(self) -> str:
        """The weights' type, such as `bfloat16`."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def pad_id(self) -> int:
        """What fills a batch; the mask, not the id, says what is padding."""
        pad_id = self.tokenizer.pad_token_id
        return self.eos_ids[0] if pad_id is None else pad_id


def load_chat_model(path: str, *, dtype: str = "auto") -> ChatModel:
    """Returns the model of a folder or hub id in evaluation mode, on the accelerator if there is one.

    A LoRA adapter's folder is loaded with its base model, which the adapter names.

    Args:
        path: A folder with a model or an adapter, or a hub id.
        dtype: `bfloat16`, `float32`, or `auto`: as the weights are stored (float16 on a CPU: float32).

    Raises:
        UsageError: `dtype` is not one of these.
        RunError: The model or its tokenizer cannot be loaded, or has no chat template.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    require_model(path)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        with _no_progress_bars():
            tokenizer = AutoTokenizer.from_pretrained(_tokenizer_path(path))
            model: Any = AutoModelForCausalLM.from_pretrained(
                path, dtype="auto" if dtype == "auto" else getattr(torch, dtype)
            )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        what = "the folder's model" if Path(path).is_dir() else "no such folder, and the hub's model"
        raise RunError(f"{path}: {what} cannot be loaded: {reason}") from error
    if not getattr(tokenizer, "chat_template", None):
        raise RunError(
            f"{path}: its tokenizer has no chat template; evaluate a chat model, or a trained run of this one"
        )
    if device.type == "cpu" and model.dtype == torch.float16:
        model = model.float()
    eos_ids = ChatTemplate(tokenizer).end_ids(model.generation_config.eos_token_id, tokenizer.eos_token_id)
    if not eos_ids:
        raise RunError(f"{path}: neither its generation config nor its tokenizer names an end-of-sequence token")
    return ChatModel(path, model.to(device).eval(), tokenizer, eos_ids)


def _tokenizer_path(path: str) -> str:
    """Returns the folder itself, or the base model of an adapter that was saved without a tokenizer."""
    folder = Path(path)
    adapter = folder / "adapter_config.json"
    if not adapter.is_file() or (folder / "tokenizer_config.json").is_file():
        return path
    return json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keeps transformers' bar for loading weights off the terminal."""
    was_enabled = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers.utils.logging.enable_progress_bar()
