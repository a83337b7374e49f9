"""ComplexBench: instructions whose constraints are composed, scored by a judge and by rules (arXiv 2407.03978).

The benchmark is that of thu-coai/ComplexBench (MIT): its data file and its judge's prompts are read from the user's
copy, and its verdicts and figures are computed here as its published code computes them.

* A question without a rule goes to the judge, which answers yes or no.
* A question with a rule goes to the judge as well: it takes the part out of the response that the question is about,
  and the rule decides on that part (the paper's "rule-augmented" evaluation).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misotune.chat.messages import ApiFailure, ChatAnswer
from misotune.errors import RunError, UsageError
from misotune.evaluation.complexbench.answers import read_parts, read_verdict
from misotune.evaluation.complexbench.figures import DRFR, after_dependencies, summarize
from misotune.evaluation.complexbench.instances import Instance, Language, ScoringQuestion, read_instances
from misotune.evaluation.complexbench.judge import MAX_LOST_SHARE, Judge, JudgeOptions
from misotune.evaluation.complexbench.judge_prompts import JudgePrompts, find_prompts, read_prompts
from misotune.evaluation.task import ResponseFields, Sample, Summary, Task

NAME = "complexbench"
# Of GPT-4's published responses the longest has 4,162 characters, and one in a hundred more than 2,905.
MAX_NEW_TOKENS = 2048
# Those of llm_generations/*.jsonl in the repository.
_PUBLISHED_RESPONSES = ResponseFields(key="main_id", prompt="instruction", response="generated")
_UNCLEAR = "an answer that is not in the form that was asked for"


@dataclass(frozen=True, slots=True)
class _Found:
    """What became of one question."""

    verdict: bool
    trouble: str | None
    answer: str | None


class ComplexBenchScoring:
    """Verdicts of a judge, and of rules on what the judge takes out of a response.

    Args:
        judge: Who judges, and how it is asked.
        prompts: What it is told.
        language: Of instructions and questions.
    """

    def __init__(self, judge: JudgeOptions, prompts: JudgePrompts, language: Language) -> None:
        self._judge = Judge(judge)
        self._prompts = prompts
        self._language = language

    @property
    def settings(self) -> dict[str, Any]:
        """What the figures depend on beside prompts and responses."""
        return {
            "language": self._language,
            "judge": {
                "model": self._judge.options.server.model,
                "options": dict(self._judge.options.options),
                "prompts": str(self._prompts.folder),
                "prompts_sha256": dict(self._prompts.sha256),
            },
        }

    def score(self, prompts: Sequence[Instance], responses: Sequence[str]) -> list[Sample]:
        """Returns each question's verdict, where it comes from, and whether it counts after dependencies.

        Raises:
            RunError: The judge's server is down or refuses, or leaves too many questions without a clear answer.
        """
        asked = [(p, q, r) for p, r in zip(prompts, responses, strict=True) for q in p.questions]
        answers = self._judge.ask([self._text_of(*entry) for entry in asked])
        found = [
            _read(question, response, answer) for (_, question, response), answer in zip(asked, answers, strict=True)
        ]
        self._check(found)
        samples: list[Sample] = []
        start = 0
        for prompt, response in zip(prompts, responses, strict=True):
            samples.append(_sample(prompt, response, found[start : start + len(prompt.questions)]))
            start += len(prompt.questions)
        return samples

    def summarize(self, samples: Sequence[Sample]) -> Summary:
        """Returns the published figures, the overall DRFR first."""
        return summarize(samples)

    def _text_of(self, prompt: Instance, question: ScoringQuestion, response: str) -> Callable[[], str]:
        if question.rule is None:
            return lambda: self._prompts.ask_verdict(prompt.prompt, response, question.text)
        many = question.rule.has_many_parts
        return lambda: self._prompts.ask_parts(prompt.prompt, response, question.text, many=many)

    def _check(self, found: Sequence[_Found]) -> None:
        troubles = Counter(entry.trouble for entry in found if entry.trouble is not None)
        if troubles.total() > MAX_LOST_SHARE * len(found):
            unclear = next((entry.answer for entry in found if entry.trouble and entry.answer), None)
            judge = self._judge.options
            raise RunError(
                f"the judge {judge.server.model} gave no clear answer to {troubles.total()} of {len(found)} "
                f"questions, more than {MAX_LOST_SHARE:.0%}: no score "
                f"({'; '.join(f'{number}: {what}' for what, number in troubles.most_common(3))}"
                f"{'' if unclear is None else f', such as {unclear[-60:]!r}'}); all answers are kept in "
                f"{judge.cache}: the same command asks for missing ones again, else take another judge"
            )


def load_complexbench(data: Path, *, judge: JudgeOptions, language: Language = "zh", limit: int | None = None) -> Task:
    """Returns ComplexBench as a task.

    Args:
        data: `data/data_final.json` of the ComplexBench repository, or the repository.
        judge: Who judges.
        language: `zh`, or `en` for the English translation.
        limit: Only the first so many instructions; None for all.

    Raises:
        UsageError: There are no judge's prompts, or the judge's endpoint is no address.
        DataError: A row or a prompt is wrong; names file and row.
    """
    if language not in ("zh", "en"):
        raise UsageError(f"language {language!r}: ComplexBench has zh and en")
    path = data / "data" / "data_final.json" if data.is_dir() else data
    instances = read_instances(path, language)
    scoring = ComplexBenchScoring(judge, read_prompts(find_prompts(path, judge.prompts)), language)
    taken = instances[:limit]
    notes = tuple(_notes(taken, instances[len(taken) :], judge.server.model, language))
    return Task(NAME, str(path), taken, instances, MAX_NEW_TOKENS, scoring, notes, response_fields=_PUBLISHED_RESPONSES)


def _read(question: ScoringQuestion, response: str, answer: ChatAnswer | ApiFailure) -> _Found:
    if isinstance(answer, ApiFailure):
        # As published: no, or no part that the rule could decide on.
        return _Found(question.rule is not None and question.rule.decide(()), answer.reason, None)
    if question.rule is None:
        verdict, is_clear = read_verdict(answer.text)
    else:
        parts, is_clear = read_parts(answer.text, response)
        verdict = question.rule.decide(parts)
    return _Found(verdict, None if is_clear else _UNCLEAR, answer.text)


def _sample(prompt: Instance, response: str, found: Sequence[_Found]) -> Sample:
    counting = after_dependencies([entry.verdict for entry in found], [q.depends_on for q in prompt.questions])
    questions = [
        {
            "question": question.text,
            "origin": "judge" if question.rule is None else "rule",
            "rule": question.rule and question.rule.text,
            "verdict": entry.verdict,
            "depends_on": list(question.depends_on),
            "counts": counts,
            "trouble": entry.trouble,
            "constraint_dimensions": list(question.constraint_dimensions),
            "composition_types": list(question.composition_types),
            "answer": entry.answer,
        }
        for question, entry, counts in zip(prompt.questions, found, counting, strict=True)
    ]
    row = {
        "scores": {DRFR: [float(counts) for counts in counting]},
        "types": [_label(question) for question in prompt.questions],
        "group": prompt.category,
        "task_type": prompt.task_type,
        "composition_types": list(prompt.composition_types),
        "task_group": prompt.group,
        "questions": questions,
    }
    return Sample(prompt.key, prompt.prompt, response, row)


def _label(question: ScoringQuestion) -> str:
    """One label for a question, for comparisons part by part."""
    return " and ".join(question.constraint_dimensions or question.composition_types) or "Others"


def _notes(taken: Sequence[Instance], left: Sequence[Instance], model: str, language: Language) -> list[str]:
    notes = [f"judged by {model}; figures of different judges do not compare"]
    if language == "en":
        notes.append("English, as published: the rules are those of the Chinese questions, and so are their words")
    cut = {instance.group for instance in taken} & {instance.group for instance in left} - {None}
    if cut:
        notes.append(f"the limit cuts {len(cut)} groups of instructions: the coherent tests are on parts of them")
    return notes
