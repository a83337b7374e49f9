"""Conversations on the way to their responses: rendered, looked for in the cache, and the rest taken in batches."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from misotune.attention.steering import SteeredPrompts, Steering
from misotune.errors import RunError
from misotune.evaluation.backends.base import Conversation, Listener, Response
from misotune.evaluation.backends.chat_model import ModelFacts
from misotune.evaluation.backends.response_cache import ResponseCache, model_identity, response_key
from misotune.layout.template import ChatTemplate
from misotune.layout.user_tokens import MessageTokens

# All of IFEval on SmolLM2-135M takes 11 minutes on two cores with it; by a model of its costs 8 % more with 64 rows.
BATCH_SIZE = 128
# Tokens, those to come included, of a batch whose size is not given: 4 GiB of keys and values for a model of 1B.
_BATCH_TOKENS = 2**17
# Padding tokens of a row, there too, where they are more than its own: one long prompt would make all others wide.
_PADDING = 64


def render(tokenizer: Any, conversations: Sequence[Conversation]) -> list[list[int]]:
    """Returns the token ids that the model reads: those of training."""
    template = ChatTemplate(tokenizer)
    return [template.encode(messages, add_generation_prompt=True) for messages in conversations]


def render_steered(
    tokenizer: Any, conversations: Sequence[Conversation], steering: Steering | None
) -> tuple[list[list[int]], SteeredPrompts | None]:
    """Returns the token ids that the model reads, and which of them are the user's; None where it is not steered.

    Raises:
        LayoutError: The chat template does not hold the user's text as it is.
        UsageError: The tokenizer cannot say where its tokens lie in a text.
    """
    if steering is None:
        return render(tokenizer, conversations), None
    tokens = MessageTokens(ChatTemplate(tokenizer))
    found = [tokens.find_users(messages, add_generation_prompt=True) for messages in conversations]
    return [ids for ids, _ in found], SteeredPrompts(steering, [is_user for _, is_user in found])


def check_context(prompts: Sequence[Sequence[int]], max_new_tokens: int, context: int | None) -> None:
    """Makes sure that every prompt and its response fit the model's context.

    Raises:
        RunError: One does not; says what would.
    """
    longest = max(map(len, prompts))
    if context is not None and longest + max_new_tokens > context:
        raise RunError(
            f"the longest prompt ({longest} tokens) and {max_new_tokens} new tokens exceed "
            f"the model's context of {context}; use --max-new-tokens {max(1, context - longest)}"
        )


def response_keys(
    prompts: Sequence[list[int]], max_new_tokens: int, facts: ModelFacts, steered: SteeredPrompts | None = None
) -> list[str]:
    """Returns what each response is kept under: neither batches nor processes have a part in it."""
    identity = model_identity(facts.name, facts.commit)
    versions = [version("torch"), version("transformers")]
    settings = [max_new_tokens, facts.dtype, facts.device, list(facts.eos_ids), versions]
    if steered is None:
        return [response_key(identity, ids, *settings) for ids in prompts]
    settings.append(steered.steering.settings)
    pairs = zip(prompts, steered.user_tokens, strict=True)
    return [response_key(identity, ids, *settings, is_user) for ids, is_user in pairs]


class PromptQueue:
    """The prompts that wait for a batch, longest first, and the one place where a response is kept and told.

    Args:
        prompts: Token ids, as `render` returned them.
        max_new_tokens: The longest response.
        facts: Of the model.
        tokenizer: The model's.
        cache: Keeps the responses; those that it has are told to the listener here.
        listener: Hears of every response once.
        steered: Which tokens of the prompts are the user's, and how the model is steered by them; None: it is not.
    """

    def __init__(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        *,
        facts: ModelFacts,
        tokenizer: Any,
        cache: ResponseCache,
        listener: Listener,
        steered: SteeredPrompts | None = None,
    ) -> None:
        self._prompts = prompts
        self._steered = steered
        self._max_new_tokens = max_new_tokens
        self._eos_ids = facts.eos_ids
        self._tokenizer = tokenizer
        self._cache = cache
        self._listener = listener
        self._keys = response_keys(prompts, max_new_tokens, facts, steered)
        kept = {index: cache.get(key) for index, key in enumerate(self._keys)}
        listener.on_kept({index: response for index, response in kept.items() if response is not None})
        self._missing = {index for index, response in kept.items() if response is None}
        self._waiting = self._longest_first(self._missing)

    def __len__(self) -> int:
        """Prompts that wait; not those of a batch under way."""
        return len(self._waiting)

    def take(self, most: int, *, is_size_free: bool) -> list[int]:
        """Returns the next batch, indices of prompts; empty when none wait.

        Args:
            most: The largest batch.
            is_size_free: Take fewer where they are long, or unlike.
        """
        number = min(most, self._num_good_rows()) if is_size_free else most
        batch, self._waiting = self._waiting[:number], self._waiting[number:]
        return batch

    def give_back(self, batch: Sequence[int]) -> None:
        """Lets those of a batch wait again that have no response."""
        self._waiting = self._longest_first([*self._waiting, *(index for index in batch if index in self._missing)])

    def ids(self, batch: Sequence[int]) -> list[list[int]]:
        """Returns the token ids of a batch's prompts."""
        return [self._prompts[index] for index in batch]

    def steered(self, batch: Sequence[int]) -> SteeredPrompts | None:
        """Returns which tokens of a batch's prompts are the user's; None where the model is not steered."""
        whole = self._steered
        return None if whole is None else SteeredPrompts(whole.steering, [whole.user_tokens[index] for index in batch])

    def answer(self, index: int, new_ids: Sequence[int]) -> None:
        """Keeps a response, and tells the listener of it.

        Args:
            index: The prompt's.
            new_ids: The response, the id that ends it included.

        Raises:
            RunError: It cannot be kept.
        """
        is_cut = new_ids[-1] not in self._eos_ids
        text = self._tokenizer.decode(
            new_ids if is_cut else new_ids[:-1], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        response = Response(text, len(new_ids), is_cut)
        self._cache.put(self._keys[index], response)
        self._missing.discard(index)
        self._listener.on_response(index, response)

    def _longest_first(self, indices: Sequence[int] | set[int]) -> list[int]:
        return sorted(indices, key=lambda index: (-len(self._prompts[index]), index))

    def _num_good_rows(self) -> int:
        """Returns how many of the next prompts are one batch, for their lengths."""
        lengths = [len(self._prompts[index]) for index in self._waiting]
        longest = max(lengths, default=0)
        num_alike = sum(longest - length <= max(_PADDING, length) for length in lengths)
        return max(1, min(num_alike, _BATCH_TOKENS // (longest + self._max_new_tokens)))
