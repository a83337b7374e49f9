"""lm-eval's model over a backend that generates texts, such as a chat server."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from misotune.errors import UsageError
from misotune.evaluation.backends.base import Backend, GenerationAccount, OnProgress, generate_responses
from misotune.layout.template import Message

# lm-eval's own, of a task that names none.
_MAX_NEW_TOKENS = 256


class ServedLM(LM):
    """What lm-eval asks, answered by a backend, which keeps the responses itself.

    lm-eval has a class for servers too; with this one, a server is asked, and its failures are met and told, as for
    every other task. Texts are cut where the task wants it when they are there: greedy ones are the same up to there.

    Args:
        backend: What answers.
        cache: A file for the responses.
        on_progress: Called as responses come.

    Attributes:
        turns: The turns of each conversation, by the text that stands for it.
    """

    def __init__(self, backend: Backend, cache: Path, on_progress: OnProgress | None = None) -> None:
        super().__init__()
        self._backend = backend
        self._cache = cache
        self._on_progress = on_progress
        self._settings: dict[str, Any] = {}
        self._accounts: list[GenerationAccount] = []
        self.turns: dict[str, Sequence[Message]] = {}

    @property
    def tokenizer_name(self) -> str:
        """The server has the tokenizer."""
        return ""

    def settings(self) -> dict[str, Any]:
        """Returns how responses are made, as kept with the scores."""
        return {name: value for name, value in self._settings.items() if name != "max_new_tokens"}

    def notes(self) -> list[str]:
        """Returns what a reader of the scores must know."""
        return []

    def account(self) -> GenerationAccount:
        """Returns what answering took."""
        if len(self._accounts) == 1:
            return self._accounts[0]
        return GenerationAccount(
            None,
            None,
            sum(account.num_kept for account in self._accounts),
            round(sum(account.elapsed_s for account in self._accounts), 2),
            None,
        )

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns a text that stands for the conversation: the server renders it.

        Raises:
            UsageError: The conversation ends with the beginning of a response.
        """
        if not add_generation_prompt:
            raise UsageError("this task begins the model's response itself, which a chat server may not take up")
        text = json.dumps(chat_history, ensure_ascii=False)
        self.turns[text] = chat_history
        return text

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Returns the greedy responses, up to where the task cuts them."""
        wanted: defaultdict[int, list[int]] = defaultdict(list)
        kwargs = [normalize_gen_kwargs(request.args[1], _MAX_NEW_TOKENS) for request in requests]
        for index, entry in enumerate(kwargs):
            wanted[int(entry.get("max_gen_toks", _MAX_NEW_TOKENS))].append(index)
        texts = [""] * len(requests)
        for max_new_tokens, indices in wanted.items():
            generated = generate_responses(
                self._backend,
                [self.turns[requests[index].args[0]] for index in indices],
                max_new_tokens=max_new_tokens,
                cache=self._cache,
                on_progress=self._on_progress,
            )
            self._settings = generated.settings
            self._accounts.append(generated.account)
            for index, text in zip(indices, generated.responses, strict=True):
                texts[index] = postprocess_generated_text(text, kwargs[index].get("until"), None)
        return texts

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        """Raises UsageError: a chat server tells no probabilities of given texts."""
        raise UsageError("a chat server does not tell the probabilities of given answers; leave out --endpoint")

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        """Raises UsageError, as `loglikelihood`."""
        return self.loglikelihood(requests)


def account_of(lm: Any) -> dict[str, Any]:
    """Returns what answering took, as kept with the scores."""
    return asdict(lm.account() if isinstance(lm, ServedLM) else lm.kept.account())
