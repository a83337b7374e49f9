"""SQuAD, QuAC and DROP: is the answer, which stands in the prompt's text, in the response?

Source: arXiv 2411.02688, section 4.1 and appendix A.3, and its published code.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from misotune.errors import DataError
from misotune.evaluation.context.matching import contains, contains_words, normalize_answer
from misotune.evaluation.context.questions import Question, read_hub_questions, read_questions
from misotune.evaluation.task import NO_SETTINGS, Message, Sample, Summary, Task, mean

MAX_NEW_TOKENS = 100


@dataclass(frozen=True, slots=True)
class ReadingSet:
    """A set of questions.

    Attributes:
        layout: How its files and rows are made.
        hub_id: Where its validation split is.
        template: The user turn; tables 5 and 6 of the paper, QuAC's doubled word among them.
    """

    layout: str
    hub_id: str
    template: str


_ACCORDING = "{context}\nAnswer the question according to the above passage: {question}"
READING_SETS: Mapping[str, ReadingSet] = {
    "squad": ReadingSet("squad", "rajpurkar/squad", _ACCORDING),
    "squad_v2": ReadingSet("squad", "rajpurkar/squad_v2", _ACCORDING),
    "quac": ReadingSet(
        "quac", "allenai/quac", "{context}\nAnswer the question with pieces from the the above passage: {question}"
    ),
    "drop": ReadingSet("drop", "ucinlp/drop", _ACCORDING),
}


@dataclass(frozen=True, slots=True)
class ReadingPrompt:
    """A text, a question about it, and the answers of which one must stand in the response."""

    key: str
    prompt: str
    answers: tuple[str, ...]
    kind: str | None
    cluster: str
    where: str

    @property
    def messages(self) -> tuple[Message, ...]:
        """One user turn."""
        return ({"role": "user", "content": self.prompt},)

    def content(self) -> Any:
        """Returns all that decides the score."""
        return [self.key, self.prompt, list(self.answers)]


class ReadingScoring:
    """Whether the response holds an answer: anywhere, as published, and as whole words."""

    settings = NO_SETTINGS

    def score(self, prompts: Sequence[ReadingPrompt], responses: Sequence[str]) -> list[Sample]:
        """Returns the two verdicts on each response, as 0 and 1."""
        samples: list[Sample] = []
        for prompt, response in zip(prompts, responses, strict=True):
            found: dict[str, Any] = {
                "answers": list(prompt.answers),
                "cluster": prompt.cluster,
                "scores": {
                    "contains": int(contains(response, prompt.answers)),
                    "contains_words": int(contains_words(response, prompt.answers)),
                },
            }
            if prompt.kind is not None:
                found["group"] = prompt.kind
            samples.append(Sample(prompt.key, prompt.prompt, response, found))
        return samples

    def summarize(self, samples: Sequence[Sample]) -> Summary:
        """Returns the shares of prompts, and those for each kind of answer where the set has kinds."""
        by_kind: dict[str, list[Sample]] = {}
        for sample in samples:
            if "group" in sample.found:
                by_kind.setdefault(sample.found["group"], []).append(sample)
        groups = {kind: {"number": len(by_kind[kind]), **_shares(by_kind[kind])} for kind in sorted(by_kind)}
        return Summary(_shares(samples), groups={"answer": groups} if groups else {})


def _shares(samples: Sequence[Sample]) -> dict[str, float]:
    return {name: mean([s.found["scores"][name] for s in samples]) for name in ("contains", "contains_words")}


def load_reading(name: str, *, data: Path | None = None, limit: int | None = None) -> Task:
    """Returns the questions of a set that its texts answer.

    Args:
        name: A key of `READING_SETS`.
        data: A file with the set; None for the hub's validation split.
        limit: Take only the first so many prompts; None for all.

    Raises:
        DataError: An entry is wrong, two have one id, or no question has an answer.
        RunError: The hub cannot be reached; names the way with a file.
    """
    reading_set = READING_SETS[name]
    source = reading_set.hub_id if data is None else str(data)
    if data is None:
        found = read_hub_questions(reading_set.hub_id, reading_set.layout, name)
    else:
        found = read_questions(data, reading_set.layout)
    questions, num_repeated = _with_own_keys(found)
    answered = [question for question in questions if question.answers]
    usable = [question for question in map(_without_void_answers, answered) if question.answers]
    if not usable:
        raise DataError(f"{source}: none of its {len(questions)} questions has an answer; {name} needs some")
    prompts = tuple(_prompt(question, reading_set.template) for question in usable)
    notes = [
        f"{number} of {len(questions)} questions left out: {why}"
        for number, why in (
            (len(questions) - len(answered), "the text does not answer them"),
            (len(answered) - len(usable), "their answers are but articles and punctuation"),
        )
        if number
    ]
    if num_repeated:
        notes.append(f"{num_repeated} questions stand there twice, word for word, and were taken once")
    if reading_set.layout == "quac":
        notes.insert(0, "the first question of each dialogue, as published; later ones need what was said before")
    return Task(name, source, prompts[:limit], prompts, MAX_NEW_TOKENS, ReadingScoring(), tuple(notes))


def _with_own_keys(found: Iterable[Question]) -> tuple[list[Question], int]:
    """Returns the questions without those that say once more what stands there already, and the number of these."""
    by_key: dict[str, Question] = {}
    num_repeated = 0
    for question in found:
        first = by_key.setdefault(question.key, question)
        if first is question:
            continue
        if replace(question, where=first.where) != first:
            raise DataError(f"{question.where}: another question has the id {question.key!r}, at {first.where}")
        num_repeated += 1
    return list(by_key.values()), num_repeated


def _without_void_answers(question: Question) -> Question:
    """SQuAD's normalisation leaves nothing of an answer such as "A" or "%", and nothing is in every response."""
    return replace(question, answers=tuple(filter(normalize_answer, question.answers)))


def _prompt(question: Question, template: str) -> ReadingPrompt:
    prompt = template.format(context=question.context, question=question.question)
    # Questions on one text hang together; `compare` takes them as one.
    cluster = hashlib.sha256(question.context.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return ReadingPrompt(question.key, prompt, question.answers, question.kind, cluster, question.where)
