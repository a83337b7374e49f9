"""The plan of a run: what will be trained on, in how many steps, known before the model is loaded."""

from typing import Any

import numpy as np

from misotune.recipe.schema import Recipe
from misotune.training.batches import MicroBatches
from misotune.training.corpus import Corpus
from misotune.training.speed import device_name, emulates_bf16
from misotune.training.trainer import warmup_steps


def make_plan(recipe: Recipe, corpus: Corpus, micro_batches: MicroBatches, kernel: str) -> dict[str, Any]:
    """Returns the plan as it is printed and kept in `plan.json`; lengths are in tokens.

    Args:
        recipe: The recipe.
        corpus: What is trained on.
        micro_batches: In which order.
        kernel: The attention kernel that was chosen, and why.
    """
    schedule = micro_batches.schedule
    lengths = np.array(schedule.lengths)
    tokens, trained = (
        sum(getattr(micro_batches.count(step), field) for step in range(schedule.num_steps))
        for field in ("tokens", "trained_tokens")
    )
    packing = schedule.packing
    inputs = corpus.samples.num_inputs
    return {
        "name": recipe.name,
        "model": recipe.model.name,
        "dataset": recipe.data.path,
        "data": corpus.account(),
        "cache": {"used": corpus.from_cache, "key": corpus.key, "folder": corpus.cache and str(corpus.cache)},
        "mode": recipe.miso.mode,
        "weighting": recipe.miso.weighting,
        "weights": recipe.miso.weights or None,
        "positions": recipe.miso.chosen_positions,
        "kernel": kernel,
        "trained_on": "the response and its end-of-turn token",
        "loss": recipe.train.loss,
        "inputs_per_sample": {"mean": round(float(np.mean(inputs)), 2), "max": int(inputs.max())},
        "sample_length": {
            "median": int(np.median(lengths)),
            "p99": int(np.quantile(lengths, 0.99)),
            "max": int(lengths.max()),
        },
        "steps": schedule.num_steps,
        "warmup_steps": warmup_steps(recipe.train.warmup_ratio, schedule.num_steps),
        "samples_per_step": schedule.batch_size,
        "devices": schedule.num_devices,
        "accumulation": schedule.accumulation,
        "tokens": tokens,
        "trained_tokens": trained,
        "device_name": device_name(),
        "packed_rows": packing.num_rows,
        "longest_row": packing.longest_row,
        "row_capacity": schedule.capacity,
        "packing_waste": None if schedule.capacity is None else round(packing.waste, 4),
        "device_balance": round(packing.balance, 4),
        "precision": recipe.train.precision,
        "emulates_bf16": emulates_bf16(recipe.train.precision),
        "trains": "all weights" if recipe.lora is None else f"LoRA of rank {recipe.lora.rank}",
    }
