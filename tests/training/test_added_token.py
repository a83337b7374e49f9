"""A marked dataset's token: added to the vocabulary, trained, saved, resumed, and known to what comes after."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import make_tokenizer
from tests.training.rank_driver import train_on_two_ranks
from tests.training.test_distributed import SETTINGS, TOLERANCE, check_against, final_weights
from tests.training.test_quantized import LORA, read_losses, recipe_text
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from misotune.errors import UsageError
from misotune.evaluation.backends.chat_model import load_chat_model
from misotune.export.check import check_export
from misotune.export.export import ExportOptions, export_run, export_source
from misotune.export.source import find_source
from misotune.indicator import INDICATOR, with_indicator
from misotune.runs import RunFolder
from misotune.training.added_token import add_rows, load_template_for
from misotune.training.model import ModelSource
from misotune.training.prepared import Watcher, prepare_run
from misotune.training.run import train

NUM_TOKENS = len(make_tokenizer())


def save_model(folder, *, is_tied, num_rows):
    config = LlamaConfig(
        vocab_size=num_rows,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=make_tokenizer().eos_token_id,
        pad_token_id=make_tokenizer().pad_token_id,
        tie_word_embeddings=is_tied,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(params=["tied", "untied", "tied-with-free-rows", "untied-with-free-rows"])
def base(request, tmp_path):
    """Model folders whose embeddings must grow for a token, or need not."""
    num_rows = NUM_TOKENS + (5 if "free" in request.param else 0)
    return save_model(tmp_path / "base", is_tied=not request.param.startswith("untied"), num_rows=num_rows)


@pytest.fixture
def marked(dataset, tmp_path):
    """The small dataset with every second row marked, as rows of a file."""
    rows = [json.loads(line) for line in dataset.read_text().splitlines()]
    for row in rows[::2]:
        for entry in row["inputs"]:
            entry["messages"][-1]["content"] = with_indicator(entry["messages"][-1]["content"])
    path = tmp_path / "marked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sources(folder):
    return ModelSource(str(folder))


def test_the_token_takes_its_blank_along_and_leaves_all_others_as_they_are(base, marked):
    template, new = load_template_for(sources(base), marked)
    assert (new.text, new.id) == (INDICATOR, NUM_TOKENS)
    plain = make_tokenizer()
    for text in ("Who?", "Tell me who", "Two lines\n", "ends in a bracket]"):
        stopped = with_indicator(text).removesuffix(f" {INDICATOR}")
        expected = [*plain(stopped)["input_ids"], new.id]
        assert template.tokenizer(with_indicator(text))["input_ids"] == expected
    assert INDICATOR in template.tokenizer.decode([new.id], skip_special_tokens=True)


def test_a_dataset_without_marks_and_a_model_that_knows_the_token_get_no_new_one(base, dataset, marked, tmp_path):
    template, new = load_template_for(sources(base), dataset)
    assert new is None
    assert template.tokenizer.get_vocab() == make_tokenizer().get_vocab()
    known, _ = load_template_for(sources(base), marked)
    known.tokenizer.save_pretrained(base)
    template, new = load_template_for(sources(base), marked)
    assert new is None
    assert template.tokenizer.get_vocab() == known.tokenizer.get_vocab()


def test_the_rows_start_as_the_mean_of_all_tokens_before(base, marked):
    _, new = load_template_for(sources(base), marked)
    before = AutoModelForCausalLM.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    add_rows(model, new)
    for ours, theirs in (
        (model.get_input_embeddings().weight, before.get_input_embeddings().weight),
        (model.get_output_embeddings().weight, before.get_output_embeddings().weight),
    ):
        assert len(ours) == max(len(theirs), new.id + 1)
        torch.testing.assert_close(ours[new.id].double(), theirs[: new.id].double().mean(dim=0), rtol=1e-5, atol=1e-7)
        assert torch.equal(ours[: new.id], theirs[: new.id])
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == before.config.tie_word_embeddings
    assert model.config.vocab_size == len(model.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("base", "lora"),
    [("tied", LORA), ("untied-with-free-rows", LORA), ("untied", None)],
    indirect=["base"],
    ids=["tied-lora", "untied-with-free-rows-lora", "untied-full"],
)
def test_a_run_keeps_trains_and_exports_the_token(base, marked, lora, make_recipe, tmp_path):
    recipe = make_recipe(
        model={"name": str(base)}, data={"path": str(marked)}, lora=lora, train={"max_steps": 3, "learning_rate": 3e-2}
    )
    plans = []
    run = train(recipe, recipe_text(recipe), watcher=Watcher(on_plan=plans.append))
    assert plans[0]["new_token"].startswith(f"{INDICATOR} is new, token {NUM_TOKENS}: ")
    trained = load_chat_model(str(run.final), dtype="float32")
    assert trained.tokenizer.convert_tokens_to_ids(INDICATOR) == NUM_TOKENS
    start = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight[:NUM_TOKENS].mean(dim=0)
    if lora:
        saved = load_file(run.final / "adapter_model.safetensors")
        rows = [weight for name, weight in saved.items() if "trainable_tokens" in name]
        assert {tuple(row.shape) for row in rows} == {(1, 32)}
        assert not any("base_layer" in name for name in saved)
        assert not torch.allclose(rows[0][0], start, atol=1e-4)
    report = export_run(run, tmp_path / "export")
    assert report.proof.difference < 1e-4
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    assert not torch.allclose(exported.get_input_embeddings().weight[NUM_TOKENS], start, atol=1e-4)
    assert INDICATOR in AutoTokenizer.from_pretrained(tmp_path / "export").get_vocab()
    check_export(tmp_path / "export")
    ids = trained.tokenizer("Who wrote it? [IND]", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(exported(ids).logits, trained.model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", ["untied"], indirect=True)
def test_an_adapter_is_exported_alone_with_its_row(base, marked, make_recipe, tmp_path):
    recipe = make_recipe(
        model={"name": str(base)}, data={"path": str(marked)}, lora=LORA, train={"max_steps": 2, "learning_rate": 3e-2}
    )
    run = train(recipe, recipe_text(recipe))
    export_source(find_source(run.path), tmp_path / "adapter", options=ExportOptions(adapter_only=True))
    check_export(tmp_path / "adapter")
    ours, theirs = (load_chat_model(str(path), dtype="float32") for path in (tmp_path / "adapter", run.final))
    ids = theirs.tokenizer("Who wrote it? [IND]", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(ours.model(ids).logits, theirs.model(ids).logits)


def test_a_run_that_goes_on_is_the_run_that_went_through(marked, make_recipe):
    made = {"data": {"path": str(marked)}, "lora": LORA}
    steps = {"max_steps": 4, "save_every_steps": 2}
    whole = train(make_recipe("whole", **made, train=steps), "name: whole\n")
    recipe = make_recipe("cut", **made, train=steps)
    cut = RunFolder(whole.path.with_name("cut"))
    shutil.copytree(whole.path, cut.path)
    shutil.rmtree(cut.final)
    shutil.rmtree(cut.checkpoints / "step-4")
    train(recipe, "name: cut\n", resume=True)
    assert read_losses(cut)[-2:] == read_losses(whole)[-2:]
    one, other = (load_file(run.final / "adapter_model.safetensors") for run in (whole, cut))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_tokens_with_and_without_the_indicator_are_kept_apart(dataset, marked, make_recipe):
    plain, with_token = (
        prepare_run(make_recipe(data={"path": str(path)}), num_devices=1, watcher=Watcher())
        for path in (dataset, marked)
    )
    assert plain.corpus.key != with_token.corpus.key
    assert plain.plan["new_token"] is None
    counts = [
        sum(int((ids == NUM_TOKENS).sum()) for sample in run.corpus.samples for ids in sample.inputs)
        for run in (plain, with_token)
    ]
    rows = [json.loads(line) for line in marked.read_text().splitlines()]
    assert counts == [0, sum(len(row["inputs"]) for row in rows[::2])]


def test_what_goes_without_a_new_token_is_refused_in_one_line(marked, make_recipe, monkeypatch):
    monkeypatch.setattr("misotune.training.prepared.check_bitsandbytes", lambda what: None)
    recipe = make_recipe(data={"path": str(marked)}, lora=LORA | {"quantization": "nf4"})
    with pytest.raises(UsageError, match=re.escape("lora.quantization: ")):
        prepare_run(recipe, num_devices=1, watcher=Watcher())
    recipe = make_recipe(data={"path": str(marked)}, lora=LORA, deepspeed={"stage": 3})
    with pytest.raises(UsageError, match=re.escape("deepspeed.stage: ") + ".* use stage 2, or leave lora out"):
        prepare_run(recipe, num_devices=1, watcher=Watcher())
    recipe = make_recipe(data={"path": str(marked)}, lora=LORA | {"target_modules": ["q_proj", "embed_tokens"]})
    with pytest.raises(UsageError, match=r"lora\.target_modules: embed_tokens gets a row"):
        train(recipe, recipe_text(recipe))


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("base", ["tied"], indirect=True)
def test_two_ranks_and_zero_3_train_the_row_as_one_process(base, marked, make_recipe, tmp_path):
    settings = {**SETTINGS, "precision": "fp32"}
    made = {"model": {"name": str(base)}, "data": {"path": str(marked)}, "train": settings}
    plain = train(make_recipe("plain", **made), "name: test\n")
    engines = {"ddp": None, "zero-3": {"stage": 3}}
    runs = train_on_two_ranks([make_recipe(name, **made, deepspeed=engines[name]) for name in engines], tmp_path)
    start = AutoModelForCausalLM.from_pretrained(base)
    add_rows(start, load_template_for(sources(base), marked)[1])
    start.save_pretrained(tmp_path / "start")
    check_against(plain, runs, load_file(tmp_path / "start" / "model.safetensors"), TOLERANCE)
    assert len(load_file(plain.final / "model.safetensors")["model.embed_tokens.weight"]) == NUM_TOKENS + 1
    adapters = make_recipe("lora-zero-2", **made, lora=LORA, deepspeed={"stage": 2})
    (run,) = train_on_two_ranks([adapters], tmp_path)
    one = train(make_recipe("lora", **made, lora=LORA), "name: test\n")
    check_against(one, [run], {name: 0 * weight for name, weight in final_weights(one).items()}, TOLERANCE)
    assert export_run(run, tmp_path / "export").proof.difference < 1e-4
