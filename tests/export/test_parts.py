"""The parts of an export that need no process of their own."""

import json

import pytest
import torch
from tests.export.conftest import start_run

from misotune.errors import RunError
from misotune.export.base import hub_id, read_license
from misotune.export.card import model_card
from misotune.export.checkpoint import tidy_configuration
from misotune.export.probe import Probe, relative_difference, tolerance_of
from misotune.export.proof import Proof, chat_of, check_chat, check_logits, end_of_turn_id
from misotune.layout import ChatTemplate
from misotune.recipe.loading import load_recipe
from misotune.runs import RunFolder

PROOF = Proof(1e-6, 1e-4, 16, 16, 1000, "float32", "cpu", "sdpa", 257, 16, True, "Elbe")


@pytest.mark.parametrize(
    ("dtypes", "tolerance"),
    [(("float32", "float32"), 1e-4), (("float32", "bfloat16"), 5e-2), (("float16",), 5e-2)],
)
def test_the_tolerance_is_that_of_the_coarser_format(dtypes, tolerance):
    assert tolerance_of(*dtypes) == tolerance


@pytest.mark.parametrize(("rounded_to", "tolerance"), [(None, 1e-4), ("bfloat16", 1e-1), ("float16", 5e-2)])
def test_weights_that_were_rounded_have_a_tolerance_of_their_own(rounded_to, tolerance):
    assert tolerance_of("float32", rounded_to=rounded_to) == tolerance


def test_a_constant_on_all_logits_is_no_difference_and_a_scale_is():
    logits = torch.randn(16, 50, generator=torch.Generator().manual_seed(0))
    assert relative_difference(logits + 3, logits) < 1e-6
    assert relative_difference(logits * 1.1, logits) == pytest.approx(0.1)


def test_logits_that_are_nan_or_of_another_vocabulary_are_refused():
    logits = torch.randn(4, 9)
    probe = Probe(torch.arange(4), logits, "float32")
    with pytest.raises(RunError, match="differ from the trained model's by nan"):
        check_logits(logits * float("nan"), probe, 1e-4, "it")
    with pytest.raises(RunError, match=r"it: its logits have the shape \(4, 8\), the trained model's \(4, 9\)"):
        check_logits(logits[:, :8], probe, 1e-4, "it")


def test_another_template_or_a_missing_end_of_turn_is_refused(tokenizer):
    template = ChatTemplate(tokenizer)
    end_id, chat = end_of_turn_id(template), chat_of(template)
    assert end_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    with pytest.raises(RunError, match="its chat template gives other tokens than training's"):
        check_chat({"prompt_ids": [1, 2]}, chat, "it")
    found = {"prompt_ids": chat.prompt_ids, "end_ids": [5], "stops": True, "response_ids": [1]}
    found["template_sha256"] = ""
    for wrong in ({}, {"end_ids": [end_id], "stops": False}):
        with pytest.raises(RunError, match=f"generation does not stop at token {end_id}"):
            check_chat(found | wrong, chat, "it")
    with pytest.raises(RunError, match="it generates nothing"):
        check_chat(found | {"end_ids": [end_id], "response_ids": []}, chat, "it")


@pytest.mark.parametrize(("known", "expected"), [(None, 7), (7, 7), (3, [3, 7]), ([3, 7], [3, 7])])
def test_generation_stops_at_the_end_of_turn_and_where_it_did(tmp_path, known, expected):
    (tmp_path / "config.json").write_text('{"_attn_implementation": "miso", "use_cache": false}')
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": known, "use_cache": False}))
    tidy_configuration(tmp_path, 7)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": expected}
    assert json.loads((tmp_path / "config.json").read_text()) == {"use_cache": True}


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("---\nlicense: other\nlicense_name: own\ntags: [x]\n---\ntext", {"license": "other", "license_name": "own"}),
        ("no front matter", {}),
        ("---\nlicense: [broken\n---\n", {}),
    ],
)
def test_the_licence_is_what_the_base_model_says(tmp_path, card, said):
    (tmp_path / "README.md").write_text(card)
    assert read_license(str(tmp_path), None) == said


def test_a_model_in_the_hubs_cache_has_its_hub_id():
    assert hub_id("/cache/hub/models--Qwen--Qwen2.5-0.5B/snapshots/abc") == "Qwen/Qwen2.5-0.5B"
    assert hub_id("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
    assert hub_id("/models/qwen") is None


def test_the_card_has_metadata_that_the_hub_reads_and_the_scores(tmp_path):
    from huggingface_hub import ModelCard

    run = RunFolder(tmp_path)
    recipe = "name: r\nmodel: {name: some/model}\ndata: {path: rows, max_length: 64}\nmiso: {mode: sft}\n"
    run.recipe.write_text(recipe + "train: {max_steps: 1, batch_size: 1, learning_rate: 1e-5}\n")
    scores = {
        "task": "ifeval",
        "num_prompts": 541,
        "figures": {
            "prompt_level_strict_acc": 0.5,
            "inst_level_strict_acc": 0.25,
            "prompt_level_loose_acc": 0.75,
            "inst_level_loose_acc": 1.0,
        },
    }
    (run.scores / "ifeval").mkdir(parents=True)
    (run.scores / "ifeval" / "scores.json").write_text(json.dumps(scores))
    card = model_card("r", run, load_recipe(run.recipe).recipe, PROOF, None)
    data = ModelCard(card).data
    assert data.base_model == "some/model"
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "text-generation", None)
    assert "| ifeval | 541 | 50.00 | 25.00 | 75.00 | 100.00 |" in card


@pytest.mark.parametrize(
    ("plan", "rows"),
    [
        (
            {"weighting": "fixed", "weights": {"full": 0.5, "base": 0.125}, "loss": "instruction_mean"},
            ["| weights by role | full 0.5, base 0.125 |", "| loss taken as | instruction_mean |"],
        ),
        ({"weighting": "uniform", "weights": None, "loss": "token_mean"}, ["| loss taken as | token_mean |"]),
    ],
)
def test_the_card_says_how_the_loss_was_taken(tmp_path, plan, rows):
    run = start_run(tmp_path / "r", "some/model")
    run.plan.write_text(json.dumps(plan))
    card = model_card("r", run, load_recipe(run.recipe).recipe, PROOF, None)
    assert [line for line in card.splitlines() if line.startswith(("| weights", "| loss taken"))] == rows
