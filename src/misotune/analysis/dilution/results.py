"""The result folder of an analysis of dilution.

FOLDER/
    dilution.json         settings, rows, shares by weighting, number of inputs and layer; fluency, where measured
    dilution.csv          the shares, one line for each weighting, number of inputs and layer
    dilution.svg, .png    the picture
    index.html            all of it on one page
    continuations.jsonl   the texts, one a line, where they were asked for
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from misotune.analysis.dilution.continuations import Continuation, fluency
from misotune.analysis.dilution.page import dilution_page
from misotune.analysis.dilution.plots import draw_dilution
from misotune.analysis.dilution.shares import Dilution
from misotune.analysis.page import write_page
from misotune.analysis.result_folder import whole_result

SHARES_FILE = "dilution.csv"
PICTURES = ("dilution.svg", "dilution.png")
TEXTS_FILE = "continuations.jsonl"


def write_result(
    folder: Path,
    result: Mapping[str, Any],
    dilution: Dilution,
    texts: Sequence[Continuation],
    title: str,
    command: str | None = None,
) -> None:
    """Writes the folder, beside its place first and renamed last, so that it is whole when it is there.

    Args:
        folder: Where to.
        result: The content of dilution.json.
        dilution: The shares.
        texts: The continuations; none: no file of them.
        title: The picture's second line.
        command: The command that gave the result, for the page; None: not known.

    Raises:
        UsageError: `folder` holds something else than an older result.
        RunError: The folder cannot be written.
    """
    with whole_result(folder, "dilution", result) as partial:
        _write_shares(partial / SHARES_FILE, dilution)
        draw_dilution(dilution, title, [partial / name for name in PICTURES])
        if texts:
            lines = (json.dumps(asdict(text), ensure_ascii=False) + "\n" for text in texts)
            (partial / TEXTS_FILE).write_text("".join(lines), encoding="utf-8")
        write_page(partial, dilution_page(dilution, fluency(texts), title, partial / PICTURES[0]), result, command)


def _write_shares(path: Path, dilution: Dilution) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("weighting", "num_inputs", "layer", "output_share"))
        for name in dilution.shares:
            for n, layers in zip(dilution.counts, dilution.by_layer(name).tolist(), strict=True):
                writer.writerows((name, n, layer, f"{share:.6f}") for layer, share in enumerate(layers, start=1))
