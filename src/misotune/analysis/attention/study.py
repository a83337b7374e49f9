"""`inspect attention` as one function: read, measure every model on the same rows, and keep the result."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from misotune.analysis.attention.parts import PARTS, PartedRow, part_row
from misotune.analysis.attention.prompts import ParsedPrompt, read_prompts
from misotune.analysis.attention.results import write_attention
from misotune.analysis.attention.shares import part_shares, write_response
from misotune.analysis.attention.summary import ConstraintShare, ModelShares, RowShares, sum_up
from misotune.analysis.attention.verdicts import MEASURES, contrast
from misotune.analysis.observed_model import compute_of, context_length, versions
from misotune.analysis.result_folder import check_result_folder
from misotune.analysis.rows import STARTER
from misotune.attention import check_model
from misotune.errors import DataError, LayoutError, UsageError
from misotune.layout import ChatTemplate, EncodedSample, encode_sample


@dataclass(frozen=True, slots=True)
class AttentionSettings:
    """What decides a study.

    Attributes:
        data: As in `read_prompts`.
        limit: Rows at most.
        max_length: Tokens of prompt and response, at most each model's context; longer responses are cut.
        generates: Each model reads its own greedy response, not the row's.
        max_new_tokens: Its longest response in tokens.
    """

    data: Path | None = None
    limit: int = 8
    max_length: int = 4096
    generates: bool = False
    max_new_tokens: int = 256


@dataclass(frozen=True, slots=True)
class AttentionStudy:
    """What was found.

    Attributes:
        title: Models, data, number of rows, and whose responses.
        folder: Where the result lies.
        models: In the order in which they were named, all on the same rows.
        result: The content of attention.json.
    """

    title: str
    folder: Path
    models: tuple[ModelShares, ...]
    result: dict[str, Any]


def study_attention(
    names: Sequence[str],
    load: Callable[[int], tuple[Any, Any]],
    folder: Path,
    settings: AttentionSettings,
    *,
    on_row: Callable[[str, int, int | None], None] = lambda name, done, total: None,
    command: str | None = None,
) -> AttentionStudy:
    """Measures where the responses' attention goes in one or several models, and writes the result folder.

    Rows that a model cannot take are left out for all.

    Args:
        names: What to call the models; all different.
        load: Returns the model and the tokenizer of an index in `names`; one model is held at a time.
        folder: The result folder; an older result is replaced.
        settings: What decides the study.
        on_row: Called with the model's name, the rows measured and all rows, None while they are not known.
        command: The command line, for the page; None: not known.

    Raises:
        UsageError: Two models of one name, or `folder` holds something else.
        UnsupportedModelError: MISO attention, with which the model runs, would not be exact for it.
        DataError: The dataset cannot be read, or no row of it can be used by all models.
        RunError: A prompt is too long to be continued, or the result cannot be written.
    """
    if len(set(names)) < len(names):
        raise UsageError(f"{', '.join(names)}: two models of one name; name each once")
    check_result_folder(folder, "attention")
    prompts: Iterable[ParsedPrompt | None] = read_prompts(settings.data)
    models: list[ModelShares] = []
    num_read = 0
    for i, name in enumerate(names):
        model, tokenizer = load(i)
        taken, num_seen = _measure(name, model, tokenizer, prompts, settings, on_row)
        compute = compute_of(model)
        del model, tokenizer
        num_read = num_read or num_seen
        models = [replace(x, rows=tuple(x.rows[entry.number] for entry in taken)) for x in models]
        models.append(ModelShares(name, compute, tuple(entry.row for entry in taken)))
        prompts = [entry.prompt for entry in taken]
    num_rows = len(models[0].rows)
    title = _title(names, settings, num_rows)
    result = {
        "title": title,
        "settings": {**asdict(settings), "data": str(settings.data or STARTER)},
        "versions": versions(),
        "parts": list(PARTS),
        "num_rows": num_rows,
        "num_left_out": num_read - num_rows,
        "models": [x.to_json() for x in models],
        "verdicts": {x.name: {name: contrast(x, name).to_json() for name in MEASURES} for x in models},
    }
    write_attention(folder, result, models, title, command)
    return AttentionStudy(title, folder, tuple(models), result)


@dataclass(frozen=True, slots=True)
class _Taken:
    """A row that a model took: which of the prompts it was given, and what was measured."""

    number: int
    prompt: ParsedPrompt
    row: RowShares


def _measure(
    name: str,
    model: Any,
    tokenizer: Any,
    prompts: Iterable[ParsedPrompt | None],
    settings: AttentionSettings,
    on_row: Callable[[str, int, int | None], None],
) -> tuple[list[_Taken], int]:
    """The first rows that the model can take, and how many were looked at."""
    settings = replace(settings, max_length=min(settings.max_length, context_length(model)))
    check_model(model.config, settings.max_length)
    template = ChatTemplate(tokenizer)
    total = len(prompts) if isinstance(prompts, list) else None
    taken: list[_Taken] = []
    num_seen = 0
    for prompt in prompts:
        row = None if prompt is None else _row_of(prompt, model, tokenizer, template, settings)
        if prompt is not None and row is not None:
            taken.append(_Taken(num_seen, prompt, _shares_of(row, part_shares(model, row))))
            on_row(name, len(taken), total)
        num_seen += 1
        if len(taken) == settings.limit:
            break
    if not taken:
        where = settings.data or STARTER
        raise DataError(
            f"{where}: {name} can take none of its {num_seen} rows in {settings.max_length} tokens with every "
            "constraint found in the full prompt; raise --max-length, or name other --data"
        )
    return taken, num_seen


def _row_of(
    prompt: ParsedPrompt, model: Any, tokenizer: Any, template: ChatTemplate, settings: AttentionSettings
) -> PartedRow | None:
    try:
        response = prompt.sample.output
        if settings.generates:
            inputs, opening = template.split_prompt(prompt.messages)
            if len(inputs) + len(opening) + settings.max_new_tokens > settings.max_length:
                return None
            response, ids = write_response(model, tokenizer, prompt.messages, settings.max_new_tokens)
            encoded = _encoded(prompt.sample.id, inputs, opening, ids)
        else:
            encoded = encode_sample(prompt.sample, template).cut(settings.max_length)
        return None if encoded is None else part_row(prompt, encoded, response, template)
    except LayoutError:
        return None


def _encoded(row_id: str, inputs: Sequence[int], opening: Sequence[int], ids: Sequence[int]) -> EncodedSample:
    output = np.asarray([*opening, *ids], dtype=np.int32)
    return EncodedSample(row_id, (np.asarray(inputs, dtype=np.int32),), output, np.arange(len(output)) >= len(opening))


def _shares_of(row: PartedRow, shares: Any) -> RowShares:
    sample, n = row.prompt.sample, len(PARTS)
    tokens = np.bincount(row.parts, minlength=row.num_parts).tolist()
    total, num_tokens = sum_up(shares, tokens)
    constraints = tuple(
        ConstraintShare(x.text, tokens[n + i], x.is_met(row.response, f"row {sample.id}"), shares[..., n + i])
        for i, x in enumerate(row.prompt.constraints)
    )
    return RowShares(sample.id, row.response, tuple(num_tokens), total, constraints)


def _title(names: Sequence[str], settings: AttentionSettings, num_rows: int) -> str:
    data = "the starter set" if settings.data is None else settings.data.name
    whose = "the models' own responses" if settings.generates else "the rows' responses"
    return f"{', '.join(names)}; {num_rows} row{'s' if num_rows > 1 else ''} of {data}, {whose}"
