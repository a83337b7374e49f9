"""Seeds of what is drawn while training (dropout): a function of seed, step and rank, whatever ran before."""

from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StepSeeds(TrainerCallback):
    """Seeds torch at the beginning of every optimizer step.

    A resumed run so draws what the uninterrupted one drew, without a saved state of the generators; and nothing that
    draws between two steps (a save, a probe) moves what the next one draws.

    Args:
        seed: The recipe's.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called on every rank before a step's first micro-batch."""
        torch.manual_seed(step_seed(self.seed, state.global_step, args.process_index))


def step_seed(seed: int, step: int, rank: int) -> int:
    """Returns the seed of a step on a rank, 0 to 2**63 - 1; `step` counts from 0.

    The three are mixed, not added: ranks must not draw what others draw some steps later.

    >>> step_seed(0, 1, 0) == step_seed(0, 0, 1)
    False
    """
    (mixed,) = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    return int(mixed >> np.uint64(1))
