"""The result folder of an analysis of attention.

FOLDER/
    attention.json        settings, versions, and for every model means, layers, heads, verdicts and rows
    attention.csv         the shares, one line for each model, part, layer and head
    constraints.csv       one line for each model, row and constraint, with its verdict
    attention.svg, .png   the shares by part, layer and head
    verdicts.svg, .png    where some constraints are met and others not: one constraint's share by verdict
    index.html            all of it on one page
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from misotune.analysis.attention.page import attention_page
from misotune.analysis.attention.parts import PARTS
from misotune.analysis.attention.plots import draw_attention
from misotune.analysis.attention.summary import ModelShares
from misotune.analysis.attention.verdict_plots import draw_verdicts
from misotune.analysis.attention.verdicts import has_both_verdicts
from misotune.analysis.page import write_page
from misotune.analysis.result_folder import whole_result

SHARES_FILE = "attention.csv"
CONSTRAINTS_FILE = "constraints.csv"
PICTURES = ("attention.svg", "attention.png")
VERDICT_PICTURES = ("verdicts.svg", "verdicts.png")


def write_attention(
    folder: Path, result: Mapping[str, Any], models: Sequence[ModelShares], title: str, command: str | None = None
) -> None:
    """Writes the folder, beside its place first and renamed last, so that it is whole when it is there.

    Args:
        folder: Where to.
        result: The content of attention.json.
        models: What was measured.
        title: Models, data and number of rows: the picture's second line.
        command: The command that gave the result, for the page; None: not known.

    Raises:
        UsageError: `folder` holds something else than an older result.
        RunError: The folder cannot be written.
    """
    with whole_result(folder, "attention", result) as partial:
        _write_shares(partial / SHARES_FILE, models)
        _write_constraints(partial / CONSTRAINTS_FILE, models)
        draw_attention(models, title, [partial / name for name in PICTURES])
        drawn = [partial / PICTURES[0]]
        if has_both_verdicts(models):
            draw_verdicts(models, title, [partial / name for name in VERDICT_PICTURES])
            drawn.append(partial / VERDICT_PICTURES[0])
        write_page(partial, attention_page(models, title, drawn, result["num_left_out"]), result, command)


def _write_shares(path: Path, models: Sequence[ModelShares]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("model", "part", "layer", "head", "share"))
        for model in models:
            for part, layers in zip(PARTS, model.shares.permute(2, 0, 1).tolist(), strict=True):
                for layer, heads in enumerate(layers, start=1):
                    writer.writerows((model.name, part, layer, head, f"{x:.6f}") for head, x in enumerate(heads, 1))


def _write_constraints(path: Path, models: Sequence[ModelShares]) -> None:
    verdicts = {True: "met", False: "not met", None: ""}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("model", "row", "constraint", "verdict", "tokens", "share"))
        for model in models:
            for row, x in model.constraints():
                writer.writerow((model.name, row.id, x.text, verdicts[x.is_met], x.num_tokens, f"{x.share:.6f}"))
