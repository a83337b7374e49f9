"""ComplexBench's rules: what a program decides about the part of a response that a question is about.

A rule is a text such as `model_length:[300,10000]`. The verdicts are those of the published `evaluation/con_rule.py`
of thu-coai/ComplexBench, oddities included, for it made the published numbers:

* Which rule a text is, is found by looking for names anywhere in it, in a fixed order.
* Most rules compare after `chinese_punctuation`; `model_keyword`, `model_keyword_num`, `model_forbidden_word` and
  `model_constraint_punc` do that to the words of the rule alone, not to the response.
* `..._each` rules pass over empty parts, and `model_endswith_each` over the last of several parts.
* Rules without `model_` count a part that holds the word `None` as no part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from misotune.evaluation.complexbench.rule_arguments import (
    counted_and_words_of,
    counted_of,
    counted_with_blanks_of,
    keys_of,
    span_of,
    text_of,
    two_texts_of,
    words_of,
)
from misotune.evaluation.complexbench.rule_checks import (
    Check,
    chinese,
    chinese_punctuation,
    either,
    ends,
    has_all,
    has_all_and_none,
    has_counted,
    has_counted_and_none,
    has_none,
    has_num_words,
    has_only,
    is_json,
    is_long,
    is_text,
    negated,
    starts,
    starts_and_ends,
    unquoted,
)

Parts = Sequence[str]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that was understood.

    Attributes:
        text: As the data has it.
        name: Of its kind.
        decide: The verdict on the parts of a response that the question is about.
    """

    text: str
    name: str
    decide: Callable[[Parts], bool]

    @property
    def has_many_parts(self) -> bool:
        """Whether the judge is asked for several parts; as published, wherever the text has `each` in it."""
        return "each" in self.text


def parse_rule(text: str) -> Rule:
    """Returns the rule that a text of the data file states.

    >>> rule = parse_rule("model_length:[3,5]")
    >>> rule.name, rule.decide(["four"]), rule.decide(["more than five"]), rule.decide([])
    ('model_length', True, False, False)

    Raises:
        ValueError: The published code knows no such rule, or cannot read its argument.
    """
    for kind in _OF_PARTS:
        if kind.is_in(text):
            return Rule(text, kind.label, kind.decide_parts(kind.read(text)))
    # The published code stops here, even where the word is in the argument.
    if "model" not in text and "each" not in text:
        for kind in _OF_ONE:
            if kind.is_in(text):
                return Rule(text, kind.label, kind.decide_one(kind.read(text)))
    raise ValueError(f"rule {text!r} is not known")


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of rule.

    Attributes:
        names: What stands in the text of such a rule.
        read: Returns the argument out of the text.
        check: Of all parts (rules with `model_`) or of one text (the others), and the argument.
        of_nothing: The verdict where there is no part.
        unlike: What does not stand in the text.
    """

    names: tuple[str, ...]
    read: Callable[[str], Any]
    check: Callable[[Any, Any], bool]
    of_nothing: bool = False
    unlike: str | None = None

    @property
    def label(self) -> str:
        return " and ".join(name.rstrip(":") for name in self.names)

    def is_in(self, text: str) -> bool:
        return all(name in text for name in self.names) and (self.unlike is None or self.unlike not in text)

    def decide_parts(self, argument: Any) -> Callable[[Parts], bool]:
        return lambda parts: self.of_nothing if list(parts) in ([], [""]) else self.check(parts, argument)

    def decide_one(self, argument: Any) -> Callable[[Parts], bool]:
        def decide(parts: Parts) -> bool:
            first = parts[0] if parts else ""
            return any(
                self.of_nothing if not text or "None" in text else self.check(text, argument)
                for text in (unquoted(first), first)
            )

        return decide


def _first(check: Check) -> Callable[[Parts, Any], bool]:
    return lambda parts, argument: check(parts[0], argument)


def _each(check: Check) -> Callable[[Parts, Any], bool]:
    return lambda parts, argument: all(check(part, argument) for part in parts if part)


def _is_number_of(parts: Parts, span: Sequence[float]) -> bool:
    return span[0] <= len(parts) <= span[1]


def _start_in_turn(parts: Parts, wanted: Sequence[str]) -> bool:
    if len(parts) != len(wanted):
        return False
    return all(starts(chinese_punctuation(part), s) for part, s in zip(parts, wanted, strict=True) if part)


def _end_before_last(parts: Parts, end: str) -> bool:
    return _each(chinese(either(ends)))(parts if len(parts) == 1 else parts[:-1], end)


def _has_only_unquoted(text: str, marks: Sequence[str]) -> bool:
    return has_only(unquoted(text), marks)


# Of the parts that the judge takes out of the response. The first kind that is in a text is the text's.
_OF_PARTS = (
    _Kind(("model_keyword_each",), words_of("model_keyword_each"), _each(chinese(has_all))),
    _Kind(("model_keyword_num_each", "model_forbidden_word_each"),
          counted_and_words_of("model_keyword_num_each", "model_forbidden_word_each"), _each(has_counted_and_none)),
    _Kind(("model_keyword_num_each",), counted_with_blanks_of("model_keyword_num_each"), _each(has_counted)),
    _Kind(("model_keyword_num",), counted_of("model_keyword_num"), _first(has_counted)),
    _Kind(("model_keyword",), words_of("model_keyword"), _first(has_all)),
    _Kind(("model_forbidden_word_each",), words_of("model_forbidden_word_each"), _each(chinese(has_none)), True),
    _Kind(("model_forbidden_word",), words_of("model_forbidden_word"), _first(has_none), True),
    _Kind(("model_number_each",), span_of("model_number_each"), _is_number_of),
    _Kind(("model_length_each",), span_of("model_length_each"), _each(either(is_long))),
    _Kind(("model_length_word_each",), span_of("model_length_word_each"), _each(either(has_num_words))),
    _Kind(("model_length_word",), span_of("model_length_word"), _first(either(has_num_words))),
    _Kind(("model_length:",), span_of("model_length"), _first(either(is_long))),
    _Kind(("model_startswith_each",), text_of("model_startswith_each"), _each(chinese(starts))),
    _Kind(("model_starts_with_list_each",), words_of("model_starts_with_list_each"), _start_in_turn),
    _Kind(("model_startswith", "model_endswith"), two_texts_of("model_startswith", "model_endswith"),
          _first(chinese(starts_and_ends))),
    _Kind(("model_startswith",), text_of("model_startswith"), _first(chinese(starts))),
    _Kind(("model_endswith_each",), text_of("model_endswith_each"), _end_before_last),
    _Kind(("model_endswith",), text_of("model_endswith"), _first(chinese(ends))),
    _Kind(("model_constraint_punc_each",), words_of("model_constraint_punc_each"), _each(chinese(either(has_only)))),
    _Kind(("model_constraint_punc",), words_of("model_constraint_punc"), _first(_has_only_unquoted)),
    _Kind(("model_not_startswith",), text_of("model_not_startswith"), _first(chinese(negated(starts))), True),
    _Kind(("model_not_endswith_each",), text_of("model_not_endswith_each"), _each(chinese(negated(ends))), True),
    _Kind(("model_not_endswith",), text_of("model_not_endswith"), _first(chinese(negated(ends))), True),
)  # fmt: skip

# Of one text, mostly the whole response.
_OF_ONE = (
    _Kind(("keyword", "forbidden_word"), lambda text: (words_of("keyword")(text), words_of("forbidden_word")(text)),
          chinese(has_all_and_none)),
    _Kind(("keyword",), words_of("keyword"), chinese(has_all), unlike="keyword_num"),
    _Kind(("match",), text_of("match", 0), chinese(is_text)),
    _Kind(("constraint_punc",), words_of("constraint_punc"), chinese(has_only)),
    _Kind(("forbidden_word",), words_of("forbidden_word"), chinese(has_none), True),
    _Kind(("startswith", "endswith"), two_texts_of("startswith", "endswith"), chinese(starts_and_ends)),
    _Kind(("startswith",), text_of("startswith"), chinese(starts)),
    _Kind(("not endswith",), text_of("not endswith"), chinese(negated(ends)), True),
    _Kind(("endswith",), text_of("endswith"), chinese(ends)),
    _Kind(("length_word:",), span_of("length_word"), chinese(has_num_words)),
    _Kind(("length:",), span_of("length"), chinese(is_long)),
    _Kind(("Json",), keys_of("Json"), is_json),
)  # fmt: skip
