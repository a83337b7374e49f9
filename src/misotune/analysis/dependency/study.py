"""`inspect dependency` as one function: load rows, score their responses, keep the result."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from misotune.analysis.dependency.responses import Dependency, ScoredResponse
from misotune.analysis.dependency.results import write_result
from misotune.analysis.dependency.rows import Conversation, ConversationReader, Source, open_source
from misotune.analysis.dependency.scores import dependency_scores, parse_layers, user_shares
from misotune.analysis.dependency.write import check_target, write_column
from misotune.analysis.observed_model import compute_of, context_length, versions
from misotune.analysis.result_folder import check_result_folder
from misotune.analysis.rows import STARTER
from misotune.errors import DataError
from misotune.layout import ChatTemplate

# The paper's: a response above it depends on the context.
THRESHOLD = 0.6


@dataclass(frozen=True, slots=True)
class DependencySettings:
    """What decides a study.

    Attributes:
        data: A prepared dataset or JSON lines of its rows; None: the starter set.
        layers: As `parse_layers` takes them; the score is the mean over them.
        threshold: A response above it depends on the context.
        limit: Rows at most; None: all.
        max_length: Tokens of a row, at most the model's context; longer ones are cut.
        write: Where to write the dataset with its scores; None: nowhere.
    """

    data: Path | None = None
    layers: str | None = None
    threshold: float = THRESHOLD
    limit: int | None = None
    max_length: int = 2048
    write: Path | None = None


@dataclass(frozen=True, slots=True)
class DependencyStudy:
    """What was found.

    Attributes:
        title: Model, data and numbers of rows and responses.
        folder: Where the result lies.
        dependency: The scores.
        result: The content of dependency.json.
    """

    title: str
    folder: Path
    dependency: Dependency
    result: dict[str, Any]


def study_dependency(
    name: str,
    model: Any,
    tokenizer: Any,
    folder: Path,
    settings: DependencySettings,
    *,
    on_row: Callable[[int, int], None] = lambda done, total: None,
    command: str | None = None,
) -> DependencyStudy:
    """Scores how much the responses of a dataset depend on what the user gave, and writes the result folder.

    Args:
        name: What to call the model.
        model: A causal language model, loaded with any attention.
        tokenizer: Its tokenizer, with a chat template.
        folder: The result folder; an older result is replaced.
        settings: What decides the study.
        on_row: Called with the rows done and all rows.
        command: The command line, for the page; None: not known.

    Raises:
        UsageError: A setting cannot be used, or `folder` holds something else.
        UnsupportedModelError: The model's attention cannot be observed.
        DataError: The dataset cannot be read, or no row of it can be scored.
        RunError: The result cannot be written.
    """
    layers = parse_layers(settings.layers, model.config.get_text_config().num_hidden_layers)
    check_result_folder(folder, "dependency")
    if settings.write is not None:
        check_target(settings.data, settings.write)
    source = open_source(settings.data, settings.limit)
    max_length = min(settings.max_length, context_length(model))
    dependency = _score(
        model, ConversationReader(ChatTemplate(tokenizer), max_length), source, layers, settings, on_row
    )
    if not dependency.responses:
        raise DataError(
            f"{source.name}: no response with a user's text before it in {max_length} tokens; raise --max-length"
        )
    result = {
        "model": name,
        "settings": {
            **{key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()},
            "data": source.name,
            "layers": list(layers),
            "max_length": max_length,
            **compute_of(model),
        },
        "versions": versions(),
        **dependency.to_json(),
    }
    title = f"{name}, {_rows_of(dependency, source)}"
    write_result(folder, result, dependency, title, command)
    if settings.write is not None and settings.data is not None:
        write_column(settings.data, settings.write, dependency, _origin(result))
    return DependencyStudy(title, folder, dependency, result)


def _score(
    model: Any,
    reader: ConversationReader,
    source: Source,
    layers: Sequence[int],
    settings: DependencySettings,
    on_row: Callable[[int, int], None],
) -> Dependency:
    responses: list[ScoredResponse] = []
    num_left_out = 0
    for done, row in enumerate(reader.read(source.samples), start=1):
        if row is None:
            num_left_out += 1
        else:
            responses += _scored(model, row, layers)
        on_row(done, len(source.samples))
    return Dependency(tuple(layers), settings.threshold, tuple(responses), len(source.samples), num_left_out)


def _scored(model: Any, row: Conversation, layers: Sequence[int]) -> list[ScoredResponse]:
    places = torch.cat([torch.from_numpy(response.places) for response in row.responses])
    shares = user_shares(model, row.ids, torch.from_numpy(row.is_user), places, layers)
    ends = torch.tensor([len(response.places) for response in row.responses]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    scores = dependency_scores(shares, [slice(start, end) for start, end in zip(starts, ends, strict=True)])
    return [
        ScoredResponse(
            row=row.number,
            id=row.id,
            turn=response.turn,
            num_turns=row.num_turns,
            by_layer=tuple(score.tolist()),
            num_user_tokens=response.num_user_tokens,
            num_tokens=len(response.places),
            is_cut=response.is_cut,
            text=text,
        )
        for response, score, text in zip(row.responses, scores, row.texts, strict=True)
    ]


def _rows_of(dependency: Dependency, source: Source) -> str:
    data = "the starter set" if source.name == STARTER else Path(source.name).name
    num_rows = len({response.row for response in dependency.responses})
    num_responses = len(dependency.responses)
    of_them = "" if num_responses == num_rows else f" ({num_responses} responses)"
    return f"{num_rows} row{'s' if num_rows > 1 else ''} of {data}{of_them}"


def _origin(result: dict[str, Any]) -> dict[str, Any]:
    """Returns what the column was made with, for the dataset's manifest."""
    chosen = ("layers", "threshold", "limit", "max_length", "dtype")
    return {"model": result["model"], **{key: result["settings"][key] for key in chosen}}
