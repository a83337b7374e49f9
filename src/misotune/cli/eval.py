"""`misotune eval`: scores a model, or responses made elsewhere, on one task or several."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from misotune.cli import eval_options as options
from misotune.cli.eval_progress import generation_progress
from misotune.cli.eval_tables import print_json, print_tables
from misotune.errors import UsageError
from misotune.runs import newest_finished_run

if TYPE_CHECKING:
    from misotune.evaluation.backends.base import Backend
    from misotune.evaluation.backends.chat_model import ChatModel
    from misotune.evaluation.complexbench.judge import JudgeOptions
    from misotune.evaluation.context.model_tokens import ModelTokens
    from misotune.evaluation.models import ModelSource
    from misotune.evaluation.scores import Scores
    from misotune.evaluation.task import Task

_JUDGE_CACHE = Path("scores") / ".cache" / "judge.sqlite"


def evaluate(
    tasks: options.Tasks,
    model: options.Model = None,
    data: options.Data = None,
    responses: options.Responses = None,
    flatten: options.Flatten = False,
    compare: options.Compare = None,
    limit: options.Limit = None,
    out: options.Out = None,
    max_new_tokens: options.MaxNewTokens = None,
    batch_size: options.BatchSize = None,
    dtype: options.Dtype = None,
    as_json: options.AsJson = False,
    offline: options.Offline = False,
    fresh: options.Fresh = False,
    endpoint: options.Endpoint = None,
    api_key_env: options.ApiKeyEnv = None,
    concurrency: options.Concurrency = None,
    judge_endpoint: options.JudgeEndpoint = None,
    judge_model: options.JudgeModel = None,
    judge_api_key_env: options.JudgeApiKeyEnv = None,
    judge_cache: options.JudgeCache = None,
    judge_prompts: options.JudgePrompts = None,
    judge_concurrency: options.JudgeConcurrency = None,
    language: options.LanguageName = "zh",
    needle_lengths: options.NeedleLengths = 8,
    needle_depths: options.NeedleDepths = 11,
    needle_min_length: options.NeedleMinLength = 200,
    needle_max_length: options.NeedleMaxLength = None,
) -> None:
    """Score a model on one task or several.

    Responses are greedy. An evaluation that was interrupted goes on where it was, by the same command.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # the hub's client reads this once, when it is imported below
    tasks = _tasks_of(tasks, flatten=flatten)
    _check_files(tasks, data, responses)
    if responses is not None:
        _refuse(
            "--responses scores texts made elsewhere", model=model, max_new_tokens=max_new_tokens,
            batch_size=batch_size, dtype=dtype, fresh=fresh or None, endpoint=endpoint, api_key_env=api_key_env,
            concurrency=concurrency,
        )  # fmt: skip
    elif endpoint is None:
        _refuse("only --endpoint URL has a use for it", api_key_env=api_key_env, concurrency=concurrency)
    else:
        _refuse("the server at --endpoint decides that", batch_size=batch_size, dtype=dtype)
    chosen_language = _language(language)
    server = None if endpoint is None else _server(endpoint, model, api_key_env, concurrency)
    messages = Console(stderr=True, soft_wrap=True, highlight=False)

    from misotune.evaluation.tasks import NeedleGrid, TaskOptions, load_task

    if "complexbench" in tasks:
        judge = _judge(judge_endpoint, judge_model, judge_api_key_env, judge_cache, judge_prompts, judge_concurrency)
    else:
        _refuse(
            "only the task complexbench has a judge", judge_endpoint=judge_endpoint, judge_model=judge_model,
            judge_api_key_env=judge_api_key_env, judge_cache=judge_cache, judge_prompts=judge_prompts,
            judge_concurrency=judge_concurrency,
        )  # fmt: skip
        judge = None
    source = None if responses is not None else _find_source(model, messages, is_served=server is not None)
    # The needle test counts in the model's own tokens.
    loaded = (
        _load(source, dtype or "auto", messages) if "needle" in tasks and source is not None and not server else None
    )
    task_options = TaskOptions(
        data=data,
        limit=limit,
        offline=offline,
        max_new_tokens=max_new_tokens,
        judge=judge,
        language=chosen_language,
        tokens=None if loaded is None else _tokens_of(loaded),
        needle=NeedleGrid(
            num_lengths=needle_lengths,
            num_depths=needle_depths,
            min_length=needle_min_length,
            max_length=needle_max_length,
        ),
    )
    ready = [load_task(name, task_options) for name in tasks]
    folders = [None if out is None else out if len(ready) == 1 else out / task.name for task in ready]
    if source is None:
        from misotune.evaluation.evaluate import evaluate_responses

        assert responses is not None
        found = [
            evaluate_responses(responses, task, out=folder, offline=offline)
            for task, folder in zip(ready, folders, strict=True)
        ]
    else:
        places = [folder or source.result_folder(task.name) for task, folder in zip(ready, folders, strict=True)]
        _check_folders(places, fresh)
        backend = server or _hf_backend(loaded or _load(source, dtype or "auto", messages), batch_size)
        found = _evaluate_all(source, backend, ready, places, messages, max_new_tokens=max_new_tokens)
    _show(found, source, compare or [], as_json=as_json)


def _tasks_of(tasks: Sequence[str], *, flatten: bool) -> list[str]:
    from misotune.evaluation.tasks import check_task_name

    for name in tasks:
        check_task_name(name)
    if len(set(tasks)) < len(tasks):
        raise UsageError(f"a task is named twice: {' '.join(tasks)}")
    if flatten and "ifeval" not in tasks:
        raise UsageError("--flatten belongs to the task ifeval")
    return [*tasks, *(["ifeval-flatten"] if flatten and "ifeval-flatten" not in tasks else [])]


def _check_files(tasks: Sequence[str], data: Path | None, responses: Path | None) -> None:
    for flag, value in (("--data", data), ("--responses", responses)):
        # IFEval and IFEval-Flatten are made of one file, and may be answered by one.
        if value is not None and len(tasks) > 1 and set(tasks) != {"ifeval", "ifeval-flatten"}:
            raise UsageError(f"{flag} belongs to one task; evaluate {' and '.join(tasks)} one by one")
        if value is not None and not value.exists():
            raise UsageError(f"{flag} {value}: no such file")


def _refuse(reason: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{reason}; leave out --{name.replace('_', '-')}")


def _server(endpoint: str, model: str | None, api_key_env: str | None, concurrency: int | None) -> "Backend":
    from misotune.chat_api import read_api_key
    from misotune.evaluation.backends.endpoint import DEFAULT_CONCURRENCY, EndpointBackend

    if model is None:
        raise UsageError("--endpoint URL needs --model NAME: the model as the server calls it")
    api_key = read_api_key(api_key_env)
    return EndpointBackend(endpoint, model, api_key=api_key, concurrency=concurrency or DEFAULT_CONCURRENCY)


def _judge(
    endpoint: str | None,
    model: str | None,
    api_key_env: str | None,
    cache: Path | None,
    prompts: Path | None,
    concurrency: int | None,
) -> "JudgeOptions | None":
    from misotune.chat_api import read_api_key
    from misotune.evaluation.complexbench.judge import JudgeOptions

    if endpoint is None or model is None:
        return None  # the task says what it needs
    api_key = read_api_key(api_key_env)
    return JudgeOptions(
        endpoint, model, cache or _JUDGE_CACHE, prompts=prompts, api_key=api_key, concurrency=concurrency or 8
    )


def _language(name: str) -> "options.Language":
    if name not in ("zh", "en"):
        raise UsageError(f"--language {name}: ComplexBench has zh and en")
    return name


def _find_source(model: str | None, messages: Console, *, is_served: bool) -> "ModelSource":
    from misotune.evaluation.models import ModelSource, find_model, source_of_run

    if model is not None:
        return ModelSource(model, model) if is_served else find_model(model)
    run = newest_finished_run()
    messages.print(f"evaluating the newest finished run: {run.path}")
    return source_of_run(run)


def _check_folders(folders: Sequence[Path], fresh: bool) -> None:
    """Checks that results may be written there; with `fresh`, forgets the responses kept for them."""
    from misotune.evaluation.backends.response_cache import discard_responses
    from misotune.evaluation.results import check_result_folder

    for folder in folders:
        check_result_folder(folder)
        if fresh:
            discard_responses(folder)


def _load(source: "ModelSource", dtype: str, messages: Console) -> "ChatModel":
    messages.print(f"loading {source.path}")

    from misotune.evaluation.backends.chat_model import load_chat_model

    return load_chat_model(source.path, dtype=dtype)


def _tokens_of(loaded: "ChatModel") -> "ModelTokens":
    from misotune.evaluation.context.model_tokens import ModelTokens

    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    return ModelTokens.of(loaded.tokenizer, context)


def _hf_backend(loaded: "ChatModel", batch_size: int | None) -> "Backend":
    from misotune.evaluation.backends.hf import HfBackend

    return HfBackend(loaded, batch_size)


def _evaluate_all(
    source: "ModelSource",
    backend: "Backend",
    tasks: Sequence["Task"],
    folders: Sequence[Path],
    messages: Console,
    *,
    max_new_tokens: int | None,
) -> list["Scores"]:
    from misotune.evaluation.backends.response_cache import discard_responses
    from misotune.evaluation.evaluate import evaluate_model

    found: list[Scores] = []
    for task, folder in zip(tasks, folders, strict=True):
        try:
            with generation_progress(task.name, len(task.prompts), messages) as on_progress:
                found.append(
                    evaluate_model(
                        source,
                        task,
                        out=folder,
                        max_new_tokens=max_new_tokens,
                        backend=backend,
                        keep_responses=True,
                        on_progress=on_progress,
                    )
                )
        except KeyboardInterrupt:
            messages.print(f"{task.name}: responses so far are kept; the same command goes on from there")
            raise
    for folder in folders:  # only now: the same command would not ask the first task's prompts again
        discard_responses(folder)
    return found


def _show(found: Sequence["Scores"], source: "ModelSource | None", compared: Sequence[Path], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    print_tables(found)
    for scores in found if compared else ():
        from misotune.cli.compare import show_comparison
        from misotune.evaluation.comparison.compare import compare_results

        # The others come first: what is new is measured against them.
        show_comparison(compare_results([compared[0], scores.folder, *compared[1:]], task=scores.task))
    if source is not None and source.run is not None:
        sys.stdout.write(f"next: misotune export {source.run.path}\n")
