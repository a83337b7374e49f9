"""How responses read beside what they score: a text that runs in circles may meet a constraint, and follows nothing."""

from pathlib import Path
from typing import Any

from benchmarks.study.rows import Row, read_jsonl

from misotune.analysis.dilution.continuations import repeated_4grams

# A response whose 4-grams of words stood in it before to at least this share.
REPETITIVE = 0.3


def read_responses(folder: Path) -> dict[str, Any]:
    """Returns what a result's `samples.jsonl` says of the responses: shares of 1.

    Args:
        folder: The result folder of IFEval: every sample has `response` and, by constraint, `strict`.
    """
    samples = list(read_jsonl(folder / "samples.jsonl"))
    words = [sample["response"].split() for sample in samples]
    circling = [repeated_4grams(text) >= REPETITIVE for text in words]
    parts = {
        name: [sample for sample, is_circling in zip(samples, circling, strict=True) if is_circling == wanted]
        for name, wanted in (("repetitive", True), ("others", False))
    }
    return {
        "num_responses": len(samples),
        "words": sum(map(len, words)) / len(samples),
        "repetitive_from": REPETITIVE,
        **{f"num_{name}": len(chosen) for name, chosen in parts.items()},
        **{f"strict_{name}": strict_share(chosen) for name, chosen in parts.items()},
    }


def strict_share(samples: list[Row]) -> float | None:
    """Returns the share of constraints that are met strictly; None without any.

    >>> strict_share([{"strict": [True, False]}, {"strict": [True]}, {"strict": [False]}])
    0.5
    """
    verdicts = [verdict for sample in samples for verdict in sample["strict"]]
    return sum(verdicts) / len(verdicts) if verdicts else None
