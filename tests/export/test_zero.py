"""A step that ZeRO-3 trained on two gloo ranks, for real: joined from the ranks' pieces, exported and checked."""

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import dataset, make_recipe  # noqa: F401 - fixtures
from tests.training.rank_driver import train_on_two_ranks

from misotune.export.check import check_export
from misotune.export.export import ExportOptions, export_source
from misotune.export.source import find_source


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_step_of_zero_3_on_two_ranks_is_exported(make_recipe, tmp_path):  # noqa: F811
    settings = {"max_steps": 2, "save_every_steps": 1, "batch_size": 4, "precision": "bf16", "trial_save": False}
    zero = {"train": settings, "deepspeed": {"stage": 3}}
    full, lora = train_on_two_ranks(
        [make_recipe("full", **zero), make_recipe("lora", lora={"rank": 4}, **zero)], tmp_path
    )
    step = full.checkpoints / "step-1"
    saved = load_file(step / "model.safetensors")
    report = export_source(find_source(step), tmp_path / "out")
    assert report.proof.compared_with == "DeepSpeed's consolidated model"
    assert report.num_consolidated == len(saved) == 20
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in saved.items())
    later = load_file(full.final / "model.safetensors")
    assert not torch.equal(written["model.norm.weight"], later["model.norm.weight"])
    # The ranks' own weights are finer than those that were computed with.
    export_source(find_source(step), tmp_path / "exact", options=ExportOptions(dtype="float32"))
    exact = load_file(tmp_path / "exact" / "model.safetensors")
    assert all(torch.equal(exact[name].bfloat16(), tensor) for name, tensor in saved.items())
    assert any(not torch.equal(exact[name], tensor.float()) for name, tensor in saved.items())
    assert check_export(tmp_path / "exact").not_checked == []

    report = export_source(find_source(lora.checkpoints / "step-2"), tmp_path / "merged")
    assert report.merge.num_changed == report.merge.num_modules == 14
    assert report.num_consolidated == 28
