"""The context-dependency indicator: the words that mark a user's turn, in training and at inference.

arXiv 2411.02688, section 3.2: ` [IND]`, an ordinary token of the vocabulary, behind the user's text.
"""

from collections.abc import Mapping, Sequence

INDICATOR = "[IND]"


def with_indicator(text: str) -> str:
    """Returns a user's text with the indicator behind it, and a full stop between where it ends with a word.

    >>> with_indicator("Who wrote it?"), with_indicator("Tell me who wrote it")
    ('Who wrote it? [IND]', 'Tell me who wrote it. [IND]')
    """
    text = text.rstrip()
    return f"{text}{'.' if text[-1:].isalnum() else ''} {INDICATOR}"


def has_indicator(text: str) -> bool:
    """Returns whether a user's text is marked already."""
    return text.rstrip().endswith(INDICATOR)


def mark_turn(messages: Sequence[Mapping[str, str]], index: int) -> list[dict[str, str]]:
    """Returns the messages with the one at `index` marked, -1 being the last."""
    marked = [dict(message) for message in messages]
    marked[index]["content"] = with_indicator(marked[index]["content"])
    return marked
