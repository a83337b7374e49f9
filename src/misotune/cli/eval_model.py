"""What answers the prompts of `misotune eval`: a model on this machine, or one on a server."""

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console

from misotune.cli.run_names import named_path
from misotune.errors import UsageError
from misotune.runs import newest_finished_run

if TYPE_CHECKING:
    from misotune.attention.steering import Steering
    from misotune.evaluation.backends.base import Backend
    from misotune.evaluation.backends.chat_model import ChatModel
    from misotune.evaluation.models import ModelSource


def find_source(model: str | None, messages: Console, *, is_served: bool) -> "ModelSource":
    """Returns what `--model` stands for, or the newest finished run, which is named.

    Raises:
        UsageError: There is no such model, or no finished run.
    """
    from misotune.evaluation.models import ModelSource, find_model, source_of_run

    if model is not None:
        return ModelSource(model, model) if is_served else find_model(named_path(model))
    run = newest_finished_run()
    messages.print(f"evaluating the newest finished run: {run.path}", markup=False)
    return source_of_run(run)


def open_server(endpoint: str, model: str | None, api_key_env: str | None, concurrency: int | None) -> "Backend":
    """Returns the model on a server; nothing is asked yet.

    Raises:
        UsageError: The address is none, the model is not named, or the key's variable is not set.
    """
    from misotune.chat.server import DEFAULT_CONCURRENCY, Server, read_api_key
    from misotune.evaluation.backends.endpoint import EndpointBackend

    if model is None:
        raise UsageError("--endpoint URL needs --model NAME: the model as the server calls it")
    return EndpointBackend(Server(endpoint, model, read_api_key(api_key_env), concurrency or DEFAULT_CONCURRENCY))


class LocalModel:
    """A model on this machine, loaded when it is first asked for, in one form at a time.

    Args:
        source: The model.
        messages: Says when it is loaded.
        dtype: `auto`, `bfloat16` or `float32`.
        batch_size: Prompts at once; None: chosen.
        num_processes: None: one for each device.
        steering: How its attention is steered on misotune's own tasks; None: it is not.
    """

    def __init__(
        self,
        source: "ModelSource",
        messages: Console,
        *,
        dtype: str,
        batch_size: int | None = None,
        num_processes: int | None = None,
        steering: "Steering | None" = None,
    ) -> None:
        self._source = source
        self._messages = messages
        self._dtype = dtype
        self._batch_size = batch_size
        self._num_processes = num_processes
        self._steering = steering
        self._open = ExitStack()
        self._backend: Backend | None = None
        self._chat_model: ChatModel | None = None

    def __enter__(self) -> "LocalModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def backend(self) -> "Backend":
        """Returns the model on every device, for misotune's own tasks."""
        from misotune.evaluation.backends.parallel import open_hf_backend

        if self._backend is None:
            self._close()
            self._say()
            opened = open_hf_backend(
                self._source.path,
                dtype=self._dtype,
                batch_size=self._batch_size,
                num_processes=self._num_processes,
                revision=self._source.revision,
                tokenizer=self._source.tokenizer,
                steering=self._steering,
            )
            self._backend = self._open.enter_context(opened)
        return self._backend

    def chat_model(self) -> "ChatModel":
        """Returns the model on one device, for lm-eval's tasks."""
        from misotune.evaluation.backends.chat_model import load_chat_model
        from misotune.evaluation.backends.hf import HfBackend

        if isinstance(self._backend, HfBackend):
            return self._backend.chat_model
        if self._chat_model is None:
            self._close()
            self._say()
            self._chat_model = load_chat_model(
                self._source.path,
                dtype=self._dtype,
                revision=self._source.revision,
                tokenizer=self._source.tokenizer,
            )
        return self._chat_model

    def _close(self) -> None:
        self._open.close()
        self._backend = self._chat_model = None

    def _say(self) -> None:
        self._messages.print(f"loading {self._source.path}", markup=False)
