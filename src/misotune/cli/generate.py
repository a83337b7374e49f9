"""`misotune generate`: one response to several inputs."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from misotune.cli import completion
from misotune.cli.run_names import named_path
from misotune.cli.steer_options import Steer, SteerHeads, SteerLayers, steering_of
from misotune.errors import UsageError
from misotune.runs import newest_finished_run

if TYPE_CHECKING:
    from misotune.decoding.generation import Generated
    from misotune.evaluation.models import ModelSource

_Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A run (its name in runs/, or its folder), a folder with a model or adapter, or a hub id. "
        "(default: the newest finished run)",
        autocompletion=completion.runs,
    ),
]
_Inputs = Annotated[
    list[str] | None, typer.Option("--input", metavar="TEXT", help="An input: one user turn; may be repeated.")
]
_InputFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--input-file", metavar="FILE", help="A file whose text is an input, behind those of --input; may be repeated."
    ),
]
_Weighting = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="uniform, fixed, fid or vanilla. (default: uniform; fixed with --weights)"),
]
_Weights = Annotated[
    str | None,
    typer.Option(metavar="W,W,...", help="For fixed: a positive number for each input, of sum 1."),
]
_SharedPrefix = Annotated[str | None, typer.Option(metavar="TEXT", help="Text in front of every input.")]
_Positions = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="aligned (the output follows every input), start (every input starts at 0) or successive.",
    ),
]
_MaxNewTokens = Annotated[int, typer.Option(metavar="N", min=1, help="Longest response in tokens.")]
_Temperature = Annotated[
    float, typer.Option(metavar="NUMBER", min=0.0, help="Above 0: sample, at this temperature; 0: greedy.")
]
_Seed = Annotated[int | None, typer.Option(metavar="N", help="Seed of sampling. (default: another one each time)")]
_Dtype = Annotated[str, typer.Option(metavar="TYPE", help="auto (as the weights are stored), bfloat16 or float32.")]
_Indicator = Annotated[
    bool, typer.Option("--indicator", help="Mark every input with the indicator, of a model trained with it.")
]
_AsJson = Annotated[bool, typer.Option("--json", help="Print response and settings as JSON, at the end.")]
_Offline = Annotated[bool, typer.Option("--offline", help="Do not use the network.")]


def generate(
    model: _Model = None,
    inputs: _Inputs = None,
    input_files: _InputFiles = None,
    weighting: _Weighting = None,
    weights: _Weights = None,
    shared_prefix: _SharedPrefix = None,
    positions: _Positions = "aligned",
    max_new_tokens: _MaxNewTokens = 512,
    temperature: _Temperature = 0.0,
    seed: _Seed = None,
    dtype: _Dtype = "auto",
    indicator: _Indicator = False,
    as_json: _AsJson = False,
    offline: _Offline = False,
    steer: Steer = None,
    steer_layers: SteerLayers = None,
    steer_heads: SteerHeads = None,
) -> None:
    """Write one response to several inputs, each read on its own.

    Every input is a user turn in the model's chat template; their attention results are fused by the weighting.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # the hub's client reads this once, when it is imported below
    texts = [*(inputs or []), *map(_read_input, input_files or [])]
    if not texts:
        raise UsageError("nothing to answer; give --input TEXT or --input-file FILE, once for each input")
    numbers = _parse_weights(weights)
    steering = steering_of(steer, steer_layers, steer_heads)
    weighting = weighting or ("fixed" if numbers else "uniform")
    messages = Console(stderr=True, soft_wrap=True, highlight=False)
    source = _find_source(model, messages)

    from misotune.cli.libraries import quiet_libraries

    quiet_libraries()
    from misotune.decoding.generation import check_arguments
    from misotune.decoding.prompt import as_messages

    for number, text in enumerate(texts, start=1):
        as_messages(text, f"input {number}")
    check_arguments(len(texts), weighting, numbers, positions)
    if indicator:
        texts = _marked(texts, source)
    messages.print(f"loading {source.path}", markup=False)
    settings = {
        "weighting": weighting,
        "weights": numbers,
        "positions": positions,
        "shared_prefix": shared_prefix,
        "max_new_tokens": max_new_tokens,
        "do_sample": temperature > 0,
        **({"temperature": temperature} if temperature > 0 else {}),
    }
    found, elapsed_s = _generate(
        source, texts, {**settings, "steering": steering}, seed=seed, dtype=dtype, shows_text=not as_json
    )
    if as_json:
        content = {"model": source.name, **_to_json(found), **settings, "seed": seed, "indicator": indicator}
        content |= {} if steering is None else steering.settings
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    else:
        messages.print(_account(found, weighting, elapsed_s) + ("" if steering is None else f"; {steering.words}"))


def _generate(
    source: "ModelSource",
    texts: Sequence[str],
    settings: dict[str, Any],
    *,
    seed: int | None,
    dtype: str,
    shows_text: bool,
) -> tuple["Generated", float]:
    """Returns the response and the seconds that it took; its text is written to stdout as it comes."""
    import torch

    from misotune.decoding.generation import generate
    from misotune.decoding.streaming import TextCallback
    from misotune.evaluation.backends.chat_model import load_chat_model

    loaded = load_chat_model(source.path, dtype=dtype)
    if seed is not None:
        torch.manual_seed(seed)
    streamer = TextCallback(loaded.tokenizer, _show_text) if shows_text else None
    start_s = time.perf_counter()
    found = generate(loaded.model, loaded.tokenizer, texts, streamer=streamer, **settings)
    if shows_text:
        _show_text("\n")
    return found, time.perf_counter() - start_s


def _show_text(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _find_source(model: str | None, messages: Console) -> "ModelSource":
    from misotune.evaluation.models import find_model, source_of_run

    if model is not None:
        return find_model(named_path(model))
    run = newest_finished_run()
    messages.print(f"the newest finished run: {run.path}", markup=False)
    return source_of_run(run)


def _marked(texts: Sequence[str], source: "ModelSource") -> list[str]:
    from misotune.evaluation.backends.chat_model import load_chat_tokenizer
    from misotune.evaluation.marking import check_indicator
    from misotune.indicator import with_indicator

    check_indicator(load_chat_tokenizer(source.path, source.revision), source.name)
    return [with_indicator(text) for text in texts]


def _read_input(path: Path) -> str:
    """Returns a file's text without its last line break."""
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except OSError as error:
        raise UsageError(f"--input-file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--input-file {path}: not UTF-8 text: {error.reason} at byte {error.start}") from error


def _parse_weights(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--weights {text}: numbers with commas between them, such as 0.5,0.25,0.25") from error


def _to_json(found: "Generated") -> dict[str, Any]:
    return {
        "text": found.text,
        "num_new_tokens": len(found.token_ids),
        "is_cut": found.is_cut,
        "num_input_tokens": [len(ids) for ids in found.prompt.inputs],
    }


def _account(found: "Generated", weighting: str, elapsed_s: float) -> str:
    num_inputs, num_new = len(found.prompt.inputs), len(found.token_ids)
    lengths = ", ".join(str(len(ids)) for ids in found.prompt.inputs)
    end = "cut at the longest response allowed" if found.is_cut else "ended by itself"
    return (
        f"{num_inputs} input{'s' if num_inputs > 1 else ''} of {lengths} tokens, "
        f"{weighting}, {found.prompt.positions}; {num_new} new tokens in {elapsed_s:.1f} s, {end}"
    )
