"""The needle test: one sentence, hidden in a long text, is asked for.

Source: arXiv 2411.02688, section 2.1 and appendix A.2, and its published code, which stems from Greg Kamradt's
LLMTest_NeedleInAHaystack. What differs from that code is said in docs/evaluation.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misotune.errors import DataError, UsageError
from misotune.evaluation.context.haystack import hide_needle, longest_start, read_haystack
from misotune.evaluation.context.matching import keywords_found
from misotune.evaluation.context.model_tokens import ModelTokens
from misotune.evaluation.task import NO_SETTINGS, Message, Sample, Summary, Task, mean

NEEDLE = "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day."
QUESTION = "What is the best thing to do in San Francisco?"
KEYWORDS = ("eat", "sandwich", "sit", "dolores", "park", "sunny", "day")
TEMPLATE = (
    "You are a helpful AI assistant that answers a question using only the provided document: "
    "\n{document}\n\nQuestion: {question}"
)
MAX_NEW_TOKENS = 100
# Longer documents, which a model of today takes but a small machine does not, are asked for by name.
_DEFAULT_MAX_LENGTH = 8000


@dataclass(frozen=True, slots=True)
class NeedlePrompt:
    """One document with the needle in it, and the question.

    Attributes:
        length: The longest that the document may be, in the model's tokens, the needle included.
        depth: Where the needle is, in percent of the text around it.
        num_tokens: How long the document is.
        prompt: The user turn.
        where: What to call it in an error.
    """

    length: int
    depth: int
    num_tokens: int
    prompt: str
    where: str

    @property
    def key(self) -> str:
        """Length and depth, such as `2000-50`."""
        return f"{self.length}-{self.depth}"

    @property
    def messages(self) -> tuple[Message, ...]:
        """One user turn."""
        return ({"role": "user", "content": self.prompt},)

    def content(self) -> Any:
        """Returns all that decides the recall."""
        return [self.key, self.prompt, list(KEYWORDS)]


class NeedleScoring:
    """Recall of the needle's keywords, as whole words."""

    settings = NO_SETTINGS

    def score(self, prompts: Sequence[NeedlePrompt], responses: Sequence[str]) -> list[Sample]:
        """Returns the share of the keywords that each response holds, and which."""
        samples: list[Sample] = []
        for prompt, response in zip(prompts, responses, strict=True):
            keywords = keywords_found(response, KEYWORDS)
            found = {
                "length": prompt.length,
                "depth": prompt.depth,
                "num_tokens": prompt.num_tokens,
                "keywords": keywords,
                "scores": {"recall": len(keywords) / len(KEYWORDS)},
                "group": _length_label(prompt.length),
            }
            samples.append(Sample(prompt.key, prompt.prompt, response, found))
        return samples

    def summarize(self, samples: Sequence[Sample]) -> Summary:
        """Returns the mean recall, over all prompts, by length and by depth."""
        groups = {
            "length": {_length_label(length): found for length, found in _mean_by(samples, "length").items()},
            "depth": {f"{depth} %": found for depth, found in _mean_by(samples, "depth").items()},
        }
        return Summary({"recall": mean([recall_of(sample) for sample in samples])}, groups=groups)


def recall_of(sample: Sample) -> float:
    """Returns the recall of one prompt."""
    return sample.found["scores"]["recall"]


def _length_label(length: int) -> str:
    return f"{length} tokens"


def _mean_by(samples: Sequence[Sample], field: str) -> dict[int, Mapping[str, float]]:
    recalls: dict[int, list[float]] = {}
    for sample in samples:
        recalls.setdefault(sample.found[field], []).append(recall_of(sample))
    return {at: {"number": len(recalls[at]), "recall": mean(recalls[at])} for at in sorted(recalls)}


def load_needle(
    tokens: ModelTokens,
    *,
    haystack: Path,
    num_lengths: int = 8,
    num_depths: int = 11,
    min_length: int = 200,
    max_length: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    limit: int | None = None,
) -> Task:
    """Returns the needle test for one model: a prompt for each length and depth, lengths first.

    Args:
        tokens: The evaluated model's tokenizer and context.
        haystack: The text to hide the needle in: a `.txt` file, a folder of them, or JSONL (`.gz`) with `text`.
        num_lengths: Number of lengths, evenly from `min_length` to `max_length`; the paper has 20.
        num_depths: Number of depths, evenly from 0 to 100 percent; the paper has 20.
        min_length: The shortest document in tokens of the model, the needle included.
        max_length: The longest; None: what the model's context leaves for it, at most 8000.
        max_new_tokens: The longest response; its place is kept free in the model's context.
        limit: Take only the first so many prompts; None for all.

    Raises:
        UsageError: The lengths do not fit the model, or there are too few lengths or depths.
        DataError: The haystack cannot be used.
    """
    words = read_haystack(haystack)
    if NEEDLE.lower() in " ".join(words).lower():
        raise DataError(f"{haystack}: holds the needle already: {NEEDLE!r}; take another text")
    longest = _longest_document(tokens, min_length, max_length, max_new_tokens)
    lengths = _evenly(min_length, longest, num_lengths, "--needle-lengths")
    depths = _evenly(0, 100, num_depths, "--needle-depths")
    # A text that is too short for a length is repeated, as the original does.
    enough = words * (1 + longest // max(1, tokens.text(" ".join(words))))
    prompts: list[NeedlePrompt] = []
    num_words = 0
    for length in lengths:
        start = _start_for(enough, length, tokens)
        num_words = max(num_words, start)
        prompts += [_prompt(enough[:start], length, depth, tokens, max_new_tokens) for depth in depths]
    notes = [f"documents of {min_length} to {longest} tokens, the needle included; {num_depths} depths each"]
    if num_words > len(words):
        notes.append(f"{haystack}: its {len(words)} words are repeated to fill the longest documents")
    return Task(
        "needle",
        str(haystack),
        tuple(prompts[:limit]),
        tuple(prompts),
        max_new_tokens,
        NeedleScoring(),
        tuple(notes),
        draw=_draw,
    )


def _draw(samples: Sequence[Sample], model: str, folder: Path) -> None:
    from misotune.evaluation.context.plots import heat_map  # matplotlib takes half a second

    heat_map(samples, model, [folder / "needle.svg", folder / "needle.png"])


def _messages(document: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": TEMPLATE.format(document=document, question=QUESTION)},)


def _longest_document(tokens: ModelTokens, min_length: int, max_length: int | None, max_new_tokens: int) -> int:
    """Returns the longest document's length, which fits the model beside the question and the response."""
    least = 2 * tokens.text(NEEDLE)
    if min_length < least:
        raise UsageError(f"--needle-min-length {min_length}: too short for the needle and a text; allowed: {least} on")
    if tokens.context is None:
        if max_length is None:
            raise UsageError("the model's context is not known; give the longest document with --needle-max-length")
        fitting = max_length
    else:
        fitting = tokens.context - max_new_tokens - tokens.prompt(_messages(""))
    longest = min(fitting, _DEFAULT_MAX_LENGTH) if max_length is None else max_length
    if longest > fitting:
        raise UsageError(
            f"--needle-max-length {longest}: the model's context of {tokens.context} leaves {fitting} tokens beside "
            f"the question and {max_new_tokens} new tokens"
        )
    if longest <= min_length:
        raise UsageError(
            f"the longest document ({longest} tokens) must be longer than the shortest ({min_length}); "
            "change --needle-max-length or --needle-min-length"
        )
    return longest


def _evenly(first: int, last: int, number: int, option: str) -> list[int]:
    most = last - first + 1
    if not 2 <= number <= most:
        raise UsageError(f"{option} {number}: allowed: 2 to {most}")
    return [round(first + (last - first) * at / (number - 1)) for at in range(number)]


def _start_for(words: Sequence[str], length: int, tokens: ModelTokens) -> int:
    """Returns how many of the first words fill a document of a length, beside the needle."""
    room = length - tokens.text(f" {NEEDLE}")
    return longest_start(words, lambda text: tokens.text(text) <= room)


def _prompt(words: Sequence[str], length: int, depth: int, tokens: ModelTokens, max_new_tokens: int) -> NeedlePrompt:
    """Returns the prompt of one length and depth; a word or two less where the needle splits tokens."""
    most = float("inf") if tokens.context is None else tokens.context - max_new_tokens
    for number in range(len(words), -1, -1):
        document = hide_needle(" ".join(words[:number]), NEEDLE, depth)
        num_tokens = tokens.text(document)
        messages = _messages(document)
        if num_tokens <= length and tokens.prompt(messages) <= most:
            where = f"length {length}, depth {depth} %"
            return NeedlePrompt(length, depth, num_tokens, messages[0]["content"], where)
    raise AssertionError("the needle alone fits: _longest_document has seen to it")
