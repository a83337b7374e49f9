import csv
import json

import pytest
import torch
from tests.conftest import CHATML, make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from misotune.analysis.attention.parts import CONSTRAINTS, PARTS
from misotune.analysis.attention.prompts import read_prompts
from misotune.analysis.attention.study import AttentionSettings, study_attention
from misotune.errors import DataError, UnsupportedModelError, UsageError

CHECKS = {
    "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
    "kwargs": [{}, {"keywords": ["Rhine"]}],
}
ROW = {"instruction": "Name a river.", "constraints": ["No commas.", "Say Rhine."]}
ROWS = (
    {"id": "checked", **ROW, **CHECKS, "output": "The Rhine, of course."},
    {"id": "not found", "inputs": [], "output": "No."},
    {"id": "unchecked", **ROW, "output": "The Elbe."},
    {"id": "bare", "instruction": "Say no.", "output": "No."},
)


@pytest.fixture
def data(tmp_path):
    """Three rows, and one whose constraint does not stand in its prompt."""
    turns = ({"role": role, "messages": [{"role": "user", "content": "Hi."}]} for role in ("full", "constraint"))
    inputs = [entry | {"constraint": None if entry["role"] == "full" else "Be kind."} for entry in turns]
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row | ({"inputs": inputs} if "inputs" in row else {})) for row in ROWS]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def load(tiny_model_dir):
    """Loads the tiny model, whatever it is called."""
    return lambda _: (
        AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval(),
        AutoTokenizer.from_pretrained(tiny_model_dir),
    )


def test_the_result_says_what_was_measured_on_what(load, data, tmp_path):
    study = study_attention(["tiny"], load, tmp_path / "a", AttentionSettings(data))
    content = json.loads((tmp_path / "a" / "attention.json").read_text())
    assert content == json.loads(json.dumps(study.result))
    assert study.title == "tiny; 3 rows of rows.jsonl, the rows' responses"
    assert (content["num_rows"], content["num_left_out"]) == (3, 1)
    assert content["versions"].keys() == {"python", "misotune", "torch", "transformers"}
    (model,) = content["models"]
    assert (model["name"], model["device"], model["dtype"]) == ("tiny", "cpu", "float32")
    assert [row["id"] for row in model["rows"]] == ["checked", "unchecked", "bare"]
    assert sum(model["mean_share"].values()) == pytest.approx(1, abs=1e-6)
    assert torch.tensor(model["share_by_layer_and_head"]["rest"]).shape == (2, 4)


def test_shares_are_split_by_the_verdict_on_the_response(load, data, tmp_path):
    (model,) = study_attention(["tiny"], load, tmp_path / "a", AttentionSettings(data)).models
    checked, unchecked, bare = model.rows
    assert [x.is_met for x in checked.constraints] == [False, True]
    assert [x.is_met for x in unchecked.constraints] == [None, None]
    assert bare.constraints == ()
    assert bare.shares[..., CONSTRAINTS].eq(0).all()
    for row in (checked, unchecked):
        together = torch.stack([x.shares for x in row.constraints]).sum(dim=0)
        torch.testing.assert_close(row.shares[..., CONSTRAINTS], together)
    met, not_met, not_verified = (model.by_verdict(verdict) for verdict in (True, False, None))
    assert [x.num_constraints for x in (met, not_met, not_verified)] == [1, 1, 2]
    torch.testing.assert_close(met.shares, checked.constraints[1].shares)
    torch.testing.assert_close(not_verified.shares, sum(x.shares for x in unchecked.constraints) / 2)
    assert met.num_tokens == len("Say Rhine.")


def test_the_tables_hold_every_layer_head_and_constraint(load, data, tmp_path):
    (model,) = study_attention(["tiny"], load, tmp_path / "a", AttentionSettings(data)).models
    with (tmp_path / "a" / "attention.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(PARTS) * 2 * 4
    (line,) = [x for x in lines if (x["part"], x["layer"], x["head"]) == ("rest", "2", "3")]
    assert float(line["share"]) == pytest.approx(model.shares[1, 2, PARTS.index("rest")].item(), abs=1e-6)
    with (tmp_path / "a" / "constraints.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(x["row"], x["constraint"], x["verdict"]) for x in lines] == [
        ("checked", "No commas.", "not met"),
        ("checked", "Say Rhine.", "met"),
        ("unchecked", "No commas.", ""),
        ("unchecked", "Say Rhine.", ""),
    ]
    assert (tmp_path / "a" / "attention.png").read_bytes().startswith(b"\x89PNG")
    assert "Where the response's attention goes" in (tmp_path / "a" / "attention.svg").read_text()


def test_models_side_by_side_are_measured_on_the_rows_that_all_can_take(load, data, tmp_path):
    """The second model's template refuses the row that says "Say no."."""
    refuse = "{% if 'Say no.' in messages[-1]['content'] %}{{ raise_exception('no') }}{% endif %}"
    refuse_first = "{% if 'The Rhine' in messages[-1]['content'] %}{{ raise_exception('no') }}{% endif %}"
    tokenizers = [make_tokenizer(), make_tokenizer(refuse_first + CHATML), make_tokenizer(refuse + CHATML)]
    done = []
    study = study_attention(
        ["a", "b", "c"],
        lambda i: (load(i)[0], tokenizers[i]),
        tmp_path / "a",
        AttentionSettings(data),
        on_row=lambda *arguments: done.append(arguments),
    )
    assert [[row.id for row in model.rows] for model in study.models] == [["unchecked"]] * 3
    assert done == [("a", 1, None), ("a", 2, None), ("a", 3, None), ("b", 1, 3), ("b", 2, 3), ("c", 1, 2)]
    assert study.result["num_left_out"] == 3
    a, _, c = study.models
    torch.testing.assert_close(a.shares, c.shares)


def test_a_models_own_response_is_what_it_writes_greedily(load, data, tmp_path):
    settings = AttentionSettings(data, limit=1, generates=True, max_new_tokens=7)
    study = study_attention(["tiny"], load, tmp_path / "a", settings)
    model, tokenizer = load(0)
    turn = tokenizer.apply_chat_template(
        next(read_prompts(data)).messages, add_generation_prompt=True, return_tensors="pt"
    )
    ids = turn if isinstance(turn, torch.Tensor) else turn["input_ids"]
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=7, do_sample=False)
    written = expected[0, ids.shape[1] :]
    (row,) = study.models[0].rows
    assert row.response == tokenizer.decode(written, skip_special_tokens=True)
    assert row.num_tokens[PARTS.index("response")] == len(written)
    assert study.title.endswith("the models' own responses")


def test_long_responses_are_cut_and_long_prompts_left_out(load, data, tmp_path):
    study = study_attention(["tiny"], load, tmp_path / "a", AttentionSettings(data, max_length=45))
    assert [row.id for row in study.models[0].rows] == ["bare"]
    with pytest.raises(DataError, match=r"rows\.jsonl: tiny can take none of its 4 rows in 20 tokens"):
        study_attention(["tiny"], load, tmp_path / "a", AttentionSettings(data, max_length=20))


def test_nothing_is_measured_where_it_could_not_be_kept_or_would_not_be_exact(load, data, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds files that are no result of inspect attention"):
        study_attention(["tiny"], load, tmp_path / "own", AttentionSettings(data))
    with pytest.raises(UsageError, match="a, a: two models of one name; name each once"):
        study_attention(["a", "a"], load, tmp_path / "a", AttentionSettings(data))
    model, tokenizer = load(0)
    model.config.attention_dropout = 0.1
    with pytest.raises(UnsupportedModelError, match=r"attention_dropout=0\.1: set it to 0"):
        study_attention(["tiny"], lambda _: (model, tokenizer), tmp_path / "a", AttentionSettings(data))
