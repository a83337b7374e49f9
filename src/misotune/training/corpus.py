"""The training corpus: a prepared dataset as token ids, with an account of every row."""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from misotune.data.dataset import read_dataset
from misotune.errors import LayoutError, RunError
from misotune.layout import ChatTemplate, Chunking, EncodedSample, encode_sample
from misotune.samples import Mode, select_inputs

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a sample may be, in tokens; see the recipe's section `data`."""

    max_length: int
    too_long: Literal["drop", "cut"]
    max_sample_length: int | None = None


@dataclass(slots=True)
class Corpus:
    """Encoded samples in the dataset's order, and what became of the others.

    Attributes:
        samples: What is trained on.
        num_rows: Rows read.
        num_cut: Samples whose output was cut to the limit.
        dropped: Number of samples dropped, by reason.
        examples: For each reason, the id of the first row.
    """

    samples: list[EncodedSample]
    num_rows: int
    num_cut: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def num_dropped(self) -> int:
        """Samples that are not trained on."""
        return sum(self.dropped.values())

    def account(self) -> dict[str, Any]:
        """Returns the account as it stands in `plan.json`."""
        reasons = {reason: {"samples": n, "first": self.examples[reason]} for reason, n in self.dropped.items()}
        return {"rows": self.num_rows, "samples": len(self.samples), "cut": self.num_cut, "dropped": reasons}


def read_corpus(
    path: Path,
    template: ChatTemplate,
    *,
    mode: Mode,
    roles: Collection[str],
    limits: Limits,
    max_dropped: float,
    chunking: Chunking | None = None,
    on_progress: Progress | None = None,
) -> Corpus:
    """Returns the samples of a prepared dataset as token ids.

    Args:
        path: Dataset folder, or a JSONL file of multi-input rows.
        template: The model's chat template.
        mode: How inputs are chosen from a row.
        roles: For para and flat, the roles to include.
        limits: How long a sample may be.
        max_dropped: Share of samples that may be dropped, 0 to 1.
        chunking: For succ, how inputs are cut: prefixes of chunks count as tokens too.
        on_progress: Called with (rows done, rows).

    Raises:
        RunError: More than `max_dropped` of the samples would be dropped, or none is left.
    """
    rows = read_dataset(path)
    corpus = Corpus(samples=[], num_rows=len(rows))
    reasons: Counter[str] = Counter()
    for done, row in enumerate(rows, start=1):
        for sample in select_inputs(row, mode, roles):
            try:
                encoded = encode_sample(sample, template)
                fitted = _fit(encoded, limits, chunking)
            except LayoutError as error:
                encoded, fitted = None, str(error)
            if isinstance(fitted, EncodedSample):
                corpus.samples.append(fitted)
                corpus.num_cut += fitted is not encoded
            else:
                reasons[fitted] += 1
                corpus.examples.setdefault(fitted, sample.id)
        if on_progress:
            on_progress(done, len(rows))
    corpus.dropped.update(reasons.most_common())
    _check_account(corpus, path, max_dropped)
    return corpus


def _fit(encoded: EncodedSample, limits: Limits, chunking: Chunking | None) -> EncodedSample | str:
    """Returns the sample within the limits, or why it is dropped."""
    room = chunking.room(encoded) if chunking else 0
    if encoded.longest_pair + room > limits.max_length:
        fitted = encoded.cut(limits.max_length - room) if limits.too_long == "cut" else None
        if fitted is None:
            what = "an input" if limits.too_long == "cut" else "a pair of input and output"
            return f"{what} is longer than data.max_length ({limits.max_length} tokens)"
        encoded = fitted
    if limits.max_sample_length is not None and encoded.num_tokens + room > limits.max_sample_length:
        return f"all inputs and the output are longer than data.max_sample_length ({limits.max_sample_length} tokens)"
    return encoded


def _check_account(corpus: Corpus, path: Path, max_dropped: float) -> None:
    total = len(corpus.samples) + corpus.num_dropped
    if corpus.num_dropped <= max_dropped * total and corpus.samples:
        return
    reasons = "; ".join(
        f"{number} x {reason} (first: row {corpus.examples[reason]})" for reason, number in corpus.dropped.items()
    )
    raise RunError(
        f"{path}: {corpus.num_dropped} of {total} samples would be dropped, more than data.max_dropped="
        f"{max_dropped:g} allows: {reasons or 'the dataset is empty'}"
    )
