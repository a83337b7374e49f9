"""What ends a run early, on all ranks at the same step: a signal, or a number that is no longer finite."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from misotune.errors import RunError, ToldError
from misotune.runs import RunFolder
from misotune.training.batches import MicroBatches
from misotune.training.non_finite import save_micro_batch
from misotune.training.saving.checkpoints import list_checkpoints
from misotune.training.signals import Phase, StopSignals
from misotune.training.watching.events import record_event

_MOST_IDS = 8


class StopGuard(TrainerCallback):
    """Stops a run.

    Once per step, after the last micro-batch's forward pass, the ranks tell one another in one small collective
    whether they were sent a signal and whether a loss is not finite. That is before the backward pass, in which
    DeepSpeed already updates the weights. A gradient's norm is the same on all ranks: it needs no collective.

    Args:
        run: The run folder.
        micro_batches: For the rows to name and keep.
        signals: The signals received.
        tokenizer: To keep rows as text.
    """

    def __init__(self, run: RunFolder, micro_batches: MicroBatches, signals: StopSignals, tokenizer: Any) -> None:
        self.run = run
        self.micro_batches = micro_batches
        self.signals = signals
        self.tokenizer = tokenizer
        # Losses alone are kept of a step's micro-batches, by their numbers: the rest can be made again.
        self._losses: dict[int, torch.Tensor] = {}
        self._norm: Any = None
        self._agreed_signal = 0
        self._stopped_after: int | None = None

    def watch_gradients(self, accelerator: Any) -> None:
        """Looks at each gradient norm that the trainer computes, before an optimizer of torch uses the gradient.

        DeepSpeed computes it inside its own step, which it skips where the norm is not finite.
        """
        compute: Callable[..., Any] = accelerator.clip_grad_norm_

        @wraps(compute)
        def compute_and_keep(*arguments: Any, **options: Any) -> Any:
            self._norm = compute(*arguments, **options)
            return self._norm

        accelerator.clip_grad_norm_ = compute_and_keep

    def observe(self, batch: Mapping[str, Any], losses: torch.Tensor) -> None:
        """Looks at a micro-batch's losses; after a step's last one the ranks agree.

        Raises:
            RunError: A loss of the step is not finite, on this rank or another.
        """
        schedule = self.micro_batches.schedule
        step, slot = divmod(int(batch["index"]), schedule.accumulation * schedule.num_devices)
        if slot < schedule.num_devices:
            self._losses = {}
        self._losses[batch["index"]] = losses.detach()
        if slot < (schedule.accumulation - 1) * schedule.num_devices:
            return
        broken = ~torch.stack([torch.isfinite(some).all() for some in self._losses.values()]).all()
        self._agreed_signal, is_broken = _agree(self.signals.number, broken)
        if is_broken:
            mine = {index: some for index, some in self._losses.items() if not torch.isfinite(some).all()}
            raise self._non_finite(step + 1, mine, "loss")

    def check(self) -> None:
        """Raises what ended the run, after training returned; ranks come out of it together.

        Raises:
            StoppedError: A signal ended it, and a checkpoint is written.
        """
        if self._stopped_after is None:
            self.signals.phase = Phase.FINISHING
            return
        # A launcher ends the other ranks when one is gone: none may go while another still writes.
        if _num_ranks() > 1:
            torch.distributed.barrier()
        step, num_steps = self._stopped_after, self.micro_batches.schedule.num_steps
        saved = f"saved in {self.run.checkpoints / f'step-{step}'}"
        text = f"after step {step} of {num_steps}; {saved}; {self.signals.next_command()}"
        raise self.signals.stop(self._agreed_signal, text)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called before each step."""
        self.signals.begin_training()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called when the step's gradient is there.

        Raises:
            RunError: The gradient is not finite.
        """
        if self._norm is None:  # the engine does not tell it
            return
        norm = float(self._norm)
        if not math.isfinite(norm) or norm < 0:  # DeepSpeed has -1 for some that are not finite
            raise self._non_finite(state.global_step + 1, self._losses, f"gradient norm {norm}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called after each step, before it is logged and saved."""
        if _num_ranks() == 1:
            self._agreed_signal = self.signals.number
        if self._stop_if_agreed(state, control):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called after each checkpoint: a signal that came while it was written does not wait for another step."""
        if self._stopped_after is None:
            nothing = torch.zeros((), dtype=torch.bool, device=args.device)
            self._agreed_signal, _ = _agree(self.signals.number, nothing)
            self._stop_if_agreed(state, control)

    def _stop_if_agreed(self, state: TrainerState, control: TrainerControl) -> bool:
        # After the last step the final model is all that is left to write.
        if not self._agreed_signal or state.global_step >= state.max_steps:
            return False
        control.should_training_stop = True
        self._stopped_after = state.global_step
        return True

    def _non_finite(self, step: int, losses: Mapping[int, torch.Tensor], what: str) -> RunError:
        """Keeps micro-batches of this rank and returns the error about those of all ranks."""
        folder = self.run.non_finite / f"step-{step}"
        problem = ""
        try:
            for index, some in losses.items():
                save_micro_batch(folder, self.micro_batches, index, some, self.tokenizer)
        except OSError as error:  # the disk is full, for instance
            problem = f" ({error.strerror or error})"
        mine = [
            (index, [member.id for member in self.micro_batches.members(index)], _worst(some))
            for index, some in losses.items()
        ]
        found = sorted(entry for entries in _gather(mine) for entry in entries)
        if what == "loss":
            what = f"loss {found[0][2]} in micro-batch {', '.join(str(index) for index, _, _ in found)}"
        ids = [row for _, rows, _ in found for row in rows]
        rows = ", ".join(ids[:_MOST_IDS]) + (f" and {len(ids) - _MOST_IDS} more" if len(ids) > _MOST_IDS else "")
        kept = f"could not be kept{problem}" if problem else f"kept in {folder}"
        message = (
            f"step {step}: {what}; its rows: {rows}; {kept}. {self._last_checkpoint()}; lower train.learning_rate or "
            "look at these rows"
        )
        record_event(self.run, "stop", message)
        return RunError(message) if os.environ.get("LOCAL_RANK", "0") == "0" else ToldError(message)

    def _last_checkpoint(self) -> str:
        checkpoints = list_checkpoints(self.run.checkpoints)
        return f"The last checkpoint, {checkpoints[-1]}, is from before" if checkpoints else "There is no checkpoint"


def _worst(losses: torch.Tensor) -> str:
    """Returns the first loss that is not finite, as text."""
    broken = losses[~torch.isfinite(losses)]
    return str(float(broken[0])) if len(broken) else ""


def _num_ranks() -> int:
    is_joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_joined else 1


def _agree(number: int, broken: torch.Tensor) -> tuple[int, bool]:
    """Returns the highest signal that a rank received, and whether a loss of any rank is not finite."""
    flags = torch.stack([torch.tensor(number, dtype=torch.int32, device=broken.device), broken.int()])
    if _num_ranks() > 1:
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    agreed, is_broken = flags.tolist()
    return agreed, bool(is_broken)


def _gather(mine: list[Any]) -> Sequence[list[Any]]:
    """Returns every rank's list; no rank returns before each has come."""
    if _num_ranks() == 1:
        return [mine]
    everyone: list[Any] = [None] * _num_ranks()
    torch.distributed.all_gather_object(everyone, mine)
    return everyone
