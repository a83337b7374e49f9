"""`inspect dilution` as one function: load, measure, let the model write where asked, and keep the result."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from misotune.analysis.dilution.continuations import Continuation, Fluency, continue_rows, fluency
from misotune.analysis.dilution.results import write_result
from misotune.analysis.dilution.shares import Dilution, input_counts, measure_dilution
from misotune.analysis.observed_model import compute_of, context_length, versions
from misotune.analysis.result_folder import check_result_folder
from misotune.analysis.rows import STARTER, Rows, load_rows
from misotune.attention import check_model
from misotune.layout import ChatTemplate


@dataclass(frozen=True, slots=True)
class DilutionSettings:
    """What decides a study.

    Attributes:
        data: A prepared dataset or JSON lines of its rows; None: the starter set.
        max_inputs: The largest number of inputs.
        is_repeated: n times the row's first input, instead of n of its inputs.
        limit: Rows at most.
        max_length: Tokens of the longest pair, at most the model's context; longer outputs are cut.
        generates: Also let the model write under each weighting.
        max_new_tokens: Longest text that it writes, in tokens.
    """

    data: Path | None = None
    max_inputs: int = 16
    is_repeated: bool = False
    limit: int = 4
    max_length: int = 1024
    generates: bool = False
    max_new_tokens: int = 64


@dataclass(frozen=True, slots=True)
class DilutionStudy:
    """What was found.

    Attributes:
        title: Model, data and number of rows.
        folder: Where the result lies.
        rows: The rows that were looked at.
        dilution: The shares of attention.
        fluency: By number of inputs and weighting; empty unless the model was to write.
        result: The content of dilution.json.
    """

    title: str
    folder: Path
    rows: Rows
    dilution: Dilution
    fluency: list[Fluency]
    result: dict[str, Any]


def study_dilution(
    name: str,
    model: Any,
    tokenizer: Any,
    folder: Path,
    settings: DilutionSettings,
    *,
    on_row: Callable[[int, int], None] = lambda done, total: None,
    on_text: Callable[[Continuation], None] = lambda text: None,
    command: str | None = None,
) -> DilutionStudy:
    """Measures the output's share of attention in a model, and writes the result folder.

    Args:
        name: What to call the model.
        model: A causal language model, loaded with any attention.
        tokenizer: Its tokenizer, with a chat template.
        folder: The result folder; an older result is replaced.
        settings: What decides the study.
        on_row: Called with the rows measured and all rows.
        on_text: Called with each text that the model wrote.
        command: The command line, for the page; None: not known.

    Raises:
        UsageError: A setting is out of range, or `folder` holds something else.
        UnsupportedModelError: MISO attention would not be exact for the model.
        DataError: The dataset cannot be read, or no row of it can be used.
        RunError: The result cannot be written.
    """
    counts = input_counts(settings.max_inputs)
    check_result_folder(folder, "dilution")
    settings = replace(settings, max_length=min(settings.max_length, context_length(model)))
    check_model(model.config, settings.max_length)
    rows = load_rows(
        settings.data,
        ChatTemplate(tokenizer),
        limit=settings.limit,
        max_length=settings.max_length,
        needs_several_inputs=not settings.is_repeated,
    )
    num_rows = len(rows.items)
    repeat = {"is_repeated": settings.is_repeated}
    dilution = measure_dilution(model, rows.items, counts, on_row=lambda done: on_row(done, num_rows), **repeat)
    texts: list[Continuation] = []
    if settings.generates:
        new = settings.max_new_tokens
        texts = continue_rows(model, tokenizer, rows.items, counts, max_new_tokens=new, on_text=on_text, **repeat)
    fluencies = fluency(texts)
    result = {
        "model": name,
        "settings": {**asdict(settings), "data": rows.name, **compute_of(model)},
        "versions": versions(),
        **dilution.to_json(),
        "fluency": [entry.to_json() for entry in fluencies],
        "data": rows.to_json(),
    }
    title = f"{name}, {_inputs_of(rows, settings)}"
    write_result(folder, result, dilution, texts, title, command)
    return DilutionStudy(title, folder, rows, dilution, fluencies, result)


def _inputs_of(rows: Rows, settings: DilutionSettings) -> str:
    data = "the starter set" if rows.name == STARTER else Path(rows.name).name
    num_rows = f"{len(rows.items)} row{'s' if len(rows.items) > 1 else ''} of {data}"
    if settings.is_repeated:
        return f"{num_rows}, one input n times"
    fewest = min(len(row.encoded.inputs) for row in rows.items)
    again = "" if fewest >= settings.max_inputs else f", begun again after {fewest} or more"
    return f"{num_rows}, n of a row's inputs{again}"
