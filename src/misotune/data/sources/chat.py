"""Chats: `conversations` of ShareGPT or `messages`, as one-input rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from misotune.data.records import BadRowError, Message, Record, brief
from misotune.data.sources.fields import RowContext, row_domain, row_id

_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "system": "system",
}
OPENING_CUT = "opening assistant turns cut"
ENDING_CUT = "last user turns without an answer cut"


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat in order: perhaps a system message, then user and assistant in turn; the assistant ends it."""

    history: tuple[Message, ...]
    user: str
    output: str
    notes: tuple[str, ...] = ()


def chat_record(row: Mapping[str, Any], context: RowContext) -> Record:
    """Returns the one-input record of a chat; the loss is on every assistant turn when there are several."""
    chat = read_chat(row)
    return Record(
        id=row_id(row, context),
        source=context.source,
        domain=row_domain(row, "chat"),
        history=chat.history,
        instruction=chat.user,
        constraints=(),
        output=chat.output,
        history_loss=any(message["role"] == "assistant" for message in chat.history),
        rule="chat",
        one_input="chat",
        notes=chat.notes,
    )


def read_chat(row: Mapping[str, Any]) -> Chat:
    """Returns the chat of a row with `messages` or `conversations`.

    Raises:
        BadRowError: There is no chat in the row, a turn is empty or unknown, or the turns are out of order.
    """
    key = next((key for key in ("messages", "conversations") if row.get(key) is not None), None)
    if key is None:
        raise BadRowError(f"no column 'messages' or 'conversations' (the row has {', '.join(row) or 'none'})")
    turns = row[key]
    if isinstance(turns, str) or not isinstance(turns, Sequence):
        raise BadRowError(f"{key!r} must be a list of turns, it is {brief(turns)}")
    messages = [_message(turn) for turn in turns]
    system = messages[:1] if messages and messages[0]["role"] == "system" else []
    turns, notes = _trimmed(messages[len(system) :])
    for i, message in enumerate(turns):
        expected = ("user", "assistant")[i % 2]
        if message["role"] != expected:
            raise BadRowError(f"turn {i + 1} of the chat is the {message['role']}'s, expected the {expected}'s")
        if not message["content"].strip():
            raise BadRowError(f"turn {i + 1} of the chat, the {message['role']}'s, is empty")
    return Chat((*system, *turns[:-2]), turns[-2]["content"], turns[-1]["content"], notes)


def _trimmed(turns: list[Message]) -> tuple[list[Message], tuple[str, ...]]:
    """Cuts a chat that was torn out of a longer one to whole question-answer pairs."""
    notes: list[str] = []
    start = next((i for i, turn in enumerate(turns) if turn["role"] != "assistant"), len(turns))
    end = next((i for i in range(len(turns), 0, -1) if turns[i - 1]["role"] != "user"), 0)
    if start >= end:
        raise BadRowError("no user turn with an answer")
    if start > 0:
        notes.append(OPENING_CUT)
    if end < len(turns):
        notes.append(ENDING_CUT)
    return turns[start:end], tuple(notes)


def _message(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRowError(f"a turn must have a role and a text, it is {brief(turn)}")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if role not in _ROLES:
        raise BadRowError(f"unknown role {role!r} (known: {', '.join(_ROLES)})")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = _joined_parts(content)
    if not isinstance(content, str):
        raise BadRowError(f"the text of a turn must be a string, it is {brief(content)}")
    return {"role": _ROLES[role], "content": content}


def _joined_parts(parts: Sequence[Any]) -> str:
    """The text of a turn in parts (`[{"type": "text", "text": ...}]`); only parts of text are known."""
    texts: list[str] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text", part.get("value")) if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(text, str):
            raise BadRowError(f"a turn has a part that is not text: {brief(part)}")
        texts.append(text)
    return "".join(texts)
