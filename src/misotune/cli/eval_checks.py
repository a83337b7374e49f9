"""Which options of `misotune eval` go together; all of it is checked before anything is loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from misotune.errors import UsageError


def tasks_of(names: Sequence[str], *, flatten: bool) -> list[str]:
    """Returns the tasks that are meant.

    Raises:
        UsageError: One is named twice, or `--flatten` stands without ifeval.
    """
    if len(set(names)) < len(names):
        raise UsageError(f"a task is named twice: {' '.join(names)}")
    if flatten and "ifeval" not in names:
        raise UsageError("--flatten belongs to the task ifeval")
    return [*names, *(["ifeval-flatten"] if flatten and "ifeval-flatten" not in names else [])]


def check_files(tasks: Sequence[str], data: Path | None, responses: Path | None) -> None:
    """Makes sure that the files are there, and that one is not given to several tasks.

    Raises:
        UsageError: It is.
    """
    for flag, value in (("--data", data), ("--responses", responses)):
        # IFEval and IFEval-Flatten are made of one file, and may be answered by one.
        if value is not None and len(tasks) > 1 and set(tasks) != {"ifeval", "ifeval-flatten"}:
            raise UsageError(f"{flag} belongs to one task; evaluate {' and '.join(tasks)} one by one")
        if value is not None and not value.exists():
            raise UsageError(f"{flag} {value}: no such file")


def check_options(tasks: Sequence[str], given: Mapping[str, object]) -> None:
    """Makes sure that every option has a use.

    Args:
        tasks: All of them.
        given: The options' values by their names in Python; None or False where the user left one out.

    Raises:
        UsageError: One has none; names it, with the reason.
    """
    from misotune.evaluation.tasks import TASKS

    def refuse(reason: str, *names: str) -> None:
        for name in names:
            if given[name] not in (None, False):
                raise UsageError(f"{reason}; leave out --{name.replace('_', '-')}")

    foreign = [name for name in tasks if name not in TASKS]
    is_answered = given["responses"] is not None
    is_served = given["endpoint"] is not None
    if is_answered:
        refuse(
            "--responses scores texts made elsewhere",
            *("model", "base", "max_new_tokens", "batch_size", "num_processes", "dtype", "fresh", "indicator"),
            *("endpoint", "api_key_env", "concurrency"),
            "steer",
        )
        if foreign:
            raise UsageError(f"--responses: {foreign[0]!r} is none of misotune's tasks, and lm-eval's ask a model")
    elif is_served:
        refuse("the server at --endpoint decides that", "batch_size", "num_processes", "dtype")
        refuse("a server's model cannot be steered from here", "steer")
        refuse(
            "--base loads the run and the model it started from on this machine", *(["endpoint"] * bool(given["base"]))
        )
    else:
        refuse("only --endpoint URL has a use for it", "api_key_env", "concurrency")
    if given["base"]:
        refuse("--base keeps the scores in the run", "out")
        refuse("--base compares models as they are", "steer")
        refuse("the model of --base does not know [IND]", "indicator")
    if foreign:
        refuse(
            f"{foreign[0]!r} is lm-eval's, and only misotune's own tasks can be steered or marked", "steer", "indicator"
        )
    if "complexbench" not in tasks:
        judges = [name for name in given if name.startswith("judge_")]
        refuse("only the task complexbench has a judge", *judges)
    if "needle" not in tasks or not (is_answered or is_served):
        refuse("only the task needle with --endpoint or --responses counts by another tokenizer", "tokenizer")
    if not foreign:
        refuse("only tasks of lm-eval have a use for it", "num_fewshot", "include_path", "run_model_code")
