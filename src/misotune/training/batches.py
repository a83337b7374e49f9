"""Micro-batches: what the trainer's data loader hands to the model, one packed row at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from misotune.attention import MisoArguments
from misotune.layout import Chunking, EncodedSample, build_row
from misotune.layout.row import Positions
from misotune.training.encoded import EncodedSamples
from misotune.training.schedule import Schedule

Loss = Literal["token_mean", "instruction_mean"]

# What an item holds beside the model's keyword arguments.
NOT_FOR_THE_MODEL = ("targets", "target_weights", "num_trained_in_step", "index")


@dataclass(frozen=True, slots=True)
class StepCount:
    """What one optimizer step holds, over all devices."""

    samples: int
    tokens: int
    trained_tokens: int
    instructions: int
    epoch: float


class MicroBatches(Dataset[dict[str, Any]]):
    """All micro-batches of a run: item i belongs to device i % num_devices.

    Args:
        samples: The corpus.
        schedule: The order.
        positions: How positions count.
        weighting: How attention results are fused.
        kernel: Which attention kernel.
        shares: Of roles, for the weighting `fixed`.
        chunking: How inputs are cut (mode succ); None: samples stay whole.
        loss: What a step's loss is the mean of.
    """

    def __init__(
        self,
        samples: EncodedSamples,
        schedule: Schedule,
        *,
        positions: Positions,
        weighting: str,
        kernel: str,
        shares: Mapping[str, float] | None = None,
        chunking: Chunking | None = None,
        loss: Loss = "token_mean",
    ) -> None:
        self.samples = samples
        self.schedule = schedule
        self.positions: Positions = positions
        self.weighting = weighting
        self.shares = shares
        self.kernel = kernel
        self.chunking = chunking
        self.loss: Loss = loss
        self._num_tokens = samples.num_tokens
        self._step_rows: dict[int, list[list[tuple[int, int]]]] = {}

    def __len__(self) -> int:
        return self.schedule.num_micro_batches

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns the model's keyword arguments, and beside them what `step_loss` needs."""
        step, entries = self._entries(index)
        # Every device must run every micro-batch, or collectives would wait for ever: a device without a row
        # runs the step's first sample and trains none of its tokens.
        members = [self._sample(entry) for entry in entries or self._step_rows[step][0][:1]]
        row = build_row(members, self.positions, self.shares)
        none = torch.zeros(0, dtype=torch.long)
        count = self.count(step)
        weights = None
        if self.loss == "instruction_mean":
            weights = instruction_weights(members if entries else (), count)
        return {
            "input_ids": row.input_ids,
            "position_ids": row.position_ids,
            "miso": MisoArguments(row.layout, self.weighting, self.kernel),
            "logits_to_keep": row.predictors if entries else none,
            "targets": row.targets if entries else none,
            "target_weights": weights,
            "num_trained_in_step": count.trained_tokens,
            "index": index,
        }

    def members(self, index: int) -> list[EncodedSample]:
        """Returns the samples whose trained tokens a micro-batch holds, in order; of an empty row none."""
        return [self._sample(entry) for entry in self._entries(index)[1]]

    def sample_ids(self, step: int) -> list[str]:
        """Returns the ids of a step's rows, for messages."""
        return [self.samples[index].id for _, index in self.schedule.step_samples(step)]

    def count(self, step: int) -> StepCount:
        """Returns what a step holds."""
        entries = self.schedule.step_samples(step)
        members = [index for _, index in entries]
        return StepCount(
            samples=len(entries),
            tokens=int(self._num_tokens[members].sum()),
            trained_tokens=int(self.samples.num_trained_tokens[members].sum()),
            instructions=int(self.samples.num_instructions[members].sum()),
            epoch=(step * self.schedule.batch_size + len(entries)) / len(self.samples),
        )

    def _entries(self, index: int) -> tuple[int, list[tuple[int, int]]]:
        """Returns the step of a micro-batch and its samples as (epoch, index)."""
        step, slot = divmod(index, self.schedule.accumulation * self.schedule.num_devices)
        if step not in self._step_rows:
            # Two are kept: the loader is one item ahead of those who ask for the members of the running one.
            kept = list(self._step_rows.items())[-1:]
            self._step_rows = {**dict(kept), step: self.schedule.step_rows(step)}
        return step, self._step_rows[step][slot]

    def _sample(self, entry: tuple[int, int]) -> EncodedSample:
        epoch, index = entry
        sample = self.samples[index]
        return self.chunking.cut(sample, epoch) if self.chunking else sample


def instruction_weights(samples: Sequence[EncodedSample], count: StepCount) -> torch.Tensor:
    """Returns the weight of each trained token of a row under the loss `instruction_mean`.

    The step's loss is the mean over its I instructions of each one's mean over its t trained tokens. As a mean
    over all T trained tokens of the step, in which `step_loss` computes it, a token so weighs T / (I t).

    Args:
        samples: The samples of the row, in order.
        count: What the step holds, over all devices.
    """
    numbers = [number for sample in samples for number in sample.num_trained_by_instruction]
    by_instruction = count.trained_tokens / (count.instructions * np.maximum(numbers, 1))
    return torch.as_tensor(np.repeat(by_instruction, numbers).astype(np.float32))
