"""A comparison in words: names, shares in percent, differences in points, p values and the verdict."""

from collections.abc import Sequence
from pathlib import Path

from misotune.evaluation.comparison.difference import Difference, verdict
from misotune.evaluation.comparison.reading import LETTERS, Result
from misotune.report.figure_names import figure_name

_LONGEST_NAME = 40


def percent(share: float) -> str:
    """Returns a share in percent, without the sign.

    >>> percent(0.77079)
    '77.1'
    """
    return f"{100 * share:.1f}"


def points(share: float) -> str:
    """Returns a difference of shares in percentage points.

    >>> points(0.0213), points(-0.5), points(-0.00001)
    ('+2.1', '-50.0', '0.0')
    """
    text = f"{100 * share:+.1f}"
    return "0.0" if float(text) == 0 else text


def interval(difference: Difference) -> str:
    """Returns the 95 % interval in points."""
    return f"{points(difference.low)} to {points(difference.high)}"


def p_text(p: float) -> str:
    """Returns a p value.

    >>> p_text(0.03125), p_text(0.0499), p_text(0.00001), p_text(1.0)
    ('0.031', '0.0499', '<0.001', '1')
    """
    if p < 0.001:
        return "<0.001"
    text = f"{p:.3f}"
    # What is below the threshold never reads as if it stood at it, nor the other way about.
    text = f"{p:.4f}" if text == "0.050" else text
    return text.rstrip("0").rstrip(".") if p >= 0.9995 else text


def noise_text(difference: Difference) -> str:
    """Returns the smallest difference that could be told from chance, in points."""
    return "-" if difference.noise is None or difference.noise > 1 else f"±{percent(difference.noise)}"


def count_heading(table: Sequence[Difference]) -> str:
    """Returns the heading of a table's column of `count_text`."""
    has_parts = any(line.num_parts not in (None, line.num_prompts) for line in table)
    return "prompts (parts)" if has_parts else "prompts"


def count_text(difference: Difference) -> str:
    """Returns the number of prompts, and of their parts where the metric has parts."""
    if difference.num_parts is None or difference.num_parts == difference.num_prompts:
        return f"{difference.num_prompts:,}"
    return f"{difference.num_prompts:,} ({difference.num_parts:,})"


def sentence(difference: Difference, letters: tuple[str, str]) -> str:
    """Returns the verdict with its numbers."""
    p = p_text(difference.p)
    told = (
        f"{verdict(difference, letters)}: {figure_name(difference.metric)} {percent(difference.a)} % in {letters[0]}, "
        f"{percent(difference.b)} % in {letters[1]}, {points(difference.difference)} points "
        f"(95 % interval {interval(difference)}, p {p if p.startswith('<') else f'= {p}'})"
    )
    return told if difference.better else f"{told}; {reach(difference)}"


def reach(difference: Difference) -> str:
    """Returns what the number of prompts could have shown."""
    prompts = f"{difference.num_prompts:,} prompt{'s' if difference.num_prompts > 1 else ''}"
    if difference.num_clusters is not None:
        prompts += f" in {difference.num_clusters:,} cluster{'s' if difference.num_clusters > 1 else ''}"
    if noise_text(difference) == "-":
        return f"{prompts} could show no difference at all"
    return f"a difference below {percent(difference.noise or 0)} points cannot be told from chance on {prompts}"


def lettered_names(results: Sequence[Result]) -> list[str]:
    """Returns letter and short name of each result, A the first.

    A name is the last part of the model's path; where two would be the same, the whole of it, or else the folder.
    """
    last_parts = [Path(result.model).name or result.model for result in results]
    for names in (last_parts, [result.model for result in results], [str(result.folder) for result in results]):
        if len(set(names)) == len(names):
            break
    return [f"{letter}: {_cut(name)}" for letter, name in zip(LETTERS, names, strict=False)]


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"
