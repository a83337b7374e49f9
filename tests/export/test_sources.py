"""Exports of other things than runs: a step, adapters and models from elsewhere, the pieces of ZeRO's ranks."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.export.test_export import assert_nothing_left

from misotune.errors import RunError, UsageError
from misotune.export import shards
from misotune.export.export import ExportOptions, default_folder_of, export_source
from misotune.export.source import find_source
from misotune.storage import sha256_of

pytestmark = pytest.mark.usefixtures("in_process")


def write_manifest(folder):
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps({"files": files}))


@pytest.fixture
def step(full_run):
    """A step's checkpoint as the trainer leaves it, of a run that is not finished."""
    folder = full_run.checkpoints / "step-2"
    shutil.copytree(full_run.final, folder)
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin", "trainer_state.json"):
        (folder / name).write_text("{}")
    write_manifest(folder)
    shutil.rmtree(full_run.final)
    return folder


def test_a_step_is_compared_with_itself_on_the_runs_own_tokens_and_says_so(step, tmp_path):
    source = find_source(step)
    assert (source.title, default_folder_of(source).name) == ("step-2 of the run tiny", "tiny-step-2")
    out = tmp_path / "exports" / "step"
    report = export_source(source, out)
    assert report.proof.compared_with == "the model before its export"
    assert report.proof.tolerance == 1e-4
    assert "differ from the model before its export's by" in " ".join(report.sentences())
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "config.json", "generation_config.json", "misotune_export.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    card = (out / "README.md").read_text()
    assert "Exported from step-2 of the run tiny" in card
    assert "mode: para" in card
    probe_ids = load_file(source.run.probe)["input_ids"].tolist()
    assert json.loads((out / "misotune_export.json").read_text())["logits"]["input_ids"] == probe_ids


def test_a_run_without_its_end_names_the_step_that_can_be_exported(step):
    with pytest.raises(UsageError, match=r"did not finish .* can be exported: misotune export .*checkpoints/step-2"):
        find_source(step.parents[1])


def test_a_cut_or_changed_step_is_refused(step):
    path = step / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(RunError, match=r"step-2: model.safetensors has [\d,]+ bytes of [\d,]+; export another step"):
        find_source(step)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RunError, match=r"model.safetensors has changed since it was saved"):
        find_source(step)
    path.unlink()
    with pytest.raises(RunError, match=r"model.safetensors is missing"):
        find_source(step)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        find_source(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"neither a run nor a model; name a run, RUN/checkpoints/step-N"):
        find_source(tmp_path)


def test_a_model_from_elsewhere_keeps_its_bits_and_loses_its_code(tiny_model_dir, tmp_path):
    folder = tmp_path / "theirs"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "modeling_own.py").write_text("raise SystemExit('was run')")
    config = json.loads((folder / "config.json").read_text())
    own = {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    out = tmp_path / "out"
    report = export_source(find_source(folder), out)
    assert report.base_model == ""
    assert report.proof.difference == 0
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not list(out.glob("*.py"))
    assert not own.keys() & json.loads((out / "config.json").read_text()).keys()


def test_resized_embeddings_and_several_ends_are_kept(tiny_model_dir, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "resized"
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.resize_token_embeddings(320)
    model.generation_config.eos_token_id = [5, 6]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    out = tmp_path / "out"
    export_source(find_source(folder), out, options=ExportOptions(max_shard_size="50KB"))
    again = AutoModelForCausalLM.from_pretrained(out)
    assert again.get_input_embeddings().weight.shape == (320, 32)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert again.generation_config.eos_token_id == [5, 6, 257]


def test_a_model_without_chat_template_or_with_pickled_weights(tiny_model_dir, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "model.safetensors").unlink()
    torch.save(AutoModelForCausalLM.from_pretrained(tiny_model_dir).state_dict(), folder / "pytorch_model.bin")
    report = export_source(find_source(folder), tmp_path / "out")
    assert report.proof.difference < 1e-6
    assert (tmp_path / "out" / "model.safetensors").is_file()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match=r"its tokenizer has no chat template; put a chat_template.jinja into"):
        export_source(find_source(folder), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.fixture
def foreign_adapter(adapter_run, tmp_path):
    """An adapter as peft alone saves it: no tokenizer."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter_run.final / name, folder)
    return folder


def test_an_adapter_from_elsewhere_is_merged_with_its_bases_tokenizer(foreign_adapter, tiny_model_dir, tmp_path):
    report = export_source(find_source(foreign_adapter), tmp_path / "out")
    assert report.proof.compared_with == "the unmerged adapter"
    assert report.proof.difference < 1e-5
    assert report.merge.share == pytest.approx(1.0, abs=1e-4)
    assert report.base_model == str(tiny_model_dir)
    assert (tmp_path / "out" / "chat_template.jinja").is_file()


def test_an_adapter_alone_is_copied_and_opened_by_peft(foreign_adapter, adapter_run, tmp_path):
    alone = ExportOptions(adapter_only=True)
    for number, source in enumerate((adapter_run.path, foreign_adapter)):
        out = tmp_path / f"out-{number}"
        report = export_source(find_source(source), out, options=alone)
        assert report.proof.num_adapted == 14
        assert report.proof.difference < 1e-6
        weights = (foreign_adapter / "adapter_model.safetensors").read_bytes()
        assert (out / "adapter_model.safetensors").read_bytes() == weights
        assert not (out / "model.safetensors").exists()
        assert {"tokenizer.json", "chat_template.jinja"} <= {path.name for path in out.iterdir()}
        assert "PeftModel.from_pretrained(base" in (out / "README.md").read_text()


def test_an_adapter_alone_that_is_zero_is_refused(adapter_run, change_weights, tmp_path):
    def zero(tensors):
        for name, tensor in tensors.items():
            if "lora_B" in name:
                tensor.zero_()

    change_weights(adapter_run.final / "adapter_model.safetensors", zero)
    out = tmp_path / "exports" / "lora"
    with pytest.raises(RunError, match="refused: the adapter is zero in every module: nothing was trained"):
        export_source(find_source(adapter_run.path), out, options=ExportOptions(adapter_only=True))
    assert_nothing_left(out)


def test_what_is_no_lora_adapter_or_names_no_base_is_refused(foreign_adapter, tmp_path):
    path = foreign_adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"peft_type": "IA3"}))
    with pytest.raises(UsageError, match="a IA3 adapter; LoRA adapters can be exported"):
        export_source(find_source(foreign_adapter), tmp_path / "out")
    path.write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(UsageError, match="names no base model; set base_model_name_or_path in it"):
        export_source(find_source(foreign_adapter), tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new"), [("{%", "<|pad|>{%"), ("['role']", "['role']|upper"), ("<|im_end|>", "<|pad|>")]
)
def test_another_template_than_trainings_is_refused(old, new, full_run, tmp_path):
    path = full_run.final / "chat_template.jinja"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    out = tmp_path / "exports" / "tiny"
    with pytest.raises(RunError, match="is not the one that was trained with; put that one back"):
        export_source(find_source(full_run.path), out)
    assert_nothing_left(out)


@pytest.fixture
def sharded(tiny_model_dir, full_run, monkeypatch):
    """A step of ZeRO with bfloat16 weights, and the float32 weights that DeepSpeed would join."""
    folder = full_run.checkpoints / "step-1"
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    (folder / "model.safetensors").unlink()
    (folder / "global_step1").mkdir()
    (folder / "latest").write_text("global_step1")
    (folder / "global_step1" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"")
    weights = load_file(tiny_model_dir / "model.safetensors")
    monkeypatch.setattr("misotune.export.making.consolidated", lambda _: weights)
    return folder, weights


def test_zeros_pieces_are_joined_and_every_tensor_is_compared(sharded, tmp_path):
    folder, weights = sharded
    report = export_source(find_source(folder), tmp_path / "out")
    assert report.proof.compared_with == "DeepSpeed's consolidated model"
    assert (report.num_consolidated, report.proof.dtype, report.proof.tolerance) == (20, "bfloat16", 1e-4)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], weights[name].bfloat16()) for name in weights)
    report = export_source(find_source(folder), tmp_path / "exact", options=ExportOptions(dtype="float32"))
    assert (report.proof.dtype, report.proof.tolerance) == ("float32", 1e-4)


def test_pieces_that_are_not_the_models_are_refused(sharded, tmp_path):
    folder, weights = sharded
    cases = {
        r"lack weights of the model, first: model\.norm\.weight": lambda: weights.pop("model.norm.weight"),
        "of shape .*and config.json makes it": lambda: weights.update({"model.norm.weight": torch.ones(3)}),
        "hold weights that the model has not, first: other": lambda: weights.update(other=torch.ones(3)),
    }
    for message, spoil in cases.items():
        spoil()
        with pytest.raises(RunError, match=message):
            export_source(find_source(folder), tmp_path / "exports" / "out")
        assert_nothing_left(tmp_path / "exports" / "out")


def test_cut_pieces_are_refused(sharded, monkeypatch, tmp_path):
    monkeypatch.setattr("misotune.export.making.consolidated", shards.consolidated)
    with pytest.raises(RunError, match=r"DeepSpeed cannot join its ranks' files: .*; export another step"):
        export_source(find_source(sharded[0]), tmp_path / "exports" / "out")
    assert_nothing_left(tmp_path / "exports" / "out")


def test_an_adapters_pieces_must_be_what_peft_saved(adapter_run, monkeypatch, tmp_path):
    saved = load_file(adapter_run.final / "adapter_model.safetensors")
    pieces = {name.replace(".weight", ".default.weight"): tensor.clone() for name, tensor in saved.items()}
    monkeypatch.setattr("misotune.export.shards.consolidated", lambda _: pieces)
    assert shards.save_consolidated_adapter(adapter_run.final, tmp_path / "joined") == len(saved)
    assert load_file(tmp_path / "joined" / "adapter_model.safetensors").keys() == saved.keys()
    next(iter(saved.values())).add_(1)
    save_file(saved, adapter_run.final / "adapter_model.safetensors")
    with pytest.raises(RunError, match="has other values than DeepSpeed's files; export another step"):
        shards.save_consolidated_adapter(adapter_run.final, tmp_path / "other")
