"""The model card's section on scores: the model's own, and what training changed against the base model."""

import json
from collections.abc import Sequence
from typing import Any

from misotune.export.card_tables import table
from misotune.report.against_base import AgainstBase, is_stale, read_against_base, tasks_of_run
from misotune.report.figure_names import figure_name
from misotune.runs import RunFolder


def scores_section(run: RunFolder) -> str:
    """Returns the figures of every task, and how they stand to those of the model that the run started from."""
    tasks = tasks_of_run(run)
    if not tasks:
        return "Not evaluated before the export: `misotune eval` does it."
    files = (run.scores / task / "scores.json" for task in tasks)
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return "\n\n".join([*_figures(found), *_against_base(run, tasks)])


def _figures(found: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a table for the tasks that have the same figures."""
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for scores in found:
        alike.setdefault(tuple(scores["figures"]), []).append(scores)
    tables = [
        table(
            ["task", "prompts", *map(figure_name, figures)],
            [
                [scores["task"], f"{scores['num_prompts']:,}", *map(_percent, scores["figures"].values())]
                for scores in group
            ],
        )
        for figures, group in alike.items()
    ]
    return ["In percent; a prompt counts when all its constraints are met.", *tables]


def _against_base(run: RunFolder, tasks: Sequence[str]) -> list[str]:
    measured = [found for task in tasks if (found := read_against_base(run, task)) is not None]
    stale = [task for task in tasks if is_stale(run, task)]
    missing = [task for task in tasks if task not in stale and task not in [found.task for found in measured]]
    parts = [f"Against its base model: {found.finding()}." for found in measured]
    if measured:
        parts += [_changes(measured), _explanation(measured)]
    if stale:
        parts.append(
            f"The comparison with its base model on {_listed(stale)} is not of these scores, and is not shown: they "
            f"were made since, or on other prompts or with other settings. {_cure(run, stale)} makes it again."
        )
    if missing:
        parts.append(
            f"What its base model scores on {_listed(missing)} was not measured, so that it is not known here what "
            f"training gained or lost: {_cure(run, missing)} measures it."
        )
    return parts


def _changes(measured: Sequence[AgainstBase]) -> str:
    rows = [
        [
            found.task,
            figure_name(change.figure),
            change.direction or "within the noise",
            _percent(change.base),
            _percent(change.tuned),
            change.difference_text,
            change.interval_text,
        ]
        for found in measured
        for change in found.changes
    ]
    head = ["task", "figure", "verdict", "base model", "this model", "difference", "95 % interval"]
    return table(head, rows, num_text_columns=3)


def _explanation(measured: Sequence[AgainstBase]) -> str:
    notes = [f"{found.task}: {note}" for found in measured for note in found.notes]
    told = (
        "Figures in percent, differences in points. Both models answered the same prompts with the same settings; rose "
        "and fell are beyond what chance does to these prompts (paired test, p < 0.05)."
    )
    return "\n\n".join([told, *(f"- {note}" for note in notes)])


def _cure(run: RunFolder, tasks: Sequence[str]) -> str:
    return f"`misotune eval {' '.join(tasks)} --model {run.path} --base`"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
