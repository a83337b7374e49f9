"""One loss: devices, accumulation, packing and engine change neither the losses nor the gradient norms of a run.

What they must be is computed here by a loop of plain torch in float64: one sample at a time, attention by the literal
equations, the loss as it is defined, torch's AdamW. Every case is then a real run in float32, on gloo ranks.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import combinations, product

import pytest
import torch
from tests.training.corpora import chunk_row, para_row, write
from tests.training.rank_driver import Case, train_on_two_ranks
from transformers import AutoModelForCausalLM

from misotune.attention import ATTENTION_NAME, register
from misotune.training.prepared import Watcher, prepare_run
from misotune.training.schedule import Schedule

FACTORS = {
    "ranks": (2, 1),
    "accumulation": (1, 2, 4),
    "layout": ("packed", "single"),
    "engine": ("plain", "zero-0", "zero-1", "zero-2", "zero-3"),
    "mode": ("sft", "para", "succ"),
    "loss": ("token_mean", "instruction_mean"),
}
# Sums in another order, in float32.
RELATIVE_TOLERANCE = 1e-5
STEPS = 3
LEARNING_RATE = 1e-3
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Cell:
    """A cell of the matrix: `ranks` x `accumulation` micro-batches, of packed rows or of one sample each."""

    ranks: int
    accumulation: int
    layout: str
    engine: str
    mode: str
    loss: str

    @property
    def name(self) -> str:
        return f"{self.mode}-{self.layout}-{self.ranks}x{self.accumulation}-{self.engine}-{self.loss}"

    @property
    def batch_size(self) -> int:
        return 8 if self.layout == "packed" else self.ranks * self.accumulation


def whole_matrix() -> list[Cell]:
    return [Cell(**dict(zip(FACTORS, values, strict=True))) for values in product(*FACTORS.values())]


def pairs_of(cell: Cell) -> set[tuple[tuple[str, object], ...]]:
    return set(combinations(asdict(cell).items(), 2))


def all_pairs() -> list[Cell]:
    """Returns few cells in which any two values of two factors meet, chosen greedily."""
    cells = whole_matrix()
    missing = set().union(*map(pairs_of, cells))
    chosen: list[Cell] = []
    while missing:
        best = max(cells, key=lambda cell: len(pairs_of(cell) & missing))
        chosen.append(best)
        missing -= pairs_of(best)
    return chosen


@pytest.fixture
def recipe_of(make_recipe, tmp_path):
    """Returns the recipe of a cell; sft has samples of one, two and three instructions."""
    mixture = write(
        tmp_path / "mixture",
        [para_row(0), para_row(1)]
        + [chunk_row(i, f"c{i // 2}", answer="Four" + " or five" * (i % 3) + ".") for i in range(2, 12)]
        + [chunk_row(i, "d", question="What is it?") for i in (12, 13, 14)],
    )

    def recipe(cell, **train):
        miso = {"mode": cell.mode}
        if cell.mode == "succ":
            miso["chunks"] = {1: 0.3, 2: 0.4, 3: 0.3}
        return make_recipe(
            train.pop("name", cell.name),
            **({"data": {"path": str(mixture), "max_length": 900}} if cell.mode == "sft" else {}),
            miso=miso | ({"kernel": train.pop("kernel")} if "kernel" in train else {}),
            train={
                "max_steps": STEPS,
                "batch_size": cell.batch_size,
                "loss": cell.loss,
                "learning_rate": LEARNING_RATE,
                "schedule": "constant",
                "warmup_ratio": 0.0,
                "max_grad_norm": MAX_GRAD_NORM,
                "trial_save": False,
                "pack": False,
            }
            | train,
            deepspeed=None if cell.engine == "plain" else {"stage": int(cell.engine[-1])},
        )

    return recipe


@pytest.fixture
def expected_of(recipe_of):
    """Returns the losses and gradient norms of a cell, from the definition."""

    @cache
    def expected(mode, loss, batch_size):
        cell = Cell(1, batch_size, "single", "plain", mode, loss)
        return list(plain_steps(recipe_of(cell, name="expected", kernel="reference")))

    return lambda cell: expected(cell.mode, cell.loss, cell.batch_size)


def plain_steps(recipe) -> Iterator[tuple[float, float]]:
    """Yields each step's loss and gradient norm."""
    batches = prepare_run(recipe, num_devices=1, watcher=Watcher()).micro_batches
    register()
    model = AutoModelForCausalLM.from_pretrained(
        recipe.model.name, dtype=torch.float64, attn_implementation=ATTENTION_NAME
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for step in range(STEPS):
        instructions = []
        for i in range(recipe.train.batch_size):
            batch = batches[step * recipe.train.batch_size + i]
            inputs = {key: batch[key] for key in ("input_ids", "position_ids", "miso", "logits_to_keep")}
            logits = model(**inputs, use_cache=False).logits[0]
            losses = torch.nn.functional.cross_entropy(logits, batch["targets"], reduction="none")
            instructions += losses.split(trained_by_instruction(batches, step, i, losses))
        if recipe.train.loss == "instruction_mean":
            instructions = [losses.mean()[None] for losses in instructions]
        loss = torch.cat(instructions).mean()
        optimizer.zero_grad()
        loss.backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        for gradient in gradients:
            gradient *= min(1.0, MAX_GRAD_NORM / norm.item())
        optimizer.step()
        yield loss.item(), norm.item()


def trained_by_instruction(batches, step, i, losses) -> list[int]:
    """Returns how many of the losses belong to each instruction of micro-batch i of a step."""
    ((_, index),) = batches.schedule.step_rows(step)[i]
    numbers = list(batches.samples[index].num_trained_by_instruction)
    assert sum(numbers) == len(losses)
    return numbers


def cell_recipe(cell, recipe_of):
    """Returns the cell's recipe, with rows that are just long enough for its number of micro-batches."""
    if cell.layout == "single":
        return recipe_of(cell)
    schedule = prepare_run(recipe_of(cell), num_devices=cell.ranks, watcher=Watcher()).micro_batches.schedule
    return recipe_of(cell, pack=True, tokens_per_micro_batch=capacity_for(schedule, cell.accumulation))


def capacity_for(schedule: Schedule, accumulation: int) -> int:
    for capacity in range(8 * max(schedule.lengths), 0, -5):
        if replace(schedule, capacity=capacity).accumulation == accumulation:
            return capacity
    raise AssertionError(f"no packing of these rows takes {accumulation} micro-batches")


def largest_error(run, expected) -> float:
    """Returns the largest relative error of the losses and gradient norms of a run."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    got = torch.tensor([[line["loss"], line["grad_norm"]] for line in lines], dtype=torch.float64)
    want = torch.tensor(expected, dtype=torch.float64)
    assert got.shape == want.shape == (STEPS, 2)
    assert (want[:, 1] > MAX_GRAD_NORM).any()  # the norm is told before clipping, and clipping had its part
    return ((got - want).abs() / want).max().item()


def check(cells, recipe_of, expected_of, tmp_path):
    cases = [Case(cell_recipe(cell, recipe_of), ranks=cell.ranks) for cell in cells]
    errors = {}
    for cell, run in zip(cells, train_on_two_ranks(cases, tmp_path), strict=True):
        plan = run.read_plan()
        assert (plan["devices"], plan["accumulation"]) == (cell.ranks, cell.accumulation), cell.name
        errors[cell.name] = largest_error(run, expected_of(cell))
    wrong = {name: f"{error:.1e}" for name, error in errors.items() if not error <= RELATIVE_TOLERANCE}
    assert not wrong


@pytest.mark.distributed
@pytest.mark.slow
def test_devices_accumulation_packing_and_engine_change_no_loss_and_no_gradient_norm(recipe_of, expected_of, tmp_path):
    """Any two of the matrix's values in one case at least; MISOTUNE_FULL_MATRIX tests all 360."""
    check(all_pairs(), recipe_of, expected_of, tmp_path)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.long
@pytest.mark.skipif("MISOTUNE_FULL_MATRIX" not in os.environ, reason="takes half an hour: set MISOTUNE_FULL_MATRIX")
def test_the_whole_matrix(recipe_of, expected_of, tmp_path):
    check(whole_matrix(), recipe_of, expected_of, tmp_path)


def test_cover_holds_every_pair():
    cells = all_pairs()
    assert len(cells) < 25
    assert set().union(*map(pairs_of, cells)) == set().union(*map(pairs_of, whole_matrix()))


def average_each_micro_batch(rank: int) -> None:
    """Breaks the loss in the way of transformers#34191: each micro-batch's own mean, then the mean of these."""
    from misotune.training import trainer

    accumulation = int(os.environ["ACCUMULATION"])
    trainer.step_loss = lambda losses, *_: losses.mean() / accumulation


@pytest.mark.distributed
@pytest.mark.slow
def test_a_mean_of_means_would_be_seen(recipe_of, expected_of, tmp_path):
    over_ranks = Cell(2, 1, "single", "plain", "para", "token_mean")
    over_micro_batches = Cell(1, 2, "single", "plain", "para", "token_mean")
    cells = [over_ranks, over_micro_batches]
    broken = [
        Case(
            recipe_of(cell),
            ranks=cell.ranks,
            before=f"{__name__}:average_each_micro_batch",
            environment={"ACCUMULATION": str(cell.accumulation)},
        )
        for cell in cells
    ]
    for cell, run in zip(cells, train_on_two_ranks(broken, tmp_path), strict=True):
        assert largest_error(run, expected_of(cell)) > 100 * RELATIVE_TOLERANCE
