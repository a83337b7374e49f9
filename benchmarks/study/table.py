"""The tables of docs/study.md, out of the result file alone.

    python -m benchmarks.study.table benchmarks/results/gpu/study.jsonl                  # prints them
    python -m benchmarks.study.table benchmarks/results/gpu/study.jsonl --page docs/study.md

Figures are percent: the mean over seeds, with its standard error where there are several. A difference to `sft` is
taken seed by seed; its p values, one a seed, are those of `misotune compare`, which pairs the prompts.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.forms import BASE, BASELINE, PROBES, VARIANTS
from benchmarks.study.paper import PAPER, averages
from benchmarks.study.pieces import FLATTEN, IFEVAL, TASKS
from benchmarks.study.responses import REPETITIVE
from benchmarks.study.results import RATE_FIGURE, Record, read_results
from benchmarks.study.together import seeds_together

BEGIN, END = "<!-- the study's results: written by benchmarks/study/table.py -->", "<!-- the end of the results -->"

STRICT, LOOSE = "inst_level_strict_acc", "inst_level_loose_acc"
# Heading -> task and figure; `Avg.` is the paper's: the mean of the task's columns before it.
COLUMNS = {
    "[S]P": (IFEVAL, "prompt_level_strict_acc"),
    "[S]I": (IFEVAL, STRICT),
    "[L]P": (IFEVAL, "prompt_level_loose_acc"),
    "[L]I": (IFEVAL, LOOSE),
    "Flatten [S]I": (FLATTEN, STRICT),
    "Flatten [L]I": (FLATTEN, LOOSE),
}
# The figures that are tested; the first decides, the others are nearly the same question.
TESTED = ("[S]I", "[S]P", "Flatten [S]I")
CRITICAL_P = 0.05


def standard_error(values: Sequence[float]) -> float | None:
    """Returns the standard error of the mean; None for a single value, of which none is known.

    >>> standard_error([1.0, 3.0]), standard_error([1.0])
    (1.0, None)
    """
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def estimate(values: Sequence[float], *, sign: bool = False) -> str:
    """Returns the mean of shares in percent, with the standard error over them.

    >>> estimate([0.30, 0.32, 0.34]), estimate([-0.015], sign=True)
    ('32.0 ± 1.2', '-1.5')
    """
    mean = f"{100 * statistics.mean(values):{'+' if sign else ''}.1f}"
    error = standard_error(values)
    return mean if error is None else f"{mean} ± {100 * error:.1f}"


class Results:
    """The records of one study, by what they are.

    Args:
        records: All of them.
        study: Which; None: that of the last record.
    """

    def __init__(self, records: Sequence[Record], study: str | None = None) -> None:
        chosen = study or records[-1]["study"]
        self.records = [record for record in records if record["study"] == chosen]
        if not self.records:
            known = ", ".join(sorted({record["study"] for record in records}))
            sys.exit(f"no result of the study {chosen}; there are {known}")
        self.models = list(dict.fromkeys(record["model"] for record in self.records))

    def of(self, kind: str, model: str, variant: str) -> list[Record]:
        """Returns the records of a kind for a model and variant, by seed; of a piece done twice, the last one."""
        found = {
            record["piece"]: record
            for record in self.records
            if (record["kind"], record["model"], record["variant"]) == (kind, model, variant)
        }
        return sorted(found.values(), key=lambda record: record.get("seed", 0))

    def variants(self, model: str) -> list[str]:
        """Returns the variants that were trained and scored, in the table's order."""
        return [variant for variant in VARIANTS if self.of("run", model, variant)]

    def probes(self, model: str) -> list[str]:
        """Returns the probes that were trained and scored."""
        return [probe for probe in PROBES if self.of("run", model, probe)]

    def figures(self, model: str, variant: str, column: str) -> list[float]:
        """Returns a figure of each seed; of the base model the only one."""
        task, figure = COLUMNS[column]
        records = self.of(BASE if variant == BASE else "run", model, variant)
        return [record["scores"][task]["figures"][figure] for record in records]

    def averages(self, model: str, variant: str, task: str) -> list[float]:
        """Returns the mean of a task's figures, seed by seed."""
        columns = [column for column, (of_task, _) in COLUMNS.items() if of_task == task]
        return [
            statistics.mean(values) for values in zip(*(self.figures(model, variant, c) for c in columns), strict=True)
        ]

    def comparisons(self, model: str, variant: str, task: str, against: str = BASELINE) -> list[Record]:
        """Returns what `misotune compare` found against another variant, or the base model, seed by seed."""
        found = self.of("comparison", model, variant)
        return [record for record in found if (record["task"], record["against"]) == (task, against)]

    def compared(self, model: str, variant: str, column: str, against: str = BASELINE) -> list[Record]:
        """Returns its lines about a figure, seed by seed."""
        task, figure = COLUMNS[column]
        return [
            line
            for record in self.comparisons(model, variant, task, against)
            for line in record["overall"]
            if line["metric"] == figure
        ]

    def differences(
        self, model: str, variant: str, column: str, against: str = BASELINE
    ) -> tuple[list[float], list[float]]:
        """Returns the differences and their p values, seed by seed."""
        lines = self.compared(model, variant, column, against)
        return [line["difference"] for line in lines], [line["p"] for line in lines]


def render(results: Results, others: Sequence[Results] = ()) -> str:
    """Returns the Markdown between the marks; `others` are studies that changed something of this one."""
    parts = [provenance(results)]
    for model in results.models:
        parts += [f"### {model}"]
        for title, make in _TABLES.items():
            table = make(results, model)
            if table:
                parts += [f"**{title}**", table]
    parts += ["### The paper's figures beside ours", beside_paper(results)]
    for model in results.models:
        table = one_thing_changed(results, others, model)
        if table:
            parts += [f"### One thing changed at a time: {model}", table]
        parts += [
            part
            for variant in results.variants(model)
            if (table := types_run_by_run([results, *others], model, variant))
            for part in (f"**`{variant}` less `{BASELINE}` by constraint type, run by run, in points**", table)
        ]
    return "\n\n".join(parts)


def provenance(results: Results) -> str:
    """Returns where the figures come from, and what the result is, in words."""
    text = origin(results)
    run = next((record for record in results.records if record["kind"] == "run"), None)
    if run is None:
        return f"{text} No variant has been scored on IFEval yet."
    scores = run["scores"][IFEVAL]
    settings = scores["settings"]
    versions = ", ".join(f"{name} {number}" for name, number in scores["versions"].items())
    seeds = sorted({record["seed"] for record in results.records if record["kind"] == "run"})
    return (
        f"{text} {scores['num_prompts']:,} prompts of IFEval, {run['scores'][FLATTEN]['num_prompts']:,} of "
        f"IFEval-Flatten, greedy, responses of {settings['max_new_tokens']} tokens at most; seeds "
        f"{', '.join(map(str, seeds))}; {versions}.\n\n"
        + "\n".join(
            f"- {sentence}"
            for model in results.models
            for sentence in [*findings(results, model), *together(results, model)]
        )
    )


def origin(results: Results) -> str:
    """Returns when, with what and on what a study was made."""

    def several(key: str) -> str:
        return ", ".join(sorted({str(record[key]) for record in results.records}))

    return (
        f"Form `{several('form')}`, {several('date')}, commit {several('commit')}, {several('hardware')}, "
        f"torch {several('torch')}; study `{results.records[0]['study']}`."
    )


def findings(results: Results, model: str) -> list[str]:
    """Returns what the tests say about each variant in plain words, by the figure that decides."""
    sentences: list[str] = []
    for variant in results.variants(model):
        values, tests = results.differences(model, variant, TESTED[0])
        if not values:
            continue
        higher = sum(value > 0 and p < CRITICAL_P for value, p in zip(values, tests, strict=True))
        lower = sum(value < 0 and p < CRITICAL_P for value, p in zip(values, tests, strict=True))
        verdict = f"better than `{BASELINE}` beyond the noise with {higher} of {len(values)} seeds, worse with {lower}"
        lines = results.compared(model, variant, TESTED[0])
        intervals = "; ".join(f"{100 * line['low']:+.1f} to {100 * line['high']:+.1f}" for line in lines)
        sentences.append(
            f"{model}, `{variant}`: {estimate(values, sign=True)} points of instruction strict (95 % interval over "
            f"prompts, for each seed: {intervals}); {verdict}."
        )
    return sentences


def together(results: Results, model: str) -> list[str]:
    """Returns what the tests of all seeds together say, where there are several and verdicts were kept."""
    sentences: list[str] = []
    for variant in results.variants(model):
        runs = results.of("run", model, variant)
        baselines = {record["seed"]: record for record in results.of("run", model, BASELINE)}
        references = {BASELINE: [baselines[record["seed"]] for record in runs if record["seed"] in baselines]}
        references[BASE] = results.of(BASE, model, BASE) * len(runs)
        for name, theirs in references.items():
            if name == variant or len(theirs) != len(runs) or len(runs) < 2:
                continue
            found = seeds_together(runs, theirs)
            if found is not None:
                sentences.append(
                    f"{model}, `{variant}` against `{name}`, all {found.num_seeds} seeds together: "
                    f"{100 * found.difference:+.1f} points of instruction strict (95 % interval over prompts: "
                    f"{100 * found.low:+.1f} to {100 * found.high:+.1f}), p {p_text(found.p)}."
                )
    return sentences


def accuracy(results: Results, model: str) -> str:
    """Returns the table that stands for the paper's tables 1 and 2."""
    rows = []
    for variant in [BASE, *results.variants(model)]:
        if not results.figures(model, variant, TESTED[0]):
            continue
        records = results.of("run", model, variant)
        rate = f"{records[0]['learning_rate']:g}" if records else "-"
        flat = [column for column in COLUMNS if column.startswith("Flatten")]
        cells = [estimate(results.figures(model, variant, column)) for column in COLUMNS if column not in flat]
        cells += [estimate(results.averages(model, variant, IFEVAL))]
        cells += [estimate(results.figures(model, variant, column)) for column in flat]
        cells += [estimate(results.averages(model, variant, FLATTEN))]
        rows.append([f"`{variant}`", rate, str(len(records) or "-"), *cells])
    heading = ["", "rate", "seeds", "[S]P", "[S]I", "[L]P", "[L]I", "Avg.", "Flatten [S]I", "[L]I", "Avg."]
    return markdown(heading, rows)


def against_baseline(results: Results, model: str) -> str:
    """Returns the differences to the baseline, with p values."""
    return _differences(results, model, BASELINE)


def against_base(results: Results, model: str) -> str:
    """Returns the differences to the model as it was, with p values, and with which seeds."""
    table = _differences(results, model, BASE)
    found = {
        variant: [record["seed"] for record in results.comparisons(model, variant, IFEVAL, BASE)]
        for variant in results.variants(model)
    }
    told = [f"`{name}`: seeds {', '.join(map(str, seeds))}" for name, seeds in found.items() if seeds]
    return f"{table}\n\nCompared were {'; '.join(told)}." if table else ""


def _differences(results: Results, model: str, against: str) -> str:
    rows = []
    for variant in [BASE, *results.variants(model)]:
        cells: list[str] = []
        for column in TESTED:
            values, tests = results.differences(model, variant, column, against)
            if values:
                cells += [estimate(values, sign=True), " ".join(map(p_text, tests))]
        if cells:
            rows.append([f"`{variant}`", *cells])
    return markdown(["", *(heading for column in TESTED for heading in (column, "p"))], rows)


def cost(results: Results, model: str) -> str:
    """Returns tokens, steps, time and memory of training, beside the accuracy that they bought."""
    rows, told = [], []
    baseline = _mean_training(results.of("run", model, BASELINE))
    for variant in results.variants(model):
        records = results.of("run", model, variant)
        found = _mean_training(records)
        rows.append(
            [
                f"`{variant}`",
                f"{found['samples']:,.0f}",
                f"{found['inputs_per_sample']:.2f}",
                f"{found['steps']:,.0f}",
                f"{found['tokens']:,.0f}",
                f"{found['trained_tokens']:,.0f}",
                f"{found['train_s']:,.0f}",
                f"{found['trained_tokens'] / found['train_s']:,.0f}" if found["train_s"] else "-",
                f"{found['peak_memory_gib']:.1f}",
                estimate(results.figures(model, variant, TESTED[0])),
            ]
        )
        other = [key for key in ("trained_tokens", "steps", "rows") if found[key] != baseline[key]]
        if other:
            what = ", ".join(
                f"{found[key]:,.0f} {key.replace('_', ' ')} in place of {baseline[key]:,.0f}" for key in other
            )
            told.append(f"`{variant}` differs from `{BASELINE}`: {what}.")
        told += [f"`{variant}`, seed {r['seed']}, dropped {d}." for r in records if (d := r["training"]["dropped"])]
    heading = [
        "",
        "samples",
        "inputs",
        "steps",
        "tokens",
        "trained tokens",
        "seconds",
        "trained tokens/s",
        "GiB",
        "[S]I",
    ]
    same = f"All others have as many trained tokens, steps and rows as `{BASELINE}`."
    jobs = {record["jobs"] for record in results.records if record["kind"] == "run"}
    shared = f" Seconds: {max(jobs)} runs shared the machine." if max(jobs, default=1) > 1 else ""
    return markdown(heading, rows) + "\n\n" + " ".join([*told, same]) + shared if rows else ""


def _mean_training(records: Iterable[Record]) -> dict[str, float]:
    kept = [record["training"] for record in records]
    numbers = [key for key, value in kept[0].items() if isinstance(value, int | float)]
    return {key: statistics.mean(training[key] for training in kept) for key in numbers}


def rates(results: Results, model: str) -> str:
    """Returns the validation accuracies that the rates were chosen by."""
    found = {
        variant: {
            record["learning_rate"]: record["scores"]["validation"]["figures"][RATE_FIGURE]
            for record in results.of("rate", model, variant)
        }
        for variant in VARIANTS
    }
    tried = sorted({rate for of_variant in found.values() for rate in of_variant})
    rows = [
        [f"`{variant}`", *(f"{100 * of_variant[rate]:.1f}" if rate in of_variant else "-" for rate in tried)]
        for variant, of_variant in found.items()
        if of_variant
    ]
    return markdown(["", *(f"{rate:g}" for rate in tried)], rows)


def responses(results: Results, model: str) -> str:
    """Returns how responses to IFEval read: long, and in circles."""
    rows = []
    for variant in [BASE, *results.variants(model), *results.probes(model)]:
        found = results.of("responses", model, variant)
        if found:
            shares = [record["num_repetitive"] / record["num_responses"] for record in found]
            parts = [
                [share for record in found if (share := record[f"strict_{part}"]) is not None]
                for part in ("repetitive", "others")
            ]
            cells = [estimate(values) if values else "-" for values in (shares, *parts)]
            rows.append([f"`{variant}`", f"{statistics.mean(record['words'] for record in found):.0f}", *cells])
    table = markdown(["", "words", "run in circles", "[S]I of these", "[S]I of the others"], rows)
    told = f"A response runs in circles when at least {REPETITIVE:.0%} of its 4-grams of words stood in it before."
    return f"{table}\n\n{told}" if rows else ""


def by_type(results: Results, model: str) -> str:
    """Returns the share of constraints met, strictly, by their type."""
    columns = [name for name in (BASE, *results.variants(model)) if results.figures(model, name, TESTED[0])]
    scores = {
        name: [record["scores"][IFEVAL]["types"] for record in results.of(BASE if name == BASE else "run", model, name)]
        for name in columns
    }
    if not columns:
        return ""
    rows = []
    for label, line in sorted(scores[columns[0]][0].items()):
        cells = [estimate([of_seed[label]["strict"] for of_seed in scores[name]]) for name in columns]
        rows.append([label, str(line["number"]), *cells])
    table = markdown(["", "number", *(f"`{name}`" for name in columns)], rows)
    return table + "\n\n" + _types_that_differ(results, model)


def _types_that_differ(results: Results, model: str) -> str:
    found = [
        f"`{variant}` (seed {record['seed']}): {line['label']} {100 * line['difference']:+.1f}, "
        f"p {p_text(line['corrected_p'])}"
        for variant in results.variants(model)
        for record in results.comparisons(model, variant, IFEVAL)
        for line in record["types"]
        if line["corrected_p"] is not None and line["corrected_p"] < CRITICAL_P
    ]
    if not any(results.comparisons(model, variant, IFEVAL) for variant in results.variants(model)):
        return ""  # not yet compared
    if not found:
        return f"Corrected for the number of types (Holm), none differs from `{BASELINE}` beyond the noise."
    return f"Beyond the noise against `{BASELINE}`, corrected for the number of types (Holm): {'; '.join(found)}."


def beside_paper(results: Results) -> str:
    """Returns the averages of IFEval and of IFEval-Flatten and the gain over plain tuning: theirs, ours."""
    rows = []
    for variant in VARIANTS:
        cells: list[str] = []
        for of_model in PAPER.values():
            if variant in of_model:
                pairs = zip(averages(of_model[variant]), averages(of_model[BASELINE]), strict=True)
                cells += [f"{value:.1f} ({value - baseline:+.1f})" for value, baseline in pairs]
            else:
                cells += ["-", "-"]
        for model in results.models:
            for task in TASKS:
                values, baseline = (results.averages(model, name, task) for name in (variant, BASELINE))
                pairs = list(zip(values, baseline, strict=False))
                gained = statistics.mean(value - other for value, other in pairs) if pairs else 0.0
                cells.append(f"{100 * statistics.mean(values):.1f} ({100 * gained:+.1f})" if pairs else "-")
        if any(cell != "-" for cell in cells):
            rows.append([f"`{variant}`", *cells])
    names = [*(f"{name}, paper" for name in PAPER), *results.models]
    told = f"Means of the four figures and of the two; in brackets what is gained over `{BASELINE}`, in points."
    table = markdown(["", *(f"{name}: {what}" for name in names for what in ("IFEval", "Flatten"))], rows)
    return f"{told} The paper's means are taken from its rounded figures.\n\n{table}"


def one_thing_changed(results: Results, others: Sequence[Results], model: str) -> str:
    """Returns what became of the difference to the baseline when one thing was changed."""
    probes = results.probes(model)
    if not probes and not others:
        return ""
    beside = {BASELINE, *(PROBES[probe] for probe in probes), *(name for x in others for name in x.variants(model))}
    asked = [(results, "-", variant) for variant in results.variants(model) if variant in beside]
    asked += [(results, "recipe", probe) for probe in probes]
    for other in others:
        changes = _changes(other)
        own_base = [BASE] if other.figures(model, BASE, TESTED[0]) else []
        asked += [(other, changes, variant) for variant in [*own_base, *other.variants(model)]]
    rows = []
    for study, what, variant in asked:
        records = study.of("run", model, variant)
        cells = [f"{records[0]['learning_rate']:g}", str(len(records))] if records else ["-", "-"]
        cells += [estimate(study.figures(model, variant, column)) for column in TESTED[:2]]
        for against in (BASELINE, BASE):
            values, tests = study.differences(model, variant, TESTED[0], against)
            cells += [estimate(values, sign=True), " ".join(map(p_text, tests))] if values else ["-", "-"]
        rows.append([f"`{variant}`", what, *cells])
    heading = ["", "changed", "rate", "seeds", *TESTED[:2], f"{TESTED[0]} against `{BASELINE}`", "p"]
    heading += [f"{TESTED[0]} against `{BASE}`", "p"]
    told = [
        f"- {_changes(other)}: {sentence}" for other in others for sentence in [origin(other), *together(other, model)]
    ]
    return "\n\n".join(filter(None, [markdown(heading, rows), "\n".join(told)]))


def types_run_by_run(studies: Sequence[Results], model: str, variant: str) -> str:
    """Returns a variant's difference to the baseline by type, run by run; nothing where one study alone has it."""
    pairs = {}
    for number, study in enumerate(studies):
        baselines = {record["seed"]: record for record in study.of("run", model, BASELINE)}
        pairs |= {
            (number, run["seed"]): [each["scores"][IFEVAL]["types"] for each in (run, baselines[run["seed"]])]
            for run in study.of("run", model, variant)
            if run["seed"] in baselines
        }
    if variant == BASELINE or len({number for number, _ in pairs}) < 2:
        return ""
    rows = []
    for label, line in next(iter(pairs.values()))[0].items():
        values = [100 * (ours[label]["strict"] - theirs[label]["strict"]) for ours, theirs in pairs.values()]
        cells = [f"{value:+.0f}" if value else "0" for value in values]
        rows.append((statistics.mean(values), [label, str(line["number"]), *cells]))
    rows.sort(key=lambda row: row[0], reverse=True)
    heading = [
        "",
        "number",
        *(", ".join([*_changed(studies[number]).values(), f"seed {seed}"]) for number, seed in pairs),
    ]
    return markdown(heading, [cells for _, cells in rows])


def _changes(study: Results) -> str:
    return ", ".join(f"{key}: {value}" for key, value in _changed(study).items())


def _changed(study: Results) -> dict[str, str]:
    return {
        key: " ".join(map(str, value)) if isinstance(value, list) else str(value)
        for key, value in study.records[-1]["changed"].items()
    }


def p_text(p: float) -> str:
    """Returns a p value with as many digits as say something.

    >>> p_text(0.0004), p_text(0.0312), p_text(0.5)
    ('<0.001', '0.031', '0.50')
    """
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table; nothing without rows."""
    if not rows:
        return ""
    marks = ["---", *("---:" for _ in heading[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heading, marks, *rows])


def write_page(page: Path, content: str) -> None:
    """Puts the content between the marks of a page.

    Raises:
        ValueError: The page does not have each mark once, in order.
    """
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{page}: needs the lines {BEGIN!r} and {END!r}, once each")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{content}\n\n{END}{after}", encoding="utf-8")


_TABLES: dict[str, Callable[[Results, str], Any]] = {
    "Accuracy": accuracy,
    f"Differences to `{BASELINE}` in points, and p for each seed": against_baseline,
    "Differences to the model as it was": against_base,
    "What training cost": cost,
    "By constraint type, instruction strict": by_type,
    "How the responses to IFEval read, percent": responses,
    "Learning rates on the validation split, instruction strict": rates,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="result files")
    parser.add_argument("--study", help="which of the studies in them (default: the first with its form's own sizes)")
    parser.add_argument("--page", type=Path, help="write the tables into this page")
    options = parser.parse_args()
    records = read_results(options.results)
    if not records:
        sys.exit(f"{', '.join(map(str, options.results))}: no results")
    studies = list(dict.fromkeys(record["study"] for record in records))
    unchanged = next((record["study"] for record in records if not record["changed"]), studies[0])
    main_study = options.study or unchanged
    others = [Results(records, study) for study in studies if study != main_study]
    content = render(Results(records, main_study), [other for other in others if other.records[-1]["changed"]])
    if options.page is None:
        print(content)
    else:
        write_page(options.page, content)


if __name__ == "__main__":
    main()
