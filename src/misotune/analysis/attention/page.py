"""The tables and the page of an analysis of attention."""

from collections.abc import Sequence
from pathlib import Path

from misotune.analysis.attention.parts import PARTS
from misotune.analysis.attention.summary import ModelShares
from misotune.analysis.attention.verdicts import MEASURES, Estimate, contrast, has_both_verdicts
from misotune.analysis.page import Page
from misotune.analysis.table import Table

_VERDICTS = ((True, "met"), (False, "not met"), (None, "not verified"))
_MISSING = "-"


def attention_tables(models: Sequence[ModelShares]) -> list[Table]:
    """Returns the shares by part, and where there are constraints, those of one by verdict and their difference."""
    tables = [_parts_table(models)]
    if any(model.has_constraints for model in models):
        tables.append(_verdict_table(models))
    if has_both_verdicts(models):
        tables.append(_difference_table(models))
    return tables


def attention_page(models: Sequence[ModelShares], title: str, pictures: Sequence[Path], num_left_out: int) -> Page:
    """Returns what the page shows.

    Args:
        models: What was measured.
        title: Models, data and number of rows.
        pictures: SVG files: the shares, and where there is one, the verdicts.
        num_left_out: Rows.
    """
    labels = ("shares of attention by part, layer and head", "a constraint's share by verdict")
    return Page(
        heading="Where the response's attention goes",
        title=title,
        pictures=dict(zip(labels, pictures, strict=False)),
        tables=attention_tables(models),
        folded=[
            *(_layers_table(model) for model in models),
            *(_constraints_table(model) for model in models if model.has_constraints),
        ],
        notes=left_out_notes(num_left_out),
    )


def left_out_notes(num_left_out: int) -> list[str]:
    """Returns what there is to say about rows that were left out, in a line; or nothing."""
    if not num_left_out:
        return []
    rows = "row was" if num_left_out == 1 else "rows were"
    return [f"{num_left_out} {rows} left out: too long, or a constraint not found in the prompt's text"]


def _parts_table(models: Sequence[ModelShares]) -> Table:
    columns = ["part"]
    for model in models:
        columns += [model.name, "tokens"]
    rows = [
        [part, *(cell for x in models for cell in (_percent(x.mean[part], 1), f"{x.num_tokens[part]:.0f}"))]
        for part in PARTS
    ]
    return Table("shares of the response's attention in percent", columns, rows)


def _verdict_table(models: Sequence[ModelShares]) -> Table:
    rows: list[list[str]] = []
    for model in models:
        for verdict, name in _VERDICTS:
            found = model.by_verdict(verdict)
            if found.shares is not None:
                share = _percent(found.shares.mean().item(), 2)
                rows.append([model.name, name, str(found.num_constraints), share, f"{found.num_tokens:.0f}"])
    columns = ("model", "verdict", "constraints", "share", "tokens")
    return Table("one constraint's share in percent, by verdict on the response", columns, rows, frozenset({0, 1}))


def _difference_table(models: Sequence[ModelShares]) -> Table:
    rows = [
        [model.name, measure, *map(_estimate, (found.met, found.not_met, found.difference))]
        for model in models
        for measure in MEASURES
        for found in [contrast(model, measure)]
    ]
    title = "met against not met, in percent, with the standard error over rows"
    return Table(title, ("model", "measure", "met", "not met", "difference"), rows, frozenset({0, 1}))


def _layers_table(model: ModelShares) -> Table:
    layers = model.shares.mean(dim=1).tolist()
    rows = [[str(layer), *(_percent(x, 1) for x in shares)] for layer, shares in enumerate(layers, start=1)]
    return Table(f"{model.name}: shares in percent by layer", ("layer", *PARTS), rows, frozenset())


def _constraints_table(model: ModelShares) -> Table:
    names = dict(_VERDICTS)
    rows = [
        [row.id, x.text, names[x.is_met], str(x.num_tokens), _percent(x.share, 2)] for row, x in model.constraints()
    ]
    columns = ("row", "constraint", "verdict", "tokens", "share")
    return Table(f"{model.name}: every constraint, share in percent", columns, rows, frozenset({0, 1, 2}))


def _estimate(found: Estimate | None) -> str:
    if found is None:
        return _MISSING
    error = "" if found.error is None else f" ± {_percent(found.error.item(), 2)}"
    return f"{_percent(found.value.item(), 2)}{error}"


def _percent(share: float, digits: int) -> str:
    return f"{100 * share:.{digits}f}"
