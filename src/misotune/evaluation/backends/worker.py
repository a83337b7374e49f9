"""What one process of `misotune.evaluation.backends.parallel` does, and what it is told and tells."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from misotune.attention.steered import check_steering
from misotune.attention.steering import SteeredPrompts, Steering
from misotune.evaluation.backends.chat_model import ChatModel
from misotune.evaluation.backends.hf import decode

Load = Callable[..., ChatModel]


@dataclass(frozen=True, slots=True)
class Start:
    """What a process is told first; it answers with `ModelFacts`."""

    path: str
    dtype: str
    device: str
    num_threads: int
    verbosity: int
    load: Load
    steering: Steering | None


@dataclass(frozen=True, slots=True)
class Job:
    """A batch; answered with a `Step` for each step and one `End`."""

    prompts: list[list[int]]
    max_new_tokens: int
    steered: SteeredPrompts | None


@dataclass(frozen=True, slots=True)
class Step:
    """New tokens of a step, and the rows that ended with it: place in the batch, and response."""

    num_tokens: int
    ended: list[tuple[int, list[int]]]


@dataclass(frozen=True, slots=True)
class End:
    """All rows have ended, or the memory does not hold them."""

    is_too_large: bool = False


def serve(start: Start, jobs: Iterator[Job], send: Callable[[Any], None]) -> None:
    """What a process does: loads the model, then decodes batch after batch."""
    transformers.utils.logging.set_verbosity(start.verbosity)
    torch.set_num_threads(start.num_threads)
    device = torch.device(start.device)
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)  # kernels of other libraries ask for no device
    chat_model = start.load(start.path, dtype=start.dtype, device=device)
    if start.steering is not None:
        check_steering(chat_model.model.config, start.steering)
    send(chat_model.facts)
    for job in jobs:
        end = End()
        try:
            for num_tokens, ended in decode(chat_model, job.prompts, job.max_new_tokens, job.steered):
                send(Step(num_tokens, [(row.index, row.new_ids) for row in ended]))
        except torch.OutOfMemoryError:
            end = End(is_too_large=True)
        send(end)
