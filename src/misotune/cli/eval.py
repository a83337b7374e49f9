"""`misotune eval`: scores a model, or responses made elsewhere, on one task or several."""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from misotune.cli import eval_options as options
from misotune.cli.eval_checks import check_files, check_options, tasks_of
from misotune.cli.eval_model import LocalModel, find_source, open_server
from misotune.cli.eval_run import Asking, discard, score_base
from misotune.cli.eval_tables import print_json, print_tables
from misotune.cli.steer_options import Steer, SteerHeads, SteerLayers, steering_of
from misotune.errors import UsageError

if TYPE_CHECKING:
    from misotune.evaluation.complexbench.judge import JudgeOptions
    from misotune.evaluation.context.model_tokens import ModelTokens
    from misotune.evaluation.harness.loading import HarnessTask
    from misotune.evaluation.harness.options import HarnessOptions
    from misotune.evaluation.models import ModelSource
    from misotune.evaluation.scores import Scores
    from misotune.evaluation.task import Task
    from misotune.evaluation.tasks import TaskOptions
    from misotune.report.against_base import AgainstBase

    AnyTask = Task | HarnessTask

_JUDGE_CACHE = Path("scores") / ".cache" / "judge.sqlite"


def evaluate(
    tasks: options.Tasks,
    model: options.Model = None,
    data: options.Data = None,
    responses: options.Responses = None,
    flatten: options.Flatten = False,
    base: options.Base = False,
    compare: options.Compare = None,
    limit: options.Limit = None,
    out: options.Out = None,
    max_new_tokens: options.MaxNewTokens = None,
    batch_size: options.BatchSize = None,
    num_processes: options.NumProcesses = None,
    dtype: options.Dtype = None,
    indicator: options.Indicator = False,
    as_json: options.AsJson = False,
    offline: options.Offline = False,
    fresh: options.Fresh = False,
    endpoint: options.Endpoint = None,
    api_key_env: options.ApiKeyEnv = None,
    concurrency: options.Concurrency = None,
    num_fewshot: options.NumFewshot = None,
    include_path: options.IncludePath = None,
    run_model_code: options.RunModelCode = False,
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
    tokenizer: options.Tokenizer = None,
    steer: Steer = None,
    steer_layers: SteerLayers = None,
    steer_heads: SteerHeads = None,
) -> None:
    """Score a model on one task or several.

    Responses are greedy. An evaluation that was interrupted goes on where it was, by the same command.
    """
    given = dict(locals())
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # the hub's client reads this once, when it is imported below
    names = tasks_of(tasks, flatten=flatten)
    check_files(names, data, responses)
    check_options(names, given)
    steering = steering_of(steer, steer_layers, steer_heads)
    chosen_language = _language(language)
    _check_names(names, include_path)
    server = None if endpoint is None else open_server(endpoint, model, api_key_env, concurrency)
    messages = Console(stderr=True, soft_wrap=True, highlight=False)

    from misotune.evaluation.harness.options import HarnessOptions
    from misotune.evaluation.tasks import NeedleGrid, TaskOptions

    source = None if responses is not None else find_source(model, messages, is_served=server is not None)
    if indicator and source is not None and server is None:
        _check_indicator(source)
    base_source = _base_of(source) if base and source is not None else None
    judge = _judge(judge_endpoint, judge_model, judge_api_key_env, judge_cache, judge_prompts, judge_concurrency)
    task_options = TaskOptions(
        data=data,
        limit=limit,
        offline=offline,
        max_new_tokens=max_new_tokens,
        judge=judge,
        language=chosen_language,
        tokens=_tokens(tokenizer, source, is_served=server is not None) if "needle" in names else None,
        needle=NeedleGrid(
            num_lengths=needle_lengths,
            num_depths=needle_depths,
            min_length=needle_min_length,
            max_length=needle_max_length,
        ),
    )
    harness_options = HarnessOptions(
        data=data,
        include_path=include_path,
        limit=limit,
        num_fewshot=num_fewshot,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        run_model_code=run_model_code,
    )
    ready = [_load(name, task_options, harness_options, is_served=server is not None) for name in names]
    folders = [None if out is None else out if len(ready) == 1 else out / task.name for task in ready]
    if source is None:
        assert responses is not None
        _show(_score_responses(responses, ready, folders), None, compare or [], as_json=as_json)
        return
    variant = "-".join([*(["indicator"] if indicator else []), *([steering.label] if steering else [])]) or None
    places = [folder or source.result_folder(task.name, variant) for task, folder in zip(ready, folders, strict=True)]
    _check_folders(places, fresh)
    asking = Asking(messages, harness_options, max_new_tokens, indicator)
    opened = LocalModel(
        source,
        messages,
        dtype=dtype or "auto",
        batch_size=batch_size,
        num_processes=num_processes,
        steering=steering,
    )
    with opened if server is None else nullcontext(server) as answering:
        found = asking.score_all(source, answering, ready, places)
    if base_source is not None:
        score_base(asking, source, base_source, ready, found, batch_size, num_processes)
    discard(places)  # only now: the same command would not ask the first task's prompts again
    # A run and its base model are compared as they are.
    _show(found, source if out is None and variant is None else None, compare or [], as_json=as_json)


def _check_names(names: Sequence[str], include_path: Path | None) -> None:
    from misotune.evaluation.tasks import TASKS

    for name in names:
        if name not in TASKS:
            from misotune.evaluation.harness.catalog import find_tasks

            find_tasks(name, include_path)


def _load(name: str, task_options: "TaskOptions", harness_options: "HarnessOptions", *, is_served: bool) -> "AnyTask":
    from misotune.evaluation.tasks import TASKS, load_task

    if name in TASKS:
        return load_task(name, task_options)

    from misotune.evaluation.harness.loading import load_harness_task

    return load_harness_task(name, harness_options, is_served=is_served)


def _tokens(tokenizer: str | None, source: "ModelSource | None", *, is_served: bool) -> "ModelTokens | None":
    """Returns how the model that answers counts tokens; None: the task says how to tell it."""
    from misotune.evaluation.context.model_tokens import load_model_tokens

    if source is None or is_served:
        return None if tokenizer is None else load_model_tokens(tokenizer)
    return load_model_tokens(source.path)


def _check_indicator(source: "ModelSource") -> None:
    from misotune.evaluation.backends.chat_model import load_chat_tokenizer
    from misotune.evaluation.marking import check_indicator

    check_indicator(load_chat_tokenizer(source.path, source.revision), source.name)


def _judge(
    endpoint: str | None,
    model: str | None,
    api_key_env: str | None,
    cache: Path | None,
    prompts: Path | None,
    concurrency: int | None,
) -> "JudgeOptions | None":
    from misotune.chat.server import DEFAULT_CONCURRENCY, Server, read_api_key
    from misotune.evaluation.complexbench.judge import JudgeOptions

    if endpoint is None or model is None:
        return None  # the task says what it needs
    server = Server(
        endpoint,
        model,
        read_api_key(api_key_env),
        concurrency or DEFAULT_CONCURRENCY,
        key_option="--judge-api-key-env",
    )
    return JudgeOptions(server, cache or _JUDGE_CACHE, prompts=prompts)


def _language(name: str) -> "options.Language":
    if name not in ("zh", "en"):
        raise UsageError(f"--language {name}: ComplexBench has zh and en")
    return name


def _check_folders(folders: Sequence[Path], fresh: bool) -> None:
    """Checks that results may be written there; with `fresh`, forgets the responses kept for them."""
    from misotune.evaluation.results import check_result_folder

    for folder in folders:
        check_result_folder(folder)
    if fresh:
        discard(folders)


def _score_responses(responses: Path, tasks: Sequence["AnyTask"], folders: Sequence[Path | None]) -> list["Scores"]:
    from misotune.evaluation.evaluate import evaluate_responses
    from misotune.evaluation.task import Task

    own = [task for task in tasks if isinstance(task, Task)]
    return [evaluate_responses(responses, task, out=folder) for task, folder in zip(own, folders, strict=True)]


def _base_of(source: "ModelSource") -> "ModelSource":
    from misotune.evaluation.base_scores import base_of

    return base_of(source)


def _show(found: Sequence["Scores"], source: "ModelSource | None", compared: Sequence[Path], *, as_json: bool) -> None:
    against_base = _against_base(found, source)
    if as_json:
        print_json(found, against_base)
        return
    print_tables(found, against_base)
    for scores in found if compared else ():
        from misotune.cli.compare import show_comparison
        from misotune.evaluation.comparison.compare import compare_results

        # The others come first: what is new is measured against them.
        show_comparison(compare_results([compared[0], scores.folder, *compared[1:]], task=scores.task))
    if source is not None and source.run is not None:
        sys.stdout.write(f"next: misotune export {source.run.path}\n")


def _against_base(found: Sequence["Scores"], source: "ModelSource | None") -> "dict[str, AgainstBase]":
    """Returns what training changed, by task, where the run keeps its base model's scores too."""
    if source is None or source.run is None:
        return {}

    from misotune.evaluation.base_scores import compare_with_base

    changes = {scores.task: compare_with_base(source.run, scores.task) for scores in found}
    return {task: change for task, change in changes.items() if change is not None}
