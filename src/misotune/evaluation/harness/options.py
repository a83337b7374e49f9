"""What the user says about a task of lm-eval."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessOptions:
    """What the user says about a task of lm-eval.

    Attributes:
        data: A file with the rows that are scored, or a folder with a file for each split; None for the hub's.
        include_path: A folder with the user's own tasks, as YAML; they come before lm-eval's of the same name.
        limit: Take only the first so many rows, of each subtask; None for all.
        num_fewshot: Examples in front of each question; None for the task's own number.
        max_new_tokens: The longest response; None for the task's own.
        batch_size: Prompts at once; None for 8. Halved, for good, where the accelerator's memory does not hold it.
        run_model_code: The user agrees that programs which the model writes are run on this machine.
    """

    data: Path | None = None
    include_path: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    max_new_tokens: int | None = None
    batch_size: int | None = None
    run_model_code: bool = False
