"""The loss by group is the run's loss taken apart: put together again it is that loss, whatever the run."""

import json
import math

import pytest
import torch
from tests.training.rank_driver import Case, train_on_two_ranks

from misotune.training.prepared import Watcher, prepare_run
from misotune.training.run import train
from misotune.training.watching.groups import GroupLosses


@pytest.fixture
def sourced(dataset, tmp_path):
    """The rows of `dataset` from three sources, and two chunks of rows from different ones."""
    rows = [json.loads(line) for line in dataset.read_text().splitlines()]
    for i, row in enumerate(rows):
        row["source"] = ("crab", "tulu", "")[i % 3]
        row["domain"] = "d"
        if 4 <= i < 8:
            row["chunk"] = "a" if i < 6 else "b"
    path = tmp_path / "sourced.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Rows of several inputs cannot be joined: the chunks are dropped in all modes but sft.
    return {"path": str(path), "max_length": 400, "max_dropped": 0.9}


def lines_of(run):
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def assert_groups_are_the_loss(lines, kinds):
    for line in lines:
        assert set(line["groups"]) == kinds
        for groups in line["groups"].values():
            assert sum(group["share"] * group["loss"] for group in groups.values()) == pytest.approx(
                line["loss"], rel=1e-6
            )
            assert sum(group["share"] for group in groups.values()) == pytest.approx(1, rel=1e-9)


CASES = {
    "para": ({"mode": "para", "inputs": ["full", "constraint", "base"]}, {"source", "inputs"}),
    "flat": ({"mode": "flat"}, {"source", "role"}),
    "succ": ({"mode": "succ"}, {"source", "inputs"}),
    "sft-in-chunks": ({"mode": "sft"}, {"source"}),
}


@pytest.mark.parametrize("loss", ["token_mean", "instruction_mean"])
@pytest.mark.parametrize(("miso", "kinds"), CASES.values(), ids=CASES)
def test_parts_of_the_loss_sum_to_it(make_recipe, sourced, miso, kinds, loss):
    settings = {"loss": loss, "tokens_per_micro_batch": 600, "trial_save": False}
    run = train(make_recipe(miso=miso, train=settings, data=sourced), "name: test\n")
    lines = lines_of(run)
    assert len(lines) == 4
    assert_groups_are_the_loss(lines, kinds)
    assert {name for line in lines for name in line["groups"]["source"]} == {"crab", "tulu", "(not named)"}


def test_line_of_several_steps_sums_over_them(make_recipe, sourced):
    settings = {"max_steps": 6, "log_every_steps": 3, "trial_save": False}
    run = train(make_recipe(train=settings, data=sourced), "name: test\n")
    lines = lines_of(run)
    assert [line["step"] for line in lines] == [1, 3, 6]
    assert_groups_are_the_loss(lines, {"source", "inputs"})
    tokens = sum(group["tokens"] for line in lines for group in line["groups"]["source"].values())
    assert tokens == json.loads(run.plan.read_text())["trained_tokens"]


def test_sources_of_a_joined_sample_are_told_apart_token_by_token(make_recipe, sourced):
    """By hand: each instruction's own tokens, with the losses that the run itself observed."""
    recipe = make_recipe(miso={"mode": "sft"}, data=sourced, train={"batch_size": 12, "max_steps": 1})
    micro_batches = prepare_run(recipe, num_devices=1, watcher=Watcher()).micro_batches
    groups = GroupLosses(micro_batches, by_role=False)
    expected = {"crab": [], "tulu": [], "(not named)": []}
    for index in range(len(micro_batches)):
        batch = micro_batches[index]
        losses = torch.rand(len(batch["targets"]))
        groups.observe(batch, losses)
        at = 0
        for sample in micro_batches.members(index):
            for start, source in zip(sample.starts, sample.sources, strict=True):
                stop = min([s for s in sample.starts if s > start], default=len(sample.output))
                number = int(sample.is_trained[start:stop].sum())
                expected[source or "(not named)"] += losses[at : at + number].tolist()
                at += number
        assert at == len(losses)
    assert any(len(set(sample.sources)) > 1 for sample in micro_batches.samples)
    found = groups.take()["source"]
    assert {name: group.tokens for name, group in found.items()} == {k: len(v) for k, v in expected.items()}
    for name, values in expected.items():
        assert found[name].loss == pytest.approx(sum(values) / len(values), rel=1e-6)


def test_kinds_of_one_group_are_left_out(make_recipe):
    settings = {"max_steps": 1, "trial_save": False}
    run = train(make_recipe(miso={"mode": "sft"}, train=settings), "name: test\n")
    assert lines_of(run)[0]["groups"] == {}


def test_groups_with_a_number_that_is_not_finite_do_not_hide_the_others(make_recipe, sourced):
    recipe = make_recipe(data=sourced, train={"batch_size": 12, "max_steps": 1})
    micro_batches = prepare_run(recipe, num_devices=1, watcher=Watcher()).micro_batches
    groups = GroupLosses(micro_batches, by_role=False)
    for index in range(len(micro_batches)):
        batch = micro_batches[index]
        losses = torch.ones(len(batch["targets"]))
        sources = [s for m in micro_batches.members(index) for s in m.sources for _ in range(m.num_trained_tokens)]
        losses[[source == "tulu" for source in sources]] = math.nan
        groups.observe(batch, losses)
    taken = groups.take()["source"]
    assert math.isnan(taken["tulu"].loss)
    assert taken["crab"].loss == pytest.approx(1)


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_sum_the_groups_of_both(make_recipe, sourced, tmp_path):
    settings = {"max_steps": 3, "batch_size": 5, "trial_save": False}
    one = train(make_recipe("one", train=settings, data=sourced), "name: test\n")
    (two,) = train_on_two_ranks([Case(make_recipe("two", train=settings, data=sourced))], tmp_path)
    assert_groups_are_the_loss(lines_of(two), {"source", "inputs"})
    for ours, theirs in zip(lines_of(two), lines_of(one), strict=True):
        for kind, groups in theirs["groups"].items():
            assert set(groups) == set(ours["groups"][kind])
            for name, group in groups.items():
                assert ours["groups"][kind][name]["tokens"] == group["tokens"]
                assert ours["groups"][kind][name]["loss"] == pytest.approx(group["loss"], rel=1e-5)
