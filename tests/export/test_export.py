"""A run becomes a plain checkpoint that transformers alone opens; whatever is broken leaves no folder."""

import json
import subprocess
import sys

import pytest
import yaml
from tests.export.conftest import make_adapter_run

from misotune.errors import RunError, UsageError
from misotune.export.export import check_out, export_run
from misotune.recipe.loading import load_recipe

# A clean interpreter: no PYTHONPATH, no current folder, and misotune cannot be imported.
LOAD_WITHOUT_MISOTUNE = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "misotune":
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = tokenizer("Name three rivers.", return_tensors="pt")
out = model.generate(**ids, max_new_tokens=4, do_sample=False)
print(json.dumps({"attention": model.config._attn_implementation, "length": out.shape[1]}))
"""


def assert_nothing_left(out):
    assert not out.exists()
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_a_full_model_loads_in_a_clean_interpreter_and_has_its_card(full_run, tmp_path):
    out = tmp_path / "exports" / "tiny"
    said = []
    report = export_run(full_run, out, on_message=said.append)
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOAD_WITHOUT_MISOTUNE, out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"attention": "sdpa", "length": len("Name three rivers.") + 4}

    assert report.merge is None
    assert report.proof.difference < 1e-5
    assert report.proof.tolerance == 1e-4
    assert report.proof.num_same_token == report.proof.num_positions == 16
    assert report.size_bytes == sum(path.stat().st_size for path in out.iterdir())
    assert said[-1] == "proving it: a fresh process opens it with transformers alone"

    assert {path.name for path in out.parent.iterdir()} == {"tiny"}
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= {
        path.name for path in out.iterdir()
    }
    config = json.loads((out / "config.json").read_text())
    assert config["use_cache"] is True
    assert "miso" not in json.dumps(config)

    card = (out / "README.md").read_text()
    assert "| loss at the last | 1.2500 |" in card
    assert "| dropped by training: too long | 1 |" in card
    assert "standard inference needs no misotune" in card
    again = tmp_path / "again.yaml"
    again.write_text(card.split("```yaml\n")[1].split("```")[0])
    assert load_recipe(again).recipe == load_recipe(full_run.recipe).recipe


def test_an_adapter_is_merged_into_its_base(adapter_run, tmp_path):
    out = tmp_path / "exports" / "lora"
    report = export_run(adapter_run, out)
    assert report.merge is not None
    assert report.merge.num_changed == report.merge.num_modules == 14
    assert report.merge.share == pytest.approx(1.0, abs=1e-4)
    assert report.merge.difference < 1e-5
    assert report.merge.shift > 1e-2
    assert report.proof.difference < 1e-5
    assert not (out / "adapter_config.json").exists()
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 257
    front_matter = yaml.safe_load((out / "README.md").read_text().split("---\n")[1])
    assert front_matter["pipeline_tag"] == "text-generation"


def test_an_adapter_that_is_zero_is_refused(adapter_run, change_weights, tmp_path):
    def zero(tensors):
        for name, tensor in tensors.items():
            if "lora_B" in name:
                tensor.zero_()

    change_weights(adapter_run.final / "adapter_model.safetensors", zero)
    with pytest.raises(RunError, match="the adapter is zero in every module: nothing was trained"):
        export_run(adapter_run, tmp_path / "exports" / "lora")
    assert_nothing_left(tmp_path / "exports" / "lora")


def test_an_adapter_that_rounds_away_in_bfloat16_is_refused(tmp_path, tiny_model_dir):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(base)
    run = make_adapter_run(tmp_path / "runs" / "lora", base, scale=1e-7)
    with pytest.raises(RunError, match="0% of the adapter's change arrives in the base model's bfloat16 weights"):
        export_run(run, tmp_path / "exports" / "lora")
    assert_nothing_left(tmp_path / "exports" / "lora")


def test_an_adapter_that_lacks_a_weight_is_refused(adapter_run, change_weights, tmp_path):
    change_weights(adapter_run.final / "adapter_model.safetensors", lambda tensors: tensors.popitem())
    with pytest.raises(RunError, match=r"not the weights that its adapter_config.json describes, first: base_model"):
        export_run(adapter_run, tmp_path / "exports" / "lora")
    assert_nothing_left(tmp_path / "exports" / "lora")


def test_an_adapter_whose_base_is_gone_is_refused(adapter_run, tmp_path):
    path = adapter_run.final / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(RunError, match=r"base model .*gone cannot be loaded; put it where it was for training"):
        export_run(adapter_run, tmp_path / "exports" / "lora")
    assert_nothing_left(tmp_path / "exports" / "lora")


def test_a_weight_changed_after_training_is_refused(full_run, change_weights, tmp_path):
    def change(tensors):
        tensors["model.layers.1.mlp.down_proj.weight"].mul_(1.1)

    change_weights(full_run.final / "model.safetensors", change)
    with pytest.raises(RunError, match=r"its logits differ from the trained model's by .*more than 1e-04"):
        export_run(full_run, tmp_path / "exports" / "tiny")
    assert_nothing_left(tmp_path / "exports" / "tiny")


def test_a_weight_that_is_nan_is_refused(full_run, change_weights, tmp_path):
    def spoil(tensors):
        tensors["model.norm.weight"][3] = float("nan")

    change_weights(full_run.final / "model.safetensors", spoil)
    with pytest.raises(RunError, match=r"weights that are not finite: model\.norm\.weight"):
        export_run(full_run, tmp_path / "exports" / "tiny")
    assert_nothing_left(tmp_path / "exports" / "tiny")


def test_a_missing_weight_is_refused(full_run, change_weights, tmp_path):
    change_weights(full_run.final / "model.safetensors", lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(RunError, match=r"missing keys: model\.norm\.weight"):
        export_run(full_run, tmp_path / "exports" / "tiny")
    assert_nothing_left(tmp_path / "exports" / "tiny")


def test_a_cut_weight_file_is_refused(full_run, tmp_path):
    path = full_run.final / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"model.safetensors is cut or no weight file .*; copy the checkpoint again"):
        export_run(full_run, tmp_path / "exports" / "tiny")
    assert_nothing_left(tmp_path / "exports" / "tiny")


def test_a_run_without_probe_is_refused(full_run, tmp_path):
    full_run.probe.unlink()
    with pytest.raises(RunError, match="no probe of the trained model's logits can be read"):
        export_run(full_run, tmp_path / "exports" / "tiny")
    assert_nothing_left(tmp_path / "exports" / "tiny")


def test_a_failed_export_leaves_the_older_one(full_run, tmp_path):
    out = tmp_path / "exports" / "tiny"
    out.mkdir(parents=True)
    (out / "README.md").write_text("<!-- exported by misotune -->")
    full_run.probe.unlink()
    with pytest.raises(RunError):
        export_run(full_run, out, overwrite=True)
    assert (out / "README.md").is_file()


def test_an_older_export_is_replaced_only_when_asked(tmp_path):
    (tmp_path / "README.md").write_text("<!-- exported by misotune -->")
    with pytest.raises(UsageError, match="is there already; --overwrite replaces it, or name another folder"):
        check_out(tmp_path, overwrite=False)
    check_out(tmp_path, overwrite=True)


def test_a_folder_that_is_no_export_is_never_replaced(full_run):
    with pytest.raises(UsageError, match="is no export of misotune; name another folder"):
        check_out(full_run.final, overwrite=True)
