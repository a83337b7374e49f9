"""Decomposition by a model behind an OpenAI-compatible server, trusted only as far as the text bears it out."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from misotune.chat.api import AskProgress, ChatApi
from misotune.chat.messages import ApiFailure, ChatAnswer, ChatRequest
from misotune.chat.server import Server
from misotune.data.account import Account
from misotune.data.decompose.grounding import ground
from misotune.data.decompose.prompt import VERSION, messages_for
from misotune.data.decompose.rules import template_for
from misotune.data.records import Record

MAX_CHARACTERS = 20_000
TOO_LONG = f"longer than {MAX_CHARACTERS:,} characters, not sent to the LLM"
NO_JSON = "LLM: no JSON with instruction and constraints in the answer"
NONE_FOUND = "LLM: found no constraints"

_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
# Where an answer may hold its JSON; a model that repeats braces without end is not read to its end.
_MAX_OBJECTS = 100
_DECODER = json.JSONDecoder(strict=False)  # models write line breaks into their strings


class LlmDecomposition:
    """The step that asks a model to take instructions apart; rows whose answer does not hold keep one input.

    Records pass in order. Chats that train on several turns, and records that have constraints already, pass
    unasked. Answers are cached: after a fault, the same command goes on where it stopped.

    Args:
        server: Who is asked.
        cache: A file for the answers.
        retries: Tries after the first.
        on_progress: Called after each answer.
        options: Fields of the request besides the defaults, such as `{"max_tokens": 4096}`; None as a value
            leaves a default out, for servers that refuse it.
    """

    def __init__(
        self,
        server: Server,
        cache: Path,
        *,
        retries: int = 5,
        on_progress: Callable[[AskProgress], None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._api = ChatApi(server, cache=cache, retries=retries, on_progress=on_progress)
        self._options = dict(options or {})

    def __call__(self, records: Iterable[Record], account: Account) -> Iterator[Record]:
        """Yields every record, with its constraints apart where the model found them and the text bears it out.

        Raises:
            RunError: The server is down or refuses; one line says how to go on.
        """
        for record, answer in self._api.ask(records, self._request_of):
            if isinstance(answer, ChatAnswer):
                yield decomposed(record, answer.text)
            elif isinstance(answer, ApiFailure):
                yield replace(record, one_input=f"LLM: {answer.reason}")
            elif _is_open(record):
                yield replace(record, one_input=TOO_LONG)
            else:
                yield record

    def _request_of(self, record: Record) -> ChatRequest | None:
        text = record.full_text or record.instruction
        if not _is_open(record) or len(text) > MAX_CHARACTERS:
            return None
        # The answer repeats the text; in scripts with many tokens per character one token a character is not enough.
        defaults = {"temperature": 0, "max_tokens": 256 + len(text.encode()) // 2}
        options = {key: value for key, value in {**defaults, **self._options}.items() if value is not None}
        return ChatRequest(messages_for(text), options, f"decompose-{VERSION}")


def decomposed(record: Record, answer: str) -> Record:
    """Returns the record as the model's answer splits it, or with the reason why that cannot be trusted."""
    text = record.full_text or record.instruction
    parts = read_parts(answer)
    if parts is None:
        return replace(record, one_input=NO_JSON)
    instruction, constraints = parts
    if not constraints:
        return replace(record, one_input=NONE_FOUND)
    grounding = ground(text, instruction, constraints)
    if isinstance(grounding, str):
        return replace(record, one_input=f"LLM: {grounding}")
    return replace(
        record,
        instruction=instruction,
        constraints=grounding.constraints,
        full_text=text,
        template=template_for(text, instruction),
        confidence=min(record.confidence, grounding.confidence),
        rule="llm",
        one_input=None,
    )


def read_parts(answer: str) -> tuple[str, list[str]] | None:
    r"""Returns instruction and constraints of the last fitting JSON object in an answer, or None.

    >>> read_parts('<think>{}</think>Sure!\n```json\n{"instruction": "Name it.", "constraints": ["Be brief."]}\n```')
    ('Name it.', ['Be brief.'])
    """
    answer = _THOUGHTS.sub("", answer)
    found: tuple[str, list[str]] | None = None
    position = answer.find("{")
    for _ in range(_MAX_OBJECTS):
        if position < 0:
            break
        end = position + 1
        try:
            value, end = _DECODER.raw_decode(answer, position)
        except (ValueError, RecursionError):
            value = None
        found = _parts_of(value) or found
        position = answer.find("{", end)
    return found


def _parts_of(value: Any) -> tuple[str, list[str]] | None:
    if not isinstance(value, dict):
        return None
    instruction, constraints = value.get("instruction"), value.get("constraints")
    if not isinstance(instruction, str) or not isinstance(constraints, list):
        return None
    if not all(isinstance(constraint, str) for constraint in constraints):
        return None
    return instruction.strip(), [constraint.strip() for constraint in constraints if constraint.strip()]


def _is_open(record: Record) -> bool:
    """True when the record may be taken apart."""
    return not record.constraints and not record.history_loss
