import json
import os

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from misotune.cli.generate import generate as generate_command
from misotune.decoding import generate
from misotune.errors import RunError, UsageError

INPUTS = ["Name three rivers", "Why?"]
TWO = ["--input", INPUTS[0], "--input", INPUTS[1], "--max-new-tokens", "6"]

app = typer.Typer()
app.command("generate")(generate_command)
app.command("other")(lambda: None)


@pytest.fixture
def misotune_generate(tmp_path, monkeypatch):
    """Runs `misotune generate` in an empty folder; raises what the command raises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *arguments: CliRunner().invoke(app, ["generate", *map(str, arguments)], catch_exceptions=False)


def response(folder, inputs=INPUTS, **options):
    """What the library answers, with seed 5."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(5)
    return generate(model, AutoTokenizer.from_pretrained(folder), inputs, max_new_tokens=6, **options)


def test_text_goes_to_stdout_and_the_account_to_stderr(misotune_generate, tiny_model_dir):
    result = misotune_generate(tiny_model_dir, *TWO)
    found = response(tiny_model_dir)
    assert result.stdout == found.text + "\n"
    lengths = ", ".join(str(len(ids)) for ids in found.prompt.inputs)
    assert f"2 inputs of {lengths} tokens, uniform, aligned; 6 new tokens in" in result.stderr
    assert "cut at the longest response allowed" in result.stderr


def test_json_holds_response_and_settings_and_nothing_else_is_printed(misotune_generate, tiny_model_dir):
    result = misotune_generate(tiny_model_dir, *TWO, "--json", "--weights", "0.75,0.25", "--positions", "start")
    content = json.loads(result.stdout)
    expected = response(tiny_model_dir, weighting="fixed", weights=[0.75, 0.25], positions="start")
    assert content["text"] == expected.text
    assert (content["weighting"], content["weights"], content["positions"]) == ("fixed", [0.75, 0.25], "start")
    assert (content["num_new_tokens"], content["is_cut"]) == (6, True)


def test_a_seed_repeats_a_sampled_response(misotune_generate, tiny_model_dir):
    options = [*TWO, "--temperature", "2", "--seed", "5"]
    expected = response(tiny_model_dir, do_sample=True, temperature=2.0)
    assert misotune_generate(tiny_model_dir, *options).stdout == expected.text + "\n"
    assert expected.token_ids != response(tiny_model_dir).token_ids


def test_files_are_inputs_behind_the_others_and_the_prefix_stands_before_all(
    misotune_generate, tiny_model_dir, tmp_path
):
    (tmp_path / "second.txt").write_text("Why?\n")
    result = misotune_generate(
        tiny_model_dir, "--input-file", "second.txt", "--input", INPUTS[0], "--shared-prefix", "Be brief.", "--json",
        "--max-new-tokens", 6,
    )  # fmt: skip
    expected = response(tiny_model_dir, [f"Be brief.\n\n{text}" for text in INPUTS])
    content = json.loads(result.stdout)
    assert content["text"] == expected.text
    assert content["num_input_tokens"] == [len(ids) for ids in expected.prompt.inputs]


def test_a_run_or_without_a_name_the_newest_run_is_taken(misotune_generate, tiny_model_dir, tmp_path):
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    (run / "final").symlink_to(tiny_model_dir, target_is_directory=True)
    newest = misotune_generate(*TWO)
    assert "the newest finished run: runs/first" in newest.stderr
    for name in ("runs/first", "first"):
        assert misotune_generate(name, *TWO).stdout == newest.stdout == response(tiny_model_dir).text + "\n"


def test_offline_is_told_to_the_hubs_client(misotune_generate, tiny_model_dir, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert misotune_generate(tiny_model_dir, *TWO, "--offline").stdout == response(tiny_model_dir).text + "\n"
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_an_adapter_is_decoded_on_its_base_model(misotune_generate, tiny_model_dir, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    expected = generate(tuned, AutoTokenizer.from_pretrained(tiny_model_dir), INPUTS, max_new_tokens=6)
    assert misotune_generate("adapter", *TWO).stdout == expected.text + "\n"


WRONG = {
    "no-input": ([], "nothing to answer; give --input TEXT or --input-file FILE"),
    "weighting": ([*TWO, "--weighting", "mean"], "weighting 'mean' is not one of uniform, fixed, fid, vanilla"),
    "positions": ([*TWO, "--positions", "left"], "positions 'left' is not one of aligned, start, successive"),
    "number-of-weights": ([*TWO, "--weights", "0.5,0.25,0.25"], "weights 0.5, 0.25, 0.25: 2 inputs need 2 positive"),
    "text-as-weights": ([*TWO, "--weights", "half"], "--weights half: numbers with commas between them"),
    "weights-of-fid": ([*TWO, "--weighting", "fid", "--weights", "0.5,0.5"], "belong to weighting 'fixed', not to"),
    "no-weights": ([*TWO, "--weighting", "fixed"], "weighting 'fixed' needs weights"),
    "no-file": (["--input-file", "nowhere.txt"], "--input-file nowhere.txt: No such file or directory"),
    "binary-file": (["--input-file", "binary.txt"], "--input-file binary.txt: not UTF-8 text"),
    "empty-input": (["--input", "  "], "input 1 is empty"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_command_is_refused_in_one_line(misotune_generate, tiny_model_dir, tmp_path, arguments, message):
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=message):
        misotune_generate(tiny_model_dir, *arguments)


def test_a_missing_model_is_named(misotune_generate):
    with pytest.raises(UsageError, match=r"\./nowhere: no such folder"):
        misotune_generate("./nowhere", *TWO)
    with pytest.raises(UsageError, match="no finished run in runs/"):
        misotune_generate(*TWO)


def test_a_response_that_does_not_fit_the_context_is_refused(misotune_generate, tiny_model_dir):
    with pytest.raises(RunError, match=r"exceed the model's context of 4096: lower max_new_tokens to \d+"):
        misotune_generate(tiny_model_dir, "--input", "Why?", "--max-new-tokens", 5000)


def test_a_steered_response_says_so(misotune_generate, tiny_model_dir):
    from misotune.attention.steering import Steering

    steer = ("--steer", 0.01, "--steer-heads", "1-3")
    content = json.loads(misotune_generate(tiny_model_dir, *TWO, "--json", *steer).stdout)
    assert content["text"] == response(tiny_model_dir, steering=Steering(0.01, heads=(1, 2, 3))).text
    assert (content["steer"], content["steer_heads"]) == (0.01, "1-3")
    told = misotune_generate(tiny_model_dir, *TWO, *steer).stderr
    assert "attention to tokens other than the user's scaled by 0.01, heads 1-3" in told
