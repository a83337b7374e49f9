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
class ModelFacts:
    """What has to be known of a model where it is not in memory; another process can be told it.

    Attributes:
        name: The folder or hub id that it was loaded from.
        commit: The hub's, where it is known.
        dtype: The weights' type, such as `bfloat16`.
        device: The kind of device, such as `cuda`.
        eos_ids: Each ends a response.
        context: The most tokens that prompt and response may have together; None: not known.
    """

    name: str
    commit: str | None
    dtype: str
    device: str
    eos_ids: tuple[int, ...]
    context: int | None


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

    @property
    def facts(self) -> ModelFacts:
        """What has to be known of it elsewhere."""
        config = self.model.config
        context = getattr(config.get_text_config(), "max_position_embeddings", None)
        commit = getattr(config, "_commit_hash", None)
        return ModelFacts(self.name, commit, self.dtype, self.device.type, self.eos_ids, context)


def load_chat_model(
    path: str,
    *,
    dtype: str = "auto",
    device: torch.device | str | None = None,
    revision: str | None = None,
    tokenizer: str | None = None,
) -> ChatModel:
    """Returns the model of a folder or hub id in evaluation mode.

    A LoRA adapter's folder is loaded with its base model, which the adapter names.

    Args:
        path: A folder with a model or an adapter, or a hub id.
        dtype: `bfloat16`, `float32`, or `auto`: as the weights are stored (float16 on a CPU: float32).
        device: Where to; None: on the accelerator, if there is one.
        revision: Branch, tag or commit on the hub; None: the newest.
        tokenizer: The folder that its tokenizer and chat template are loaded from; None: `path`.

    Raises:
        UsageError: `dtype` is not one of these, or there is no such model.
        RunError: The model or its tokenizer cannot be loaded, or has no chat template, or the device's memory does
            not hold it.
    """
    check_dtype(dtype)
    device = torch.device(device or torch.accelerator.current_accelerator(check_available=True) or "cpu")
    require_model(path, revision)
    loaded = load_chat_tokenizer(tokenizer or path, None if tokenizer else revision)
    with _loading(path):
        options = {"dtype": "auto" if dtype == "auto" else getattr(torch, dtype)}
        rows = _adapter_rows(path)
        if rows:
            model: Any = _load_with_rows(path, rows, **options)
        else:
            model = AutoModelForCausalLM.from_pretrained(path, **options, **_at(revision))
    if device.type == "cpu" and model.dtype == torch.float16:
        model = model.float()
    eos_ids = ChatTemplate(loaded).end_ids(model.generation_config.eos_token_id, loaded.eos_token_id)
    if not eos_ids:
        raise RunError(f"{path}: neither its generation config nor its tokenizer names an end-of-sequence token")
    try:
        return ChatModel(path, model.to(device).eval(), loaded, eos_ids)
    except torch.OutOfMemoryError as error:
        raise RunError(f"{path}: the memory of {device} does not hold the model; free it, or use another") from error


def load_chat_tokenizer(path: str, revision: str | None = None) -> Any:
    """Returns the tokenizer of a folder or hub id, without its model.

    Args:
        path: A folder with a model or an adapter, or a hub id.
        revision: Branch, tag or commit on the hub; None: the newest.

    Raises:
        UsageError: There is no such model.
        RunError: The tokenizer cannot be loaded, or has no chat template.
    """
    require_model(path, revision)
    with _loading(path):
        tokenizer = AutoTokenizer.from_pretrained(_tokenizer_path(path), **_at(revision))
    if not getattr(tokenizer, "chat_template", None):
        raise RunError(f"{path}: its tokenizer has no chat template; name a chat model, or a trained run of this one")
    return tokenizer


def check_dtype(dtype: str) -> None:
    """Makes sure that a model can be loaded as `dtype`.

    Raises:
        UsageError: It is not one of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")


@contextlib.contextmanager
def _loading(path: str) -> Iterator[None]:
    """Makes what transformers raises one line, and keeps its bar for weights off the terminal."""
    try:
        with _no_progress_bars():
            yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        what = "the folder's model" if Path(path).is_dir() else "no such folder, and the hub's model"
        raise RunError(f"{path}: {what} cannot be loaded: {reason}") from error


def _at(revision: str | None) -> dict[str, str]:
    return {} if revision is None else {"revision": revision}


def _tokenizer_path(path: str) -> str:
    """Returns the folder itself, or the base model of an adapter that was saved without a tokenizer."""
    folder = Path(path)
    adapter = folder / "adapter_config.json"
    if not adapter.is_file() or (folder / "tokenizer_config.json").is_file():
        return path
    return json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]


def _adapter_rows(path: str) -> list[int]:
    """Returns the rows of the embeddings that an adapter brings along: those of tokens that training added."""
    config = Path(path) / "adapter_config.json"
    rows = json.loads(config.read_text(encoding="utf-8")).get("trainable_token_indices") if config.is_file() else None
    return [row for found in rows.values() for row in found] if isinstance(rows, dict) else []


def _load_with_rows(path: str, rows: list[int], **options: Any) -> Any:
    """Returns the base model of an adapter with its rows; transformers makes no room for them by itself."""
    config = json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8"))
    model: Any = AutoModelForCausalLM.from_pretrained(
        config["base_model_name_or_path"], revision=config.get("revision") or "main", **options
    )
    if max(rows) >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(max(rows) + 1, mean_resizing=False)
    verbosity = transformers.utils.logging.get_verbosity()
    # It reports the output head's row as missing where that is the embeddings' own.
    transformers.utils.logging.set_verbosity_error()
    try:
        model.load_adapter(path)
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    return model


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    was_enabled = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers.utils.logging.enable_progress_bar()
