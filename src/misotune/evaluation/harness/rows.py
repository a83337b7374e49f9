"""The rows of `samples.jsonl` out of lm-eval's samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from misotune.evaluation.harness.figures import Metric
from misotune.evaluation.task import Message, Sample


@dataclass(frozen=True, slots=True)
class HarnessPrompt:
    """One row of a task, as the model was asked; a `task.Prompt`.

    Attributes:
        key: Unique within the result.
        prompt: The last user turn, or the text itself where there are no turns.
        messages: All turns.
        where: The task and the row's number.
        wanted: What the task wants of the model: the given answers, and the right one.
    """

    key: int | str
    prompt: str
    messages: tuple[Message, ...]
    where: str
    wanted: Any

    def content(self) -> Any:
        """Returns all that decides the score."""
        return [self.key, [dict(message) for message in self.messages], self.prompt, self.wanted]


def rows_of(
    task: str,
    samples: Sequence[Mapping[str, Any]],
    metrics: Sequence[Metric],
    turns: Mapping[str, Sequence[Message]],
    *,
    is_part: bool,
) -> list[tuple[HarnessPrompt, Sample]]:
    """Returns each row of a task with what the model answered.

    Args:
        task: The task's name.
        samples: lm-eval's, one a row and filter.
        metrics: The task's.
        turns: The turns of each rendered conversation.
        is_part: The task is one of several, and the rows' keys and groups name it.
    """
    by_row: dict[int, list[Mapping[str, Any]]] = {}
    for sample in samples:
        by_row.setdefault(sample["doc_id"], []).append(sample)
    rows: list[tuple[HarnessPrompt, Sample]] = []
    for number, filtered in by_row.items():
        sample = filtered[0]
        context = str(sample["arguments"][0][0])
        messages = tuple(turns.get(context, ()))
        prompt = next((turn["content"] for turn in reversed(messages) if turn["role"] == "user"), context)
        key: int | str = f"{task}/{number}" if is_part else number
        asked = [[str(part) for part in arguments[1:]] for arguments in sample["arguments"]]
        response, found = _response(sample, filtered)
        scores = {m.name: m.values[number] for m in metrics if m.is_share and number in m.values}
        found = {**found, "target": _plain(sample["target"]), "scores": scores, **({"group": task} if is_part else {})}
        wanted = [asked, str(sample["target"])]
        rows.append(
            (HarnessPrompt(key, prompt, messages, f"{task} row {number}", wanted), Sample(key, prompt, response, found))
        )
    return rows


def _response(sample: Mapping[str, Any], filtered: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Returns what the model answered, as text, and further fields of the row."""
    answers = [tries[0] for tries in sample["resps"]]
    if isinstance(answers[0], str):
        kept = {entry["filter"]: _plain(entry["filtered_resps"][0]) for entry in filtered}
        is_changed = any(text != answers[0] for text in kept.values())
        return answers[0], {"extracted": kept} if is_changed else {}
    if not isinstance(answers[0], (list, tuple)):
        return f"log-probability {answers[0]:.4f}", {}
    given = [str(arguments[-1]) for arguments in sample["arguments"]]
    if len(given) == 1:
        value, is_greedy = answers[0]
        return given[0] if is_greedy else "(another text)", {"log_probability": value}
    # Behind the given answers, a task may ask for them without the question.
    best = max(
        range(len(answers)), key=lambda index: answers[index][0] if sample["arguments"][index][0] else -float("inf")
    )
    told = [{"text": text, "log_probability": value} for text, (value, _) in zip(given, answers, strict=True)]
    return given[best].strip(), {"choices": told}


def _plain(value: Any) -> Any:
    """Returns a value as JSON can hold it."""
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
