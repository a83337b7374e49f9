"""The trial save finds before the first step what would fail at a save, and changes nothing."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import GenerationConfig, PreTrainedTokenizerFast

from misotune.errors import RunError
from misotune.training.prepared import Watcher
from misotune.training.run import train
from misotune.training.saving import trial as module
from misotune.training.saving.trial import full_optimizer_state


def steps_of(recipe):
    """Trains until it fails; returns the steps that were done, and the error."""
    steps = []
    with pytest.raises(RunError) as caught:
        train(recipe, "name: test\n", watcher=Watcher(on_metrics=lambda metrics: steps.append(metrics.step)))
    return steps, str(caught.value)


def losses(run):
    return [json.loads(line)["loss"] for line in run.metrics.read_text().splitlines()]


@pytest.mark.parametrize("lora", [None, {"rank": 4, "dropout": 0.1}], ids=["full", "lora"])
def test_trial_leaves_an_event_and_changes_no_number(make_recipe, lora):
    tried = train(make_recipe("tried", lora=lora), "name: test\n")
    untried = train(make_recipe("untried", lora=lora, train={"trial_save": False}), "name: test\n")
    texts = [json.loads(line)["text"] for line in tried.events.read_text().splitlines()]
    assert [text for text in texts if text.startswith("trial: 0 MiB written, read back and deleted in ")]
    assert "trial:" not in untried.events.read_text()
    assert list(tried.checkpoints.iterdir()) == []
    assert losses(tried) == losses(untried)
    file = "model.safetensors" if lora is None else "adapter_model.safetensors"
    ours, theirs = load_file(tried.final / file), load_file(untried.final / file)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_trial_checkpoint_is_as_large_as_a_later_one(make_recipe, monkeypatch):
    sizes = []

    def keep(written, *arguments):
        sizes.append({path.name: path.stat().st_size for path in written.iterdir()})
        return original(written, *arguments)

    original = module.keep_checkpoint
    monkeypatch.setattr(module, "keep_checkpoint", keep)
    monkeypatch.setattr("misotune.training.saving.keeper.keep_checkpoint", keep)
    train(make_recipe(train={"max_steps": 1, "save_every_steps": 1}), "name: test\n")
    first, later = sizes
    assert first.keys() == later.keys()
    assert first["optimizer.pt"] == pytest.approx(later["optimizer.pt"], rel=0.02)
    assert first["model.safetensors"] == later["model.safetensors"]


def test_generation_config_that_cannot_be_saved_is_found_before_the_first_step(make_recipe, monkeypatch):
    """transformers refuses to save some that it loads: the run of transformers#29988 ended so, after hours."""

    def refuse(self, *arguments, **options):
        raise ValueError("GenerationConfig is invalid: `temperature` is set to 0.9")

    monkeypatch.setattr(GenerationConfig, "save_pretrained", refuse)
    steps, message = steps_of(make_recipe())
    assert not steps
    assert message == (
        "the trial checkpoint could not be saved: ValueError: GenerationConfig is invalid: `temperature` is set to "
        "0.9. There is no earlier checkpoint; once that is cured, go on: misotune train RECIPE --resume"
    )


def test_tokenizer_that_comes_back_as_another_is_found_before_the_first_step(make_recipe, monkeypatch):
    save = PreTrainedTokenizerFast.save_pretrained

    def lose_the_template(self, folder, *arguments, **options):
        saved = save(self, folder, *arguments, **options)
        from pathlib import Path

        Path(folder, "chat_template.jinja").write_text("{{ messages }}")
        return saved

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", lose_the_template)
    steps, message = steps_of(make_recipe())
    assert not steps
    assert "the tokenizer is another one when it is read back" in message


def test_weights_that_are_saved_empty_are_found_before_the_first_step(make_recipe, monkeypatch):
    """What ZeRO-3 writes when nobody gathers the weights."""
    from transformers import PreTrainedModel

    save = PreTrainedModel.save_pretrained

    def save_empty(self, folder, *arguments, state_dict=None, **options):
        empty = {name: weight.new_empty(0) for name, weight in self.state_dict().items() if name != "lm_head.weight"}
        return save(self, folder, *arguments, state_dict=empty, **options)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_empty)
    steps, message = steps_of(make_recipe())
    assert not steps
    assert "model.safetensors holds model.embed_tokens.weight of shape [0], and it is [" in message


def test_optimizer_is_given_its_state_for_the_trial_alone():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    with full_optimizer_state(optimizer):
        state = optimizer.state_dict()["state"][0]
        assert {key: value.shape for key, value in state.items()} == {
            "step": torch.Size([]),
            "exp_avg": torch.Size([3]),
            "exp_avg_sq": torch.Size([3]),
        }
    assert not optimizer.state
    weight.grad = torch.ones(3)
    optimizer.step()
    before = optimizer.state_dict()["state"][0]["exp_avg"].clone()
    with full_optimizer_state(optimizer):
        pass
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], before)  # what is there stays
