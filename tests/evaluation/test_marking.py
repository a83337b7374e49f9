"""Prompts with the indicator: only of models that know it, never mixed with those without."""

import json

import pytest
import typer
from tests.conftest import make_tokenizer
from tests.training.test_added_token import save_model
from typer.testing import CliRunner

from misotune.cli.eval import evaluate
from misotune.cli.generate import generate
from misotune.errors import UsageError
from misotune.evaluation.comparison.compare import compare_results
from misotune.evaluation.marking import marked_prompts

app = typer.Typer()
app.command("eval")(evaluate)
app.command("generate")(generate)
ROW = {"key": 1, "prompt": "Hello", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


@pytest.fixture
def marking_model(tmp_path):
    """A model that knows the indicator."""
    folder = save_model(tmp_path / "model", is_tied=True, num_rows=len(make_tokenizer()) + 1)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["[IND]"])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def misotune(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "data.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "key": 2, "prompt": "x"}) + "\n")
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


def test_the_last_user_turn_alone_is_marked():
    chat = [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two"},
    ]
    assert marked_prompts([chat], is_marked=True) == [[*chat[:2], {"role": "user", "content": "Two. [IND]"}]]
    assert marked_prompts([chat], is_marked=False) == [chat]
    assert chat[-1]["content"] == "Two"


def test_results_with_and_without_the_indicator_lie_apart_and_are_compared(misotune, marking_model, tmp_path):
    ask = ["eval", "ifeval", "--data", "data.jsonl", "--model", marking_model, "--max-new-tokens", 4]
    for more in ([], ["--indicator"]):
        result = misotune(*ask, *more)
        assert result.exit_code == 0, result.output
    plain, marked = (tmp_path / "scores" / "model" / name for name in ("ifeval", "indicator/ifeval"))
    settings = [json.loads((folder / "scores.json").read_text())["settings"] for folder in (plain, marked)]
    assert "indicator" not in settings[0]
    assert settings[1]["indicator"] == "[IND]"
    (pair,) = compare_results([plain, marked]).pairs
    assert any("settings differ: indicator none and [IND]" in note for note in pair.notes)


def test_responses_kept_without_the_indicator_answer_no_marked_prompt(marking_model, tmp_path):
    from misotune.evaluation.backends.response_cache import cache_path
    from misotune.evaluation.evaluate import evaluate_model
    from misotune.evaluation.tasks import TaskOptions, load_task

    (tmp_path / "data.jsonl").write_text(json.dumps(ROW) + "\n")
    task = load_task("ifeval", TaskOptions(data=tmp_path / "data.jsonl"))
    options = {"out": tmp_path / "out", "max_new_tokens": 4, "keep_responses": True}
    first = evaluate_model(str(marking_model), task, **options)
    assert cache_path(tmp_path / "out").exists()
    again = evaluate_model(str(marking_model), task, **options)
    marked = evaluate_model(str(marking_model), task, **options, indicator=True)
    kept = [scores.generation["num_kept"] for scores in (first, again, marked)]
    assert kept == [0, 1, 0]


def test_generate_marks_every_input(misotune, marking_model):
    asked = ["--input", "Hi", "--input", "Yes?", "--max-new-tokens", 2, "--json"]
    plain, marked = (
        json.loads(misotune("generate", marking_model, *asked, *more).stdout) for more in ([], ["--indicator"])
    )
    # ". [IND]" and " [IND]": the tiny tokenizer has a token for each byte, and keeps the blank.
    added = [b - a for a, b in zip(plain["num_input_tokens"], marked["num_input_tokens"], strict=True)]
    assert added == [3, 2]
    assert (plain["indicator"], marked["indicator"]) == (False, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["eval", "ifeval", "--data", "data.jsonl", "--model", "MODEL"],
            r"--indicator: .* does not know the token \[IND\]",
        ),
        (["generate", "MODEL", "--input", "Hi"], r"--indicator: .* does not know the token \[IND\]"),
        (
            ["eval", "gsm8k", "--model", "MODEL"],
            r"'gsm8k' is lm-eval's, and only misotune's own tasks can be steered or marked; leave out --indicator",
        ),
        (
            ["eval", "ifeval", "--base", "--model", "MODEL"],
            r"the model of --base does not know \[IND\]; leave out --indicator",
        ),
    ],
)
def test_what_cannot_be_marked_is_refused(misotune, tiny_model_dir, arguments, message):
    with pytest.raises(UsageError, match=message):
        misotune(*(tiny_model_dir if word == "MODEL" else word for word in arguments), "--indicator")


def test_responses_made_elsewhere_are_refused(misotune, tmp_path):
    (tmp_path / "r.jsonl").write_text('{"key": 1, "response": "x"}\n')
    with pytest.raises(UsageError, match="--responses scores texts made elsewhere; leave out --indicator"):
        misotune("eval", "ifeval", "--data", "data.jsonl", "--responses", "r.jsonl", "--indicator")
