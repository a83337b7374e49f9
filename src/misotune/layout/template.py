"""The model's own chat template, and what can be proved from it about a rendered conversation."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from misotune.errors import LayoutError, UsageError
from misotune.layout.pieces import PieceTokenizer

Message = Mapping[str, str]

SHIPPED_TEMPLATES = Path(__file__).parent / "templates"

# Two user texts that share neither their first nor their last token: what their renderings have in common at
# either end is the template's.
_PROBES = ("Alpha", "omega?")


class ChatTemplate:
    """Renders conversations with a tokenizer's template and finds the parts that the template adds.

    Args:
        tokenizer: A transformers tokenizer that has a chat template.

    Raises:
        UsageError: The tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError(
                f"the tokenizer of {tokenizer.name_or_path} has no chat template; "
                f"set model.chat_template to one of {', '.join(shipped_template_names())} or to a .jinja file"
            )
        self.tokenizer = tokenizer
        self._ids_of = PieceTokenizer(tokenizer)
        self._openings: dict[str | None, list[int]] = {}

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Returns the conversation as the model reads it.

        Raises:
            LayoutError: The template refuses the conversation.
        """
        try:
            return self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:
            raise LayoutError(f"the chat template refuses the conversation: {error}") from error

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> list[int]:
        """Returns the conversation's token ids; the template alone decides about BOS."""
        text = self.render(messages, add_generation_prompt=add_generation_prompt)
        ids = self._ids_of(text)
        bos = self.tokenizer.bos_token_id
        if bos is not None and bos != self.tokenizer.eos_token_id and ids[:2] == [bos, bos]:
            raise LayoutError("the rendered conversation begins with two BOS tokens")
        return ids

    def split_prompt(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Returns (input ids, generation prompt ids) of a conversation that ends with the user's turn.

        The generation prompt opens the output (method: the first response token needs one predecessor that
        sees every input). A template without one gives what it always puts behind the user's text.

        Raises:
            LayoutError: The template puts nothing behind the user's text.
        """
        prompt = self.encode(messages, add_generation_prompt=True)
        bare = self.encode(messages, add_generation_prompt=False)
        if len(bare) < len(prompt) and prompt[: len(bare)] == bare:
            return bare, prompt[len(bare) :]
        suffix = self._closing_ids
        if not suffix or prompt[-len(suffix) :] != suffix or len(prompt) == len(suffix):
            raise LayoutError("the chat template has no generation prompt and no fixed ending of a user turn")
        return prompt[: -len(suffix)], suffix

    @property
    def sha256(self) -> str:
        """Of the template's text."""
        return sha256(str(self.tokenizer.chat_template).encode()).hexdigest()

    def opening_ids(self, messages: Sequence[Message]) -> list[int]:
        """Returns what stands before the first user's text: BOS, system prompt and the user turn's header."""
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        if system not in self._openings:
            head = [] if system is None else [messages[0]]
            self._openings[system] = _common_prefix(*(self._encode_probe(probe, head) for probe in _PROBES))
        return self._openings[system]

    def end_of_turn(self, ids: Sequence[int]) -> int:
        """Returns the index of the token that ends the assistant's turn in `ids`, its rendered last tokens.

        It is the last special token; behind it only white space may follow (`<|im_end|>` and a line break).

        Raises:
            LayoutError: The turn is not ended by a special token, so a model trained on it would never stop.
        """
        ends = self._special_ids
        for index in range(len(ids) - 1, -1, -1):
            if ids[index] in ends:
                return index
            if self.tokenizer.decode([ids[index]]).strip():
                break
        raise LayoutError("the chat template does not end the assistant's turn with a special token")

    def end_ids(self, *declared: int | Sequence[int] | None) -> tuple[int, ...]:
        """Returns the ids that end a response: those declared, and the one that the template ends turns with.

        A base model that was tuned on a chat template may declare only the end of a text.

        Args:
            declared: Ids that the model or its tokenizer names; None: it names none.
        """
        ids: list[int] = []
        for entry in declared:
            ids.extend([] if entry is None else [entry] if isinstance(entry, int) else entry)
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]
        with suppress(LayoutError):  # a template without such a token: the declared ones must do
            rendered = self.encode(turns, add_generation_prompt=False)
            ids.append(rendered[self.end_of_turn(rendered)])
        return tuple(dict.fromkeys(ids))

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = self.tokenizer.added_tokens_decoder
        return frozenset(i for i, token in added.items() if token.special) | frozenset(self.tokenizer.all_special_ids)

    @cached_property
    def _closing_ids(self) -> list[int]:
        first, second = (self._encode_probe(probe, [])[::-1] for probe in _PROBES)
        return _common_prefix(first, second)[::-1]

    def _encode_probe(self, text: str, system: Sequence[Message]) -> list[int]:
        return self.encode([*system, {"role": "user", "content": text}], add_generation_prompt=True)


def shipped_template_names() -> list[str]:
    """Returns the names of the templates for base models that have none of their own."""
    return sorted(path.stem for path in SHIPPED_TEMPLATES.glob("*.jinja"))


def read_template(name: str) -> str:
    """Returns the text of a chat template, by a shipped name or a path.

    Raises:
        UsageError: Neither a shipped template nor a file.
    """
    shipped = SHIPPED_TEMPLATES / f"{name}.jinja"
    path = shipped if shipped.is_file() else Path(name)
    if not path.is_file():
        raise UsageError(
            f"model.chat_template: {name!r} is neither a file nor one of {', '.join(shipped_template_names())}"
        )
    return path.read_text(encoding="utf-8")


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> list[int]:
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return list(first[:length])
