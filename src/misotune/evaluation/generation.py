"""Batched greedy generation with transformers."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, StoppingCriteria

from misotune.errors import RunError, UsageError
from misotune.hub import require_model
from misotune.layout.template import ChatTemplate

DTYPES = ("auto", "bfloat16", "float32")
_BATCH_SIZE = {"cuda": 32, "cpu": 16}


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


@dataclass(frozen=True, slots=True)
class GenerationProgress:
    """How far generation is; `num_new_tokens` grows with every step, `num_done` with every batch."""

    num_done: int
    num_prompts: int
    num_new_tokens: int
    elapsed_s: float

    @property
    def tokens_per_s(self) -> float:
        """New tokens per second so far, over all prompts of a batch together."""
        return self.num_new_tokens / max(self.elapsed_s, 1e-9)


OnProgress = Callable[[GenerationProgress], None]


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How responses were generated, as kept with the scores."""

    max_new_tokens: int
    batch_size: int
    dtype: str
    device: str
    decoding: str = "greedy"


@dataclass(frozen=True, slots=True)
class GenerationAccount:
    """What generation took. `num_cut` responses reached `max_new_tokens` before they ended."""

    num_new_tokens: int
    elapsed_s: float
    tokens_per_s: float
    num_cut: int


@dataclass(frozen=True, slots=True)
class Generated:
    """The responses in the order of the prompts, and how they were made."""

    responses: list[str]
    settings: GenerationSettings
    account: GenerationAccount


def load_chat_model(path: str, *, dtype: str = "auto") -> ChatModel:
    """Returns the model of a folder or hub id in evaluation mode, on the GPU if there is one.

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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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


def generate_responses(
    chat_model: ChatModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int | None = None,
    on_progress: OnProgress | None = None,
) -> Generated:
    """Returns the model's greedy response to each prompt, one user turn in the model's own chat template.

    Batches hold prompts of like length, longest first, so that memory that is too small shows at once.

    Raises:
        RunError: The prompts do not fit the model's context, or a batch does not fit the memory.
    """
    batch_size = batch_size or _BATCH_SIZE[chat_model.device.type]
    template = ChatTemplate(chat_model.tokenizer)
    rendered = [template.encode([_user_turn(prompt)], add_generation_prompt=True) for prompt in prompts]
    _check_context(chat_model.model, max(map(len, rendered)), max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda i: -len(rendered[i]))
    meter = _Meter(chat_model.eos_ids, len(prompts), on_progress)
    responses = [""] * len(prompts)
    num_cut = 0
    with _greedy(chat_model, max_new_tokens):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            for i, new_ids in zip(batch, _generate_batch(chat_model, [rendered[i] for i in batch], meter), strict=True):
                text_ids = _before_eos(new_ids, chat_model.eos_ids)
                num_cut += len(text_ids) == max_new_tokens
                responses[i] = chat_model.tokenizer.decode(
                    text_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
            meter.finish(len(batch))
    dtype = str(chat_model.model.dtype).removeprefix("torch.")
    progress = meter.progress()
    return Generated(
        responses,
        GenerationSettings(max_new_tokens, batch_size, dtype, chat_model.device.type),
        GenerationAccount(
            progress.num_new_tokens, round(progress.elapsed_s, 2), round(progress.tokens_per_s, 1), num_cut
        ),
    )


class _Meter(StoppingCriteria):
    """Counts new tokens at every step; as a stopping criterion it never stops anything."""

    def __init__(self, eos_ids: Sequence[int], num_prompts: int, on_progress: OnProgress | None) -> None:
        self._eos_ids = torch.tensor(eos_ids)
        self._num_prompts = num_prompts
        self._on_progress = on_progress
        self._num_done = 0
        self._num_new_tokens = 0
        self._has_ended: Tensor | None = None
        self._start_s = time.perf_counter()

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        is_eos = torch.isin(input_ids[:, -1], self._eos_ids.to(input_ids.device))
        before = torch.zeros_like(is_eos) if self._has_ended is None else self._has_ended
        self._num_new_tokens += int((~before).sum())
        self._has_ended = before | is_eos
        self._report()
        return torch.zeros_like(is_eos)

    def finish(self, num_prompts: int) -> None:
        self._num_done += num_prompts
        self._has_ended = None
        self._report()

    def progress(self) -> GenerationProgress:
        elapsed_s = time.perf_counter() - self._start_s
        return GenerationProgress(self._num_done, self._num_prompts, self._num_new_tokens, elapsed_s)

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self.progress())


def _generate_batch(chat_model: ChatModel, prompts: Sequence[list[int]], meter: _Meter) -> list[list[int]]:
    """Returns the new ids of each prompt, padding included."""
    width = max(map(len, prompts))
    # The mask, not the id, says what is padding: an end-of-sequence id does where there is no pad token.
    pad_id = _pad_id(chat_model)
    input_ids = torch.tensor([[pad_id] * (width - len(ids)) + ids for ids in prompts], device=chat_model.device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=chat_model.device)
    try:
        with torch.inference_mode():
            output = chat_model.model.generate(input_ids, attention_mask=mask, stopping_criteria=[meter])
    except torch.OutOfMemoryError as error:
        smaller = max(1, len(prompts) // 2)
        raise RunError(f"no memory left with {len(prompts)} prompts at once; use --batch-size {smaller}") from error
    return output[:, width:].tolist()


def _user_turn(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _before_eos(ids: Sequence[int], eos_ids: Sequence[int]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in eos_ids), len(ids))
    return list(ids[:end])


def _pad_id(chat_model: ChatModel) -> int:
    pad_id = chat_model.tokenizer.pad_token_id
    return chat_model.eos_ids[0] if pad_id is None else pad_id


@contextlib.contextmanager
def _greedy(chat_model: ChatModel, max_new_tokens: int) -> Iterator[None]:
    """Replaces the model's generation config: one given to `generate` would inherit its penalties."""
    before = chat_model.model.generation_config
    chat_model.model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(chat_model.eos_ids),
        pad_token_id=_pad_id(chat_model),
    )
    try:
        yield
    finally:
        chat_model.model.generation_config = before


def _check_context(model: Any, longest_prompt: int, max_new_tokens: int) -> None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and longest_prompt + max_new_tokens > context:
        raise RunError(
            f"the longest prompt ({longest_prompt} tokens) and {max_new_tokens} new tokens exceed "
            f"the model's context of {context}; use --max-new-tokens {max(1, context - longest_prompt)}"
        )


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
