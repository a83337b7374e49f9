"""What is drawn in a step depends on seed, step and rank alone."""

import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from misotune.training.seeds import StepSeeds, step_seed


def drawn(tmp_path, step):
    state = TrainerState(global_step=step)
    StepSeeds(7).on_step_begin(TrainingArguments(str(tmp_path), use_cpu=True), state, TrainerControl())
    return torch.rand(8).tolist()


def test_step_draws_the_same_whatever_was_drawn_before(tmp_path):
    first = drawn(tmp_path, 3)
    torch.rand(5)
    assert drawn(tmp_path, 4) != first
    assert drawn(tmp_path, 3) == first


def test_no_two_steps_ranks_or_seeds_draw_alike():
    seeds = [step_seed(seed, step, rank) for seed in (0, 1, 2**32 - 1) for step in range(50) for rank in range(8)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
