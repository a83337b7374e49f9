"""ComplexBench's figures, as the published `evaluation/aggregation.py` has them.

A question counts when its own verdict and those of the questions it depends on are yes. One level: a question whose
own verdict is yes still holds up those that depend on it, though it counts for nothing itself. The decomposed
requirements following ratio (DRFR) is the share of questions that count, over all questions of all instructions.

Deviations in names alone: `Utility` and `multiple_relative_drop` are misspelt there. Where the published code divides
by zero, for want of such instructions, the figure is left out.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from misotune.evaluation.task import Sample, Summary, mean

DRFR = "overall_drfr"
_CONSTRAINT_TYPES = {
    "Lexical": ("Word Matching", "Keywords"),
    "Structure": (
        "JSON Format", "Markdown Format", "Bullets Format", "Length", "Start with", "End with",
        "Punctuation", "Template",
    ),
    "Semantic": ("Language Style", "Personalization", "Topic", "Sentiment"),
    "Utility": ("Helpfulness", "Target Language", "Supportiveness", "Consistency", "Factuality"),
}  # fmt: skip
_TYPE_OF = {dimension: kind for kind, dimensions in _CONSTRAINT_TYPES.items() for dimension in dimensions}
Groups = dict[str, dict[str, float]]


def after_dependencies(verdicts: Sequence[bool], depends_on: Sequence[Sequence[int]]) -> list[bool]:
    """Returns which questions count.

    >>> after_dependencies([False, True, True], [[], [0], [1]])
    [False, False, True]

    Args:
        verdicts: Of each question by itself.
        depends_on: The places of the questions that each one depends on.
    """
    return [own and all(verdicts[place] for place in on) for own, on in zip(verdicts, depends_on, strict=True)]


def summarize(samples: Sequence[Sample]) -> Summary:
    """Returns the figures of samples that `ComplexBenchScoring` made."""
    by_question = [question for sample in samples for question in sample.found["questions"]]
    figures = {DRFR: mean([question["counts"] for question in by_question]), **_coherent_tests(samples)}
    counts = {
        "questions": len(by_question),
        "questions_by_rule": sum(question["origin"] == "rule" for question in by_question),
        "questions_unanswered": sum(question["trouble"] is not None for question in by_question),
    }
    return Summary(figures, counts, _groups(samples), tuple(_notes(by_question)))


def _groups(samples: Sequence[Sample]) -> dict[str, Groups]:
    kinds = {
        "category": _shares((sample.found["group"], _counting(sample)) for sample in samples),
        # As published: `Selection_and_Chain` is part of the average of `Selection`.
        "category average": _shares((sample.found["group"].split("_")[0], _counting(sample)) for sample in samples),
        "composition": _shares(("_".join(sorted(s.found["composition_types"])), _counting(s)) for s in samples),
        "task type": _shares((sample.found["task_type"], _counting(sample)) for sample in samples),
        "constraint type": _question_shares(samples, "constraint_dimensions", _TYPE_OF),
        "constraint dimension": _question_shares(samples, "constraint_dimensions", None),
        "composition type": _question_shares(samples, "composition_types", None),
    }
    return {kind: groups for kind, groups in kinds.items() if groups}


def _counting(sample: Sample) -> list[bool]:
    return [question["counts"] for question in sample.found["questions"]]


def _question_shares(samples: Sequence[Sample], field: str, label_of: Mapping[str, str] | None) -> Groups:
    """Shares by a label of the questions; a question with several counts under each."""
    return _shares(
        (name if label_of is None else label_of.get(name, "Others"), [question["counts"]])
        for sample in samples
        for question in sample.found["questions"]
        for name in question[field]
    )


def _shares(parts: Iterable[tuple[str, Sequence[bool]]]) -> Groups:
    by_label: dict[str, list[bool]] = defaultdict(list)
    for label, counting in parts:
        by_label[label] += counting
    return {label: {"number": len(found), "drfr": mean(found)} for label, found in sorted(by_label.items())}


def _coherent_tests(samples: Sequence[Sample]) -> dict[str, float]:
    """Returns the coherent test for selections (section 5.2.3): instructions met alone, and whole groups of them.

    The first instruction of a group says how many selections it has: one, or several.
    """
    by_group: dict[str | None, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_group[sample.found["task_group"]].append(sample)
    met: dict[str, list[list[bool]]] = defaultdict(list)
    for group in by_group.values():
        num_selections = sum("Selection" in question["composition_types"] for question in group[0].found["questions"])
        if num_selections:
            met["single" if num_selections == 1 else "multiple"].append([all(_counting(sample)) for sample in group])
    figures: dict[str, float] = {}
    for depth in ("single", "multiple"):
        if depth in met:
            origin = mean([is_met for group in met[depth] for is_met in group])
            coherent = mean([all(group) for group in met[depth]])
            figures |= {f"{depth}_origin_test": origin, f"{depth}_coherent_test": coherent}
            if origin:
                figures[f"{depth}_relative_drop"] = (origin - coherent) / origin
    return figures


def _notes(by_question: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    troubles = Counter(question["trouble"] for question in by_question if question["trouble"] is not None)
    if troubles:
        yield (
            f"{troubles.total()} of {len(by_question)} questions have no clear answer of the judge "
            f"({'; '.join(f'{number}: {what}' for what, number in troubles.most_common())}); they count as in the "
            "published code: as a no, or, for a rule, as if the response had no such part"
        )
