"""Where the thinking of a reasoning trace goes: into the input (paper, section 5.2), the output, or nowhere."""

import re
from typing import Literal, get_args

from misotune.data.records import BadRowError

Think = Literal["input", "output", "drop"]
THINKS: tuple[Think, ...] = get_args(Think)

RULES: dict[Think, str] = {
    "input": "think in the input",
    "output": "think in the output",
    "drop": "think dropped",
}
ONE_INPUT: dict[Think, str] = {
    "input": "instruction and think are one input",
    "output": "reasoning trace",
    "drop": "reasoning trace",
}
_TAGGED = re.compile(r"\s*<think(?:ing)?>(?P<think>.*?)</think(?:ing)?>\s*", re.DOTALL)
_UNOPENED = re.compile(r"(?P<think>.*?)</think(?:ing)?>\s*", re.DOTALL)


def place(question: str, think: str, answer: str, where: Think) -> tuple[str, str]:
    r"""Returns input and output with the thinking where it belongs.

    >>> place("Why?", "Hm.", "So.", "input")
    ('Why?\n\n<think>\nHm.\n</think>', 'So.')
    >>> place("Why?", "Hm.", "So.", "output")
    ('Why?', '<think>\nHm.\n</think>\n\nSo.')
    """
    block = f"<think>\n{think.strip()}\n</think>"
    if not think.strip() or where == "drop":
        return question, answer
    return (f"{question}\n\n{block}", answer) if where == "input" else (question, f"{block}\n\n{answer}")


def split_answer(text: str) -> tuple[str, str]:
    """Returns thinking and answer of a text that opens with `<think>...</think>`; no thinking where it does not.

    Templates that open the thinking in the prompt leave texts with `</think>` alone; these are read as well.

    >>> split_answer("<think> Hm. </think> So.")
    ('Hm.', 'So.')

    Raises:
        BadRowError: The thinking is not closed, or no answer follows it.
    """
    match = _TAGGED.match(text) or _UNOPENED.match(text)
    if match is None:
        if text.lstrip().startswith(("<think>", "<thinking>")):
            raise BadRowError("<think> without </think>: the trace is cut short")
        return "", text
    answer = text[match.end() :]
    if not answer.strip():
        raise BadRowError("no answer after </think>")
    return match["think"].strip(), answer
