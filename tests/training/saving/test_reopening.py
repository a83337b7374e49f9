"""A save that is not what is in memory is not called a save."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM, TrainingArguments

from misotune.errors import RunError
from misotune.training.saving.reopening import check_optimizer, check_shard, check_tokenizer, check_weights
from misotune.training.saving.saver import SavingTrainer

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def model(tiny_model_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_saved_model_equals_the_one_in_memory(model, saved):
    assert "lm_head.weight" not in load_file(saved / "model.safetensors")  # tied: saved once
    check_weights(saved, model)


def test_model_in_several_files_is_read_whole(model, tmp_path):
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 2
    check_weights(tmp_path / "parts", model)
    next((tmp_path / "parts").glob("model-*.safetensors")).unlink()
    with pytest.raises(RunError, match="the saved weights lack"):
        check_weights(tmp_path / "parts", model)


def with_nan(weight):
    weight[0, 0] = float("nan")
    return weight


BREAKAGES = {
    # What ZeRO-3 saves when nobody gathers the weights.
    "empty": (lambda weight: weight.new_empty(0), r"holds .*up_proj.weight of shape \[0\], and it is \[64, 32\]"),
    "nan": (with_nan, r"model.safetensors holds model.layers.1.mlp.up_proj.weight with numbers that are not finite"),
    "other": (lambda weight: weight + 1e-6, "up_proj.weight with other values than were trained"),
    "missing": (None, r"the saved weights lack model.layers.1.mlp.up_proj.weight \(.* were to be saved\)"),
}


@pytest.mark.parametrize(("breakage", "message"), BREAKAGES.values(), ids=BREAKAGES)
def test_save_with_one_wrong_tensor_is_refused(model, saved, breakage, message):
    tensors = load_file(saved / "model.safetensors")
    weight = tensors.pop(NAME)
    if breakage:
        tensors[NAME] = breakage(weight)
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=message):
        check_weights(saved, model)


def test_folder_without_weights_is_refused(model, tmp_path):
    with pytest.raises(RunError, match="holds no weights"):
        check_weights(tmp_path, model)


def test_adapter_is_compared_alone(model, tmp_path):
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path)
    check_weights(tmp_path, adapted)
    with torch.no_grad():
        next(weight for name, weight in adapted.named_parameters() if "lora_B" in name).add_(1)
    with pytest.raises(RunError, match=r"lora_B.weight with other values than were trained"):
        check_weights(tmp_path, adapted)


@pytest.fixture
def experts():
    """A Mixtral: its experts are one tensor in memory, and a tensor each in files."""
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    return MixtralForCausalLM(config)


def test_experts_that_are_stored_in_other_pieces_are_counted(experts, tmp_path):
    experts.save_pretrained(tmp_path)
    check_weights(tmp_path, experts)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.popitem()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match="the saved weights lack"):
        check_weights(tmp_path, experts)


def test_experts_that_are_stored_in_other_pieces_are_loaded(experts, tmp_path):
    experts.save_pretrained(tmp_path)
    trainer = SavingTrainer(experts, TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to=[]))
    trained = {name: weight.clone() for name, weight in experts.state_dict().items()}
    with torch.no_grad():
        for weight in experts.parameters():
            weight.zero_()
    trainer._load_from_checkpoint(str(tmp_path))
    assert all(torch.equal(trained[name], weight) for name, weight in experts.state_dict().items())


def test_optimizer_state_is_of_all_trained_weights_and_finite(model, tmp_path):
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()
    path = tmp_path / "optimizer.pt"
    torch.save(optimizer.state_dict(), path)
    check_optimizer(path, model)
    state = optimizer.state_dict()
    state["state"][0]["exp_avg"][0] = float("inf")
    torch.save(state, path)
    with pytest.raises(RunError, match=r"optimizer.pt holds exp_avg that is not finite"):
        check_optimizer(path, model)
    torch.save({"state": {}, "param_groups": []}, path)
    with pytest.raises(RunError, match=r"optimizer.pt holds exp_avg of 0 weights, and [\d,]+ are trained"):
        check_optimizer(path, model)


def test_shards_of_every_rank_must_be_there(tmp_path):
    folder = tmp_path / "global_step4"
    folder.mkdir()
    for rank in range(2):
        state = {"optimizer_state_dict": {"groups": [torch.ones(10)], "stage": 2}}
        torch.save(state, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    assert check_shard(tmp_path, 1, 2) == 10
    with pytest.raises(RunError, match=r"2 of 3 ranks' files are in .*; do all hosts share the disk"):
        check_shard(tmp_path, 0, 3)


def test_another_tokenizer_is_noticed(tiny_model_dir, tokenizer, tmp_path):
    check_tokenizer(tiny_model_dir, tokenizer)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(RunError, match="the tokenizer is another one when it is read back"):
        check_tokenizer(tmp_path, tokenizer)
