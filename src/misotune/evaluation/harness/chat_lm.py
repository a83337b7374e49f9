"""lm-eval's model over a chat model in this process: its ids are those of training, its answers are kept."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import GenerationConfig

from misotune.errors import LayoutError, RunError
from misotune.evaluation.backends.base import OnProgress
from misotune.evaluation.backends.chat_model import ChatModel
from misotune.evaluation.backends.response_cache import ResponseCache, model_identity
from misotune.evaluation.harness.kept import KeptAnswers
from misotune.layout.pieces import PieceTokenizer
from misotune.layout.template import ChatTemplate, Message

# lm-eval holds the logits of a whole batch twice, in float32: 8 rows of 1,000 tokens are 3 GiB for 50,000 words.
BATCH_SIZE = 8
_HFLM: Any = HFLM  # its decorator hides its type


class ChatLM(_HFLM):
    """What lm-eval asks, answered by a chat model.

    It differs from lm-eval's own class in this: the chat template alone decides about BOS, so that there are never
    two; the ids that end a response are those of `ChatModel`, which a tuned base model's generation config may not
    have; generation is greedy without the penalties of the model's generation config; and nothing is cut without
    being counted.

    Args:
        chat_model: The model.
        cache: Where its answers are kept.
        batch_size: Prompts at once; None: 8.
        on_progress: Called with every answer.

    Attributes:
        turns: The turns of each rendered conversation.
        num_truncated: Prompts that were too long for the model, whose beginning it did not read.
        has_dropped_system: The template refused the system's turn, and it was left out.
    """

    def __init__(
        self,
        chat_model: ChatModel,
        cache: ResponseCache,
        *,
        batch_size: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        # A string would be loaded; a model is taken as it is.
        super().__init__(
            pretrained=chat_model.model,
            tokenizer=chat_model.tokenizer,
            backend="causal",
            batch_size=batch_size or BATCH_SIZE,
        )
        self._chat_model = chat_model
        self._template = ChatTemplate(chat_model.tokenizer)
        self._ids_of = PieceTokenizer(chat_model.tokenizer)
        commit = getattr(chat_model.model.config, "_commit_hash", None)
        versions = [version(package) for package in ("torch", "transformers", "lm-eval")]
        settings = [chat_model.dtype, chat_model.device.type, list(chat_model.eos_ids), versions]
        self._kept = KeptAnswers(cache, [model_identity(chat_model.name, commit), *settings], on_progress)
        self._ends: deque[tuple[int, bool]] = deque()
        self.cache_hook: Any = self
        self.turns: dict[str, Sequence[Message]] = {}
        self.num_truncated = 0
        self.has_dropped_system = False

    @property
    def kept(self) -> KeptAnswers:
        """The answers, and what they took."""
        return self._kept

    def settings(self) -> dict[str, Any]:
        """Returns how responses are made, as kept with the scores."""
        return {
            "backend": "hf",
            "batch_size": self.batch_size_per_gpu,
            "dtype": self._chat_model.dtype,
            "device": self._chat_model.device.type,
            "decoding": "greedy",
        }

    def notes(self) -> list[str]:
        """Returns what a reader of the scores must know."""
        notes: list[str] = []
        if self.has_dropped_system:
            notes.append("the chat template refuses a system's turn; the task's description was left out")
        if self.num_truncated:
            notes.append(
                f"{self.num_truncated} prompts are too long for the model's {self.max_length} tokens; it did not read "
                "their beginning"
            )
        return notes

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns the conversation as the model reads it; without the system's turn where the template refuses it.

        Raises:
            LayoutError: The template refuses the conversation.
        """
        try:
            text = self._render(chat_history, add_generation_prompt)
        except LayoutError:
            without = [message for message in chat_history if message["role"] != "system"]
            if len(without) == len(chat_history):
                raise
            text = self._render(without, add_generation_prompt)
            self.has_dropped_system = True
        self.turns[text] = chat_history
        return text

    def _render(self, chat_history: list[dict[str, str]], add_generation_prompt: bool) -> str:
        if add_generation_prompt:
            return self._template.render(chat_history, add_generation_prompt=True)
        try:  # the task begins the response, and the model goes on
            return self.tokenizer.apply_chat_template(chat_history, tokenize=False, continue_final_message=True)
        except Exception as error:
            raise LayoutError(f"the chat template refuses the conversation: {error}") from error

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **_: Any
    ) -> list[int]:
        """Returns a text's ids and no others: what a conversation begins with, the template has put there."""
        ids = self._ids_of(string)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the ids of texts, filled up on the left, and the mask of what is no filling."""
        rows = [self.tok_encode(string) for string in strings]
        if left_truncate_len:
            self.num_truncated += sum(len(row) > left_truncate_len for row in rows)
            rows = [row[-left_truncate_len:] for row in rows]
        width = max(map(len, rows))
        pad_id = self._chat_model.pad_id
        input_ids = [[pad_id] * (width - len(row)) + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(input_ids), torch.tensor(mask)

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
        """Returns the text of a response, up to the id that ends it."""
        ids = [tokens] if isinstance(tokens, int) else list(tokens)
        if skip_special_tokens:
            ids = ids[: _end(ids, self._chat_model.eos_ids)]
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **kwargs: Any) -> torch.Tensor:
        model, eos_ids = self._chat_model.model, self._chat_model.eos_ids
        own = model.generation_config
        # Put in the place of the model's own, whose penalties and end ids `generate` would inherit.
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=list(eos_ids), pad_token_id=self._chat_model.pad_id
        )
        try:
            with torch.inference_mode():
                found = super()._model_generate(context, max_length, stop, **kwargs)
        finally:
            model.generation_config = own
        for row in found[:, context.shape[1] :].tolist():
            end = _end(row, eos_ids)
            text = self.tokenizer.decode(row[:end])
            is_ended = end < len(row) or any(term in text for term in stop if term)
            self._ends.append((min(end + 1, len(row)), not is_ended))
        return found

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None) -> Any:
        # Of a whole text, read in windows, none is cut: its request is no pair.
        self.num_truncated += sum(
            len(context) + len(continuation) > self.max_length + 1
            for text, context, continuation in requests
            if text is not None
        )
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Returns the greedy responses.

        Raises:
            RunError: The responses may be longer than what the model reads.
        """
        longest = max(int(normalize_gen_kwargs(request.args[1]).get("max_gen_toks", 0)) for request in requests)
        if longest >= self.max_length:
            raise RunError(
                f"responses of {longest} tokens leave no room for a prompt in the model's context of "
                f"{self.max_length}; lower --max-new-tokens"
            )
        return self._answer("generate_until", requests, super().generate_until)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Returns the logarithm of each continuation's probability, and whether it is the greedy one."""
        pairs = self._answer("loglikelihood", requests, super().loglikelihood)
        return [(value, is_greedy) for value, is_greedy in pairs]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Returns the logarithm of each text's probability."""
        return self._answer("loglikelihood_rolling", requests, super().loglikelihood_rolling)

    def add_partial(self, kind: str, args: Iterable[Any], answer: Any) -> None:
        """Keeps an answer; lm-eval calls this, as its cache hook, with each."""
        num_tokens, is_cut = self._ends.popleft() if kind == "generate_until" else (None, None)
        self._kept.add(kind, tuple(args), answer, num_tokens, is_cut)

    def _answer(self, kind: str, requests: Sequence[Any], ask: Callable[..., list[Any]]) -> list[Any]:
        while missing := self._kept.missing(kind, requests):
            self._ends.clear()
            try:
                answers = ask(missing, disable_tqdm=True)
            except torch.OutOfMemoryError as error:
                if self.batch_size_per_gpu == 1:
                    raise RunError(
                        "the accelerator's memory does not hold one prompt of this task; lower --max-new-tokens or "
                        "--num-fewshot"
                    ) from error
                self.batch_size_per_gpu //= 2
            else:
                for request, answer in zip(missing, answers, strict=True):  # most of them are kept since they came
                    self._kept.add(kind, request.args, answer, None, None)
        return [self._kept.answer(kind, request) for request in requests]


def _end(ids: Sequence[int], eos_ids: Sequence[int]) -> int:
    """Returns the index of the first id that ends a response, or the number of ids."""
    return next((index for index, token in enumerate(ids) if token in eos_ids), len(ids))
