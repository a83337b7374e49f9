"""A task of lm-eval, or a group of them, loaded and checked before anything is generated."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from misotune.data.hub import is_hub_id
from misotune.errors import MisotuneError, RunError, UsageError
from misotune.evaluation.harness.catalog import configs_of, find_tasks
from misotune.evaluation.harness.code_metric import offline_code_eval
from misotune.evaluation.harness.local_data import local_rows
from misotune.evaluation.harness.options import HarnessOptions
from misotune.evaluation.harness.quiet import quiet
from misotune.evaluation.tasks import TASKS
from misotune.hub import reach_dataset


@dataclass(frozen=True, slots=True)
class HarnessTask:
    """A task that is ready to be run.

    Attributes:
        name: As the user calls it.
        manager: lm-eval's index of tasks.
        group: lm-eval's group of this name, or None.
        tasks: The tasks themselves, by name.
        source: Where the rows come from.
        notes: What a reader of the scores must know.
    """

    name: str
    manager: TaskManager
    group: Any | None
    tasks: Mapping[str, Any]
    source: str
    notes: tuple[str, ...] = ()

    @property
    def is_single(self) -> bool:
        """It is one task, and no group or tag."""
        return list(self.tasks) == [self.name]


def is_harness_task(name: str) -> bool:
    """Returns whether a name is left to lm-eval: it is none of `misotune eval`'s own."""
    return name not in TASKS


def load_harness_task(name: str, options: HarnessOptions, *, is_served: bool = False) -> HarnessTask:
    """Returns the task, with its data.

    Args:
        name: Of a task, group or tag of lm-eval's or of `options.include_path`.
        options: What the user says.
        is_served: A server will answer, which generates texts, and tells no probabilities.

    Raises:
        UsageError: There is no such task; it runs programs that the model writes, and the user has not agreed; it
            draws, or wants what a server does not give; `options.data` does not fit it.
        DataError: A row of the local data cannot be read.
        RunError: The data, or a package that the task needs, cannot be loaded.
    """
    manager = find_tasks(name, options.include_path)
    configs = configs_of(name, manager)
    _check_code(name, configs, options.run_model_code)
    is_single = list(configs) == [name]
    if options.data is None:
        spec: Any = name
        sources = list(dict.fromkeys(str(c.get("dataset_path") or "lm-eval") for c in configs.values()))
        source = ", ".join(sources)
        _reach(name, sources)
        notes: tuple[str, ...] = ()
    elif not is_single:
        raise UsageError(f"--data belongs to one task; {name!r} is a group of {len(configs)}: {', '.join(configs)}")
    else:
        if not options.data.exists():
            raise UsageError(f"--data {options.data}: no such file or folder")
        rows = local_rows(name, configs[name], options.data, options.num_fewshot)
        # lm-eval merges a task's file with changes to it where a group names the task.
        spec = {"group": f"{name} of local rows", "task": [{"task": name, **rows.changes}]}
        source, notes = str(options.data), rows.notes
    with quiet(), offline_code_eval():
        loaded = _load(manager, spec, name, source)
    tasks: dict[str, Any] = loaded["tasks"]
    group = loaded["groups"].get(name)
    for task in tasks.values():
        _check_task(task, options.run_model_code, is_served=is_served)
        if options.data is not None and options.num_fewshot != 0:
            _check_own_examples(task)
    return HarnessTask(name, manager, group, tasks, source, notes)


def _reach(name: str, sources: Sequence[str]) -> None:
    """Asks the hub for a task's data before `datasets` does, which tries a dead network for long and says so."""
    for source in filter(is_hub_id, sources):
        if Path(source).exists():
            continue
        try:
            reach_dataset(source)
        except Exception as error:  # each network library below huggingface_hub raises its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RunError(
                f"task {name!r}: {source} cannot be had from the hub ({reason:.160}); give its rows with --data FILE, "
                "or use a copy in the hub's cache with --offline"
            ) from error


def _load(manager: TaskManager, spec: Any, name: str, source: str) -> Any:
    try:
        return manager.load([spec])
    except MisotuneError:
        raise
    except Exception as error:  # as of whatever the task imports, loads and prepares
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if isinstance(error, ImportError):
            raise RunError(f"task {name!r} needs a package that is missing: {reason}") from error
        if _is_local(spec):
            raise RunError(
                f"task {name!r} cannot use the rows of {source}: {type(error).__name__}: {reason}; they must have the "
                "columns of the task's own data"
            ) from error
        raise RunError(
            f"task {name!r} cannot be loaded ({type(error).__name__}: {reason}); where the hub cannot be reached, "
            f"give the rows of {source} with --data FILE"
        ) from error


def _is_local(spec: Any) -> bool:
    return not isinstance(spec, str)


def _check_code(name: str, configs: Mapping[str, Mapping[str, Any]], is_allowed: bool) -> None:
    """Asks for the user's agreement before such a task's own files are imported, which try a program at once."""
    if any(config.get("unsafe_code") for config in configs.values()):
        if not is_allowed:
            raise _code_error(name)
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # asked by metrics of the package evaluate


def _code_error(name: str) -> UsageError:
    return UsageError(
        f"task {name!r} runs programs that the model writes, on this machine and without a sandbox; where that is "
        "acceptable, say so with --run-model-code"
    )


def _check_task(task: Any, may_run_code: bool, *, is_served: bool) -> None:
    name, kwargs = task.task_name, task.get_config("generation_kwargs") or {}
    if getattr(task, "UNSAFE_CODE", False) and not may_run_code:
        raise _code_error(name)
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(f"task {name!r} shows pictures or sounds; misotune evaluates models of text")
    if task.OUTPUT_TYPE == "generate_until" and (kwargs.get("do_sample") or float(kwargs.get("temperature") or 0) > 0):
        raise UsageError(
            f"task {name!r} draws its responses; misotune evaluates greedy ones: choose another form of it"
        )
    if is_served and task.OUTPUT_TYPE != "generate_until":
        raise UsageError(
            f"task {name!r} compares the probabilities of given answers, which a chat server does not tell; evaluate "
            "it without --endpoint, or choose a form of it that generates"
        )
    if is_served and task.get_config("gen_prefix"):
        raise UsageError(
            f"task {name!r} begins the model's response itself, which a chat server may not take up; evaluate it "
            "without --endpoint"
        )


def _check_own_examples(task: Any) -> None:
    """Refuses rows that are among the task's own examples, which stand in its description."""
    config = getattr(task, "fewshot_cfg", None)
    if config is None or config.samples is None or config.split is not None or not task.get_config("num_fewshot"):
        return
    examples = {task.doc_to_text(example) for example in task.fewshot_docs()}
    for index, row in enumerate(task.eval_docs):
        if task.doc_to_text(row) in examples:
            raise UsageError(
                f"task {task.task_name!r}: row {index + 1} is one of the examples in front of every question; "
                "leave it out of --data, or give --num-fewshot 0"
            )
