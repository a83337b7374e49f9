import json
import shutil
from hashlib import sha256

import pytest
from tests.conftest import make_tokenizer

from misotune.layout import ChatTemplate
from misotune.runs import RunFolder

ROW = ({"role": "user", "content": "Write about tea."}, {"role": "assistant", "content": "All about tea."})

RECIPE = """\
name: tiny
model:
  name: {model}
data:
  path: data/rows
  max_length: 64
miso:
  mode: para
train:
  max_steps: 2
  batch_size: 4
  learning_rate: 1e-5
  precision: {precision}
"""


def write_probe(run, model):
    """Records the logits of `model` on the last 16 positions of a training row."""
    import torch
    from safetensors.torch import save_file

    ids = torch.tensor(ChatTemplate(make_tokenizer()).encode(ROW, add_generation_prompt=False))
    with torch.no_grad():
        logits = model.eval()(input_ids=ids[None]).logits[0, -16:].float()
    dtype = str(model.dtype).removeprefix("torch.")
    template = sha256((run.final / "chat_template.jinja").read_bytes()).hexdigest()
    facts = {"dtype": dtype, "chat_template_sha256": template}
    save_file({"input_ids": ids, "logits": logits.contiguous()}, run.probe, metadata=facts)


def start_run(path, model_dir, precision="fp32"):
    run = RunFolder(path)
    path.mkdir(parents=True)
    run.recipe.write_text(RECIPE.format(model=model_dir, precision=precision))
    plan = {"tokens": 1200, "data": {"rows": 9, "samples": 8, "cut": 0, "dropped": {"too long": {"samples": 1}}}}
    run.plan.write_text(json.dumps(plan))
    lines = [{"step": 1, "epoch": 0.5, "loss": 2.5}, {"step": 2, "epoch": 1.0, "loss": 1.25}]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def make_full_run(path, model_dir, precision="fp32"):
    """A finished run whose final model is `model_dir`, as full fine-tuning leaves it."""
    from transformers import AutoModelForCausalLM

    run = start_run(path, model_dir, precision)
    shutil.copytree(model_dir, run.final)
    config = json.loads((run.final / "config.json").read_text())
    (run.final / "config.json").write_text(json.dumps({**config, "use_cache": False}))
    write_probe(run, AutoModelForCausalLM.from_pretrained(run.final))
    return run


def make_adapter_run(path, model_dir, *, scale=0.05):
    """A finished LoRA run on `model_dir`; `scale` is the size of the matrices B."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = start_run(path, model_dir)
    torch.manual_seed(2)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_dir), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=scale)
    model.save_pretrained(run.final)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(run.final)
    write_probe(run, model)
    return run


@pytest.fixture
def full_run(tmp_path, tiny_model_dir):
    return make_full_run(tmp_path / "runs" / "tiny", tiny_model_dir)


@pytest.fixture
def adapter_run(tmp_path, tiny_model_dir):
    return make_adapter_run(tmp_path / "runs" / "lora", tiny_model_dir)


@pytest.fixture
def change_weights():
    """Rewrites a safetensors file after a function has changed its tensors."""
    from safetensors.torch import load_file, save_file

    def change(path, function):
        tensors = load_file(path)
        function(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return change


@pytest.fixture
def in_process(monkeypatch):
    """Opens checkpoints in this process: what is opened is the same, and nothing is imported again."""
    import subprocess
    import traceback
    from pathlib import Path

    from misotune.export import reopen

    def run(command, **_):
        request = json.loads(Path(command[-1]).read_text())
        try:
            Path(request["answer"]).write_text(json.dumps(reopen.reopen(request)))
        except Exception:  # noqa: BLE001 - as another process, whatever it is
            return subprocess.CompletedProcess(command, 1, "", traceback.format_exc())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("misotune.export.reopening.subprocess.run", run)
