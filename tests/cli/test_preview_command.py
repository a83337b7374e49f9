import json
import re
from html.parser import HTMLParser

import pytest
from tests.preview.conftest import make_chat, make_row
from typer.testing import CliRunner

from misotune.cli.main import app
from misotune.data.dataset import DatasetWriter
from misotune.errors import DataError, RecipeError, UsageError
from misotune.layout import encode_sample
from misotune.layout.template import ChatTemplate
from misotune.samples import select_inputs

ROLES = ("full", "constraint", "base")


@pytest.fixture
def preview(tmp_path, monkeypatch):
    """Runs `misotune preview` in an empty folder; raises what the command raises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "10000")
    return lambda *arguments: CliRunner().invoke(app, ["preview", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def rows():
    return [make_row("one"), make_chat("two"), make_row("three", inputs=(("full", "q"),), output="a\n" * 300)]


@pytest.fixture
def dataset(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row.to_row()) + "\n" for row in rows))
    return path


@pytest.fixture
def recipe(tmp_path, dataset, tiny_model_dir):
    path = tmp_path / "r.yaml"
    path.write_text(
        f"name: r\nmodel: {{name: {tiny_model_dir}}}\ndata: {{path: {dataset}, max_length: 300}}\n"
        "miso: {mode: para, inputs: [full, base], positions: start}\n"
        "train: {max_steps: 1, batch_size: 1, learning_rate: 1e-4}\n"
    )
    return path


def printed_tokens(lines):
    """Reads (text, is_trained) of the tokens that were printed; each line has its mark, each token its end."""
    found = []
    for line in lines:
        if line[:2] in ("+ ", "  ") and line.endswith("│"):
            found += [(text, line[0] == "+") for text in line[2:].split("│")[:-1]]
    return found


def test_json_has_the_ids_that_training_takes(preview, dataset, rows, tiny_model_dir, tokenizer):
    result = preview(dataset, "--model", tiny_model_dir, "--num", 3, "--json")
    content = json.loads(result.stdout)
    template = ChatTemplate(tokenizer)
    for shown, row in zip(content["shown"], rows, strict=True):
        (sample,) = shown["samples"]
        encoded = encode_sample(row, template)
        assert [s["input_ids"] for s in sample["segments"]] == [x.tolist() for x in (*encoded.inputs, encoded.output)]
        assert sample["segments"][-1]["is_trained"] == encoded.is_trained.tolist()
    assert content["statistics"]["samples"] == 3


def test_the_terminal_shows_every_token_and_marks_the_trained(preview, dataset, rows, tiny_model_dir, tokenizer):
    for row in rows:
        result = preview(dataset, "--model", tiny_model_dir, "--row", row.id, "--full")
        assert result.exit_code == 0, result.output
        encoded = encode_sample(row, ChatTemplate(tokenizer))
        found = printed_tokens(result.stdout.splitlines())
        flags = [False] * encoded.num_input_tokens + encoded.is_trained.tolist()
        assert [is_trained for _, is_trained in found] == flags
        assert [text for text, _ in found].count("<|im_start|>") == sum(
            token == tokenizer.convert_tokens_to_ids("<|im_start|>")
            for part in (*encoded.inputs, encoded.output)
            for token in part
        )


def test_nothing_but_text_goes_into_a_pipe(preview, tmp_path, tiny_model_dir):
    row = make_row(output="\x1b[31mred\x1b[0m \u202eback")
    (tmp_path / "x.jsonl").write_text(json.dumps(row.to_row()) + "\n")
    result = preview("x.jsonl", "--model", tiny_model_dir)
    assert "\x1b" not in result.stdout
    assert "\u202e" not in result.stdout
    assert "␛" in result.stdout


def test_long_texts_are_elided_in_the_middle_with_a_count(preview, dataset, rows, tiny_model_dir, tokenizer):
    result = preview(dataset, "--model", tiny_model_dir, "--row", "three")
    (hidden,) = re.findall(r"… ([\d,]+) tokens, all trained … \(--full shows all\)", result.stdout)
    shown = printed_tokens(result.stdout.splitlines())
    assert len(shown) + int(hidden) == encode_sample(rows[2], ChatTemplate(tokenizer)).num_tokens


def test_a_recipe_gives_model_inputs_positions_and_limits(preview, recipe, rows, tokenizer):
    result = preview("--recipe", recipe, "--num", 3, "--json")
    content = json.loads(result.stdout)
    assert (content["positions"], content["mode"]) == ("start", "para")
    first = content["shown"][0]["samples"][0]
    assert [segment["role"] for segment in first["segments"]] == ["full", "base", "output"]
    assert [segment["position_ids"][0] for segment in first["segments"][:2]] == [0, 0]
    (chosen,) = select_inputs(rows[0], "para", ("full", "base"))
    encoded = encode_sample(chosen, ChatTemplate(tokenizer))
    assert [s["input_ids"] for s in first["segments"]] == [x.tolist() for x in (*encoded.inputs, encoded.output)]
    assert content["shown"][2]["samples"][0]["note"].startswith("training drops this sample: a pair of input and")
    assert content["statistics"]["samples"] == 2
    assert content["statistics"]["left_out"][0]["first"] == ["three"]


def test_a_mode_is_an_override_of_the_recipe(preview, recipe):
    content = json.loads(preview("--recipe", recipe, "--mode", "sft", "--num", 1, "--json").stdout)
    (sample,) = content["shown"][0]["samples"]
    assert [segment["role"] for segment in sample["segments"]] == ["full", "output"]


def test_the_mode_of_a_dataset_is_its_own_and_its_account_is_shown(preview, tmp_path, tiny_model_dir):
    with DatasetWriter(tmp_path / "data") as writer:
        writer.add(make_row("long", inputs=(("chunked", "long question " * 20),)))
        writer.finish(
            {
                "source": {"name": "s"},
                "mode": "succ",
                "account": {"read": 2, "kept": 1, "one_input": {}, "dropped": {"no output": 1}},
            }
        )
    result = preview("data", "--model", tiny_model_dir)
    assert "mode succ (chunks as drawn for the first epoch), positions successive" in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["no", "output", "1"] in lines
    assert ["read", "2"] in lines


def test_worst_rows_are_labelled(preview, dataset, tiny_model_dir):
    shown = json.loads(preview(dataset, "--model", tiny_model_dir, "--worst", 1, "--json").stdout)["shown"]
    assert [(row["ids"], row["label"]) for row in shown] == [
        (["three"], "row 3, longest"),
        (["two"], "row 2, fewest trained tokens"),
    ]


def test_a_part_of_the_rows_is_measured_and_that_is_said(preview, dataset, tiny_model_dir):
    result = preview(dataset, "--model", tiny_model_dir, "--num", 0, "--measure", 2)
    assert "statistics of 2 of 3 rows, drawn by seed: 2 samples" in result.stdout
    result = preview(dataset, "--model", tiny_model_dir, "--num", 0, "--measure", 0)
    assert "statistics of all 3 rows" in result.stdout


def test_the_page_is_written_and_named(preview, dataset, tmp_path, tiny_model_dir):
    result = preview(dataset, "--model", tiny_model_dir, "--html", "page.html")
    assert "page with 3 rows: page.html" in result.stdout
    parser = HTMLParser()
    parser.feed((tmp_path / "page.html").read_text())
    assert not printed_tokens(result.stdout.splitlines())


def test_characters_that_the_terminal_lacks_do_not_stop_it(preview, dataset, tiny_model_dir):
    arguments = ["preview", str(dataset), "--model", str(tiny_model_dir), "--num", "1"]
    result = CliRunner(charset="ascii").invoke(app, arguments, catch_exceptions=False)
    assert "3 inputs" in result.stdout
    assert result.stdout.isascii()


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["nowhere", "--model", "M"], DataError, "nowhere: no such dataset; write it: misotune prepare SOURCE"),
        (["empty.jsonl", "--model", "M"], DataError, "empty.jsonl: the file holds no rows"),
        (["folder", "--model", "M"], DataError, "folder: not a prepared dataset"),
        (["broken.jsonl", "--model", "M"], DataError, "broken.jsonl:1: no field 'inputs'"),
        (["rows.jsonl"], UsageError, "no model named, and the quickstart's is not in models/SmolLM2-135M-Instruct; "),
        (["rows.jsonl", "--model", "./gone"], UsageError, "./gone: no such folder; --model takes a run"),
        (["rows.jsonl", "--model", "M", "--row", "tow"], UsageError, "--row 'tow': no such row; the nearest: 'two'"),
        (["rows.jsonl", "--model", "M", "--html", "no/p.html"], UsageError, "there is no folder no; make it first"),
        (["rows.jsonl", "--model", "M", "--html", "folder"], UsageError, "--html folder: is a folder"),
        (["rows.jsonl", "--model", "M", "--mode", "par"], UsageError, "--mode 'par': did you mean 'para'"),
        (["rows.jsonl", "--recipe", "quickstrat"], RecipeError, "did you mean 'quickstart'"),
        (["--model", "M"], UsageError, "name a dataset, or a recipe that does"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_input_is_one_line(preview, dataset, tmp_path, tiny_model_dir, arguments, kind, message):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"output": "x"}\n')
    (tmp_path / "folder").mkdir()
    arguments = [str(tiny_model_dir) if argument == "M" else argument for argument in arguments]
    with pytest.raises(kind, match=re.escape(message)) as caught:
        preview(*arguments)
    assert "\n" not in str(caught.value)


def test_the_default_model_is_that_of_the_quickstart_recipe(preview, dataset, tmp_path, tiny_model_dir):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "SmolLM2-135M-Instruct").symlink_to(tiny_model_dir)
    result = preview(dataset, "--num", 0)
    assert "tokens of models/SmolLM2-135M-Instruct" in result.stdout


def test_the_tokenizer_of_a_run_is_found_by_the_runs_name(preview, dataset, tiny_model_dir, tmp_path):
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    (run / "final").symlink_to(tiny_model_dir, target_is_directory=True)
    shown = [preview(dataset, "--model", name, "--json").stdout for name in ("first", tiny_model_dir)]
    named, direct = map(json.loads, shown)
    assert (named["model"], named["shown"]) == ("runs/first/final", direct["shown"])
