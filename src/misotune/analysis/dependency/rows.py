"""The conversations whose responses are scored: which tokens are the user's text, and which each response's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from misotune.analysis.rows import STARTER, starter_samples
from misotune.data.dataset import open_dataset
from misotune.errors import DataError, LayoutError
from misotune.layout import ChatTemplate
from misotune.layout.user_tokens import MessageTokens
from misotune.samples import Sample

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ResponseTokens:
    """A response's tokens: their places in the row.

    Attributes:
        turn: Which of the row's scored responses it is, from 1.
        places: Ascending.
        num_user_tokens: User tokens in front of it.
        is_cut: The row's longest length cut it.
    """

    turn: int
    places: NDArray[np.int64]
    num_user_tokens: int
    is_cut: bool


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row of the dataset as tokens.

    Attributes:
        number: The row's, from 0.
        id: The row's own.
        ids: Its tokens.
        is_user: Which of them are the user's text.
        responses: Those that are scored.
        num_turns: Responses of the row; those behind its longest length are not scored.
        texts: The user's text before each scored response.
    """

    number: int
    id: str
    ids: list[int]
    is_user: NDArray[np.bool_]
    responses: tuple[ResponseTokens, ...]
    num_turns: int
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from.

    Attributes:
        name: The starter set's name, or the dataset's path.
        samples: The rows, all or the first.
    """

    name: str
    samples: Sequence[Sample]


def open_source(data: Path | None, limit: int | None) -> Source:
    """Returns the rows to score.

    Args:
        data: A prepared dataset or JSON lines of its rows; None: the starter set's rows with four constraints or more.
        limit: Rows at most; None: all.

    Raises:
        DataError: The dataset cannot be read, or has no row.
    """
    samples = list(starter_samples()) if data is None else open_dataset(data)
    if not len(samples):
        raise DataError(f"{data}: no rows; prepare it again")
    return Source(STARTER if data is None else str(data), samples if limit is None else samples[:limit])


class ConversationReader:
    """Makes tokens of rows, with the chat template's own tokens told from what user and assistant wrote.

    Not counted, neither as the user's nor as the response's: the template's tokens, BOS, EOS, and tokens of line
    breaks alone.

    Args:
        template: The model's chat template.
        max_length: Tokens of a row; longer ones are cut.
    """

    def __init__(self, template: ChatTemplate, max_length: int) -> None:
        self._tokens = MessageTokens(template)
        self._max_length = max_length

    def read(self, samples: Sequence[Sample]) -> Iterator[Conversation | None]:
        """Yields each row's tokens; None: it cannot be laid out, or has nothing to score."""
        for number, sample in enumerate(samples):
            try:
                yield self._conversation(number, sample)
            except LayoutError:
                yield None

    def _conversation(self, number: int, sample: Sample) -> Conversation | None:
        messages = conversation_of(sample)
        ids, within = self._tokens.find(messages, add_generation_prompt=False)
        is_user = np.zeros(len(ids), dtype=bool)
        for index, message in enumerate(messages):
            if message["role"] == "user":
                is_user |= within[index]
        turns = scored_turns(sample, messages)
        responses: list[ResponseTokens] = []
        texts: list[str] = []
        for turn, index in enumerate(turns, start=1):
            whole = np.flatnonzero(within[index])
            places = whole[whole < self._max_length]
            num_user = int(is_user[: places[0]].sum()) if len(places) else 0
            if num_user:
                responses.append(ResponseTokens(turn, places, num_user, len(places) < len(whole)))
                texts.append(_user_text(messages[:index]))
        if not responses:
            return None
        length = int(responses[-1].places[-1]) + 1
        return Conversation(
            number, sample.id, ids[:length], is_user[:length], tuple(responses), len(turns), tuple(texts)
        )


def conversation_of(sample: Sample) -> list[Message]:
    """Returns a row as one conversation: its full instruction (the first input, where it has none), and the output."""
    chosen = next((entry for entry in sample.inputs if entry.role in ("full", "chunked")), sample.inputs[0])
    return [*chosen.messages, {"role": "assistant", "content": sample.output}]


def scored_turns(sample: Sample, messages: Sequence[Message]) -> list[int]:
    """Returns which messages are scored: the output, or all the assistant's where the row trains on each of them."""
    if not sample.history_loss:
        return [len(messages) - 1]
    return [i for i, message in enumerate(messages) if message["role"] == "assistant"]


def _user_text(messages: Sequence[Message]) -> str:
    return next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
