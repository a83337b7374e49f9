"""The backend `hf` on several devices: one process for each, with the whole model, and one queue of prompts for all."""

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import transformers

from misotune.attention.steering import Steering
from misotune.errors import UsageError
from misotune.evaluation.backends.base import Conversation, Listener
from misotune.evaluation.backends.chat_model import (
    ModelFacts,
    check_dtype,
    load_chat_model,
    load_chat_tokenizer,
)
from misotune.evaluation.backends.hf import HfBackend, halved, settings_of
from misotune.evaluation.backends.prompt_queue import BATCH_SIZE, PromptQueue, check_context, render_steered
from misotune.evaluation.backends.response_cache import ResponseCache
from misotune.evaluation.backends.worker import End, Job, Load, Start, Step, serve
from misotune.processes import Processes

_CURE = "the responses so far are kept: run the same command again, and it goes on from there"


@contextmanager
def open_hf_backend(
    path: str,
    *,
    dtype: str = "auto",
    batch_size: int | None = None,
    num_processes: int | None = None,
    revision: str | None = None,
    tokenizer: str | None = None,
    steering: Steering | None = None,
) -> "Iterator[HfBackend | ParallelBackend]":
    """Yields a model on every visible device: in this process where that is one, else in one process for each.

    Args:
        path: A folder with a model or an adapter, or a hub id.
        dtype: `auto`, `bfloat16` or `float32`.
        batch_size: Prompts at once in each process; None: 128, fewer of long ones or of unlike ones.
        num_processes: None: as many as there are devices; on a CPU 1.
        revision: Branch, tag or commit on the hub; None: the newest.
        tokenizer: The folder that its tokenizer and chat template are loaded from; None: `path`.
        steering: How its attention is steered; None: it is not.

    Raises:
        UsageError: There are fewer devices, no such dtype, no such model, or no such layers or heads to steer.
        UnsupportedModelError: The model cannot be steered.
        RunError: The model or its tokenizer cannot be loaded.
    """
    devices = choose_devices(num_processes)
    if len(devices) == 1:
        model = load_chat_model(path, dtype=dtype, device=devices[0], revision=revision, tokenizer=tokenizer)
        yield HfBackend(model, batch_size, steering=steering)
    else:
        with ParallelBackend(
            path,
            devices,
            dtype=dtype,
            batch_size=batch_size,
            revision=revision,
            tokenizer=tokenizer,
            steering=steering,
        ) as backend:
            yield backend


def choose_devices(num_processes: int | None = None) -> list[str]:
    """Returns the device of each process: the visible accelerators, or the CPU as often as asked.

    Args:
        num_processes: None: as many as there are devices; on a CPU 1.

    Raises:
        UsageError: There are fewer devices.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"] * (num_processes or 1)
    number = torch.accelerator.device_count()
    if num_processes is not None and num_processes > number:
        raise UsageError(
            f"--num-processes {num_processes}: each process takes a device of its own, and {number} "
            f"({accelerator.type}) can be seen here; leave it out for all of them"
        )
    return [f"{accelerator.type}:{index}" for index in range(num_processes or number)]


class ParallelBackend:
    """Generates greedily with copies of a model, each in a process of its own; the responses are `HfBackend`'s.

    The processes start when they are first needed, and serve all calls of `generate` until `close`, which a `with`
    block does. This one renders prompts and keeps responses; it never touches a device.

    Args:
        path: A folder with a model or an adapter, or a hub id.
        devices: One for each process, as torch names them. Those on a CPU share its cores.
        dtype: `auto`, `bfloat16` or `float32`.
        batch_size: Prompts at once in each process; None: 128, fewer of long ones or of unlike ones. Halved, for good,
            where a device's memory does not hold it. Fewer, too, where else some processes would have none.
        revision: Branch, tag or commit on the hub; None: the newest.
        tokenizer: The folder that its tokenizer and chat template are loaded from; None: `path`.
        steering: How its attention is steered; None: it is not.
        load: Loads the model in a process, as `load_chat_model` does; a function that can be imported by its name.

    Raises:
        UsageError: There is no such dtype or model.
        RunError: The tokenizer cannot be loaded, or has no chat template.
    """

    def __init__(
        self,
        path: str,
        devices: Sequence[str],
        *,
        dtype: str = "auto",
        batch_size: int | None = None,
        revision: str | None = None,
        tokenizer: str | None = None,
        steering: Steering | None = None,
        load: Load = load_chat_model,
    ) -> None:
        check_dtype(dtype)
        self.tokenizer = load_chat_tokenizer(tokenizer or path, None if tokenizer else revision)
        if revision or tokenizer:
            load = functools.partial(load, revision=revision, tokenizer=tokenizer)
        num_threads = max(1, torch.get_num_threads() // len(devices))
        verbosity = transformers.utils.logging.get_verbosity()
        self._starts = [Start(path, dtype, device, num_threads, verbosity, load, steering) for device in devices]
        self._steering = steering
        self._batch_sizes = [batch_size or BATCH_SIZE] * len(devices)
        self._is_size_free = batch_size is None
        self._processes: Processes | None = None
        self._facts: ModelFacts | None = None
        self._idle: set[int] = set()

    def __enter__(self) -> "ParallelBackend":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes."""
        self._idle.clear()
        if self._processes is not None:
            self._processes.close()
            self._processes = None

    @property
    def facts(self) -> ModelFacts:
        """Of the model, by the first process that has loaded it; waits for that.

        Raises:
            RunError: It cannot be loaded.
        """
        while self._facts is None:
            for number, message in self._receive():
                self._note_loaded(number, message)
        return self._facts

    def settings(self, max_new_tokens: int) -> dict[str, Any]:
        """Returns sizes (the smallest batch of any process), dtype, device, number of processes and steering."""
        found = settings_of(self.facts, max_new_tokens, min(self._batch_sizes), self._steering)
        return {**found, "num_processes": len(self._starts)}

    def generate(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, cache: Path, listener: Listener
    ) -> None:
        """Answers every conversation.

        Raises:
            RunError: A process failed or was killed, the prompts do not fit the model's context, one prompt does not
                fit the memory, or a response cannot be kept.
            UsageError: The cache is another file.
        """
        self._running()  # they load the model while this process renders
        prompts, steered = render_steered(self.tokenizer, conversations, self._steering)
        try:
            check_context(prompts, max_new_tokens, self.facts.context)
            with ResponseCache(cache) as responses:
                queue = PromptQueue(
                    prompts,
                    max_new_tokens,
                    facts=self.facts,
                    tokenizer=self.tokenizer,
                    cache=responses,
                    listener=listener,
                    steered=steered,
                )
                self._answer_all(queue, max_new_tokens, listener)
        except BaseException:
            self.close()  # those that are well are in the middle of a batch that nobody waits for
            raise

    def _answer_all(self, queue: PromptQueue, max_new_tokens: int, listener: Listener) -> None:
        share = _even_share(len(queue), len(self._starts), max(self._batch_sizes))
        under_way: dict[int, list[int]] = {}
        while queue or under_way:
            for number in sorted(self._idle):
                if batch := queue.take(min(share, self._batch_sizes[number]), is_size_free=self._is_size_free):
                    self._idle.remove(number)
                    under_way[number] = batch
                    self._running().send(number, Job(queue.ids(batch), max_new_tokens, queue.steered(batch)))
            for number, message in self._receive():
                if isinstance(message, Step):
                    for row, new_ids in message.ended:
                        queue.answer(under_way[number][row], new_ids)
                    listener.on_tokens(message.num_tokens)
                elif isinstance(message, End):
                    batch = under_way.pop(number)
                    self._idle.add(number)
                    if message.is_too_large:
                        self._batch_sizes[number] = halved(batch, max_new_tokens, self._starts[number].device)
                        queue.give_back(batch)
                else:
                    self._note_loaded(number, message)

    def _note_loaded(self, number: int, facts: ModelFacts) -> None:
        self._facts = self._facts or facts
        self._idle.add(number)

    def _receive(self) -> list[tuple[int, Any]]:
        return self._running().receive()

    def _running(self) -> Processes:
        if self._processes is None:
            total = len(self._starts)
            arguments = [(f"process {i} of {total} ({s.device})", s) for i, s in enumerate(self._starts, start=1)]
            self._processes = Processes(serve, arguments, cure=_CURE)
        return self._processes


def _even_share(num_prompts: int, num_processes: int, batch_size: int) -> int:
    """Returns the largest batch with which all processes have the same number of batches.

    A step takes a GPU hardly longer for 64 rows than for 8: what counts is how many batches one has after another.
    """
    num_rounds = max(1, math.ceil(num_prompts / (num_processes * batch_size)))
    return max(1, math.ceil(num_prompts / (num_processes * num_rounds)))
