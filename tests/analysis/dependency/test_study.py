"""The whole study: scores of a dataset against the stock model, what is kept, and the columns."""

import csv
import json

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM

from misotune.analysis.dependency.plots import draw_dependency
from misotune.analysis.dependency.responses import Dependency, ScoredResponse, histogram
from misotune.analysis.dependency.study import DependencySettings, study_dependency
from misotune.data.dataset import DatasetWriter, open_dataset, read_manifest
from misotune.errors import DataError, UsageError
from misotune.samples import Sample, SampleInput


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, attn_implementation="eager").eval()


def make_sample(number, *texts, **options):
    roles = ("user", "assistant")
    turns = tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(texts[:-1]))
    return Sample(f"row-{number}", "s", "d", (SampleInput("full", turns),), texts[-1], **options)


SAMPLES = (
    make_sample(0, "What is it?", "A river."),
    make_sample(1, "Hi", "Hello", "And now?", "Bye", history_loss=True),
    make_sample(2, "\n", "Nothing to score."),
)


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Three rows in two groups."""
    monkeypatch.setattr("misotune.data.dataset_writer.ROW_GROUP_ROWS", 2)
    folder = tmp_path / "rows"
    with DatasetWriter(folder) as writer:
        for sample in SAMPLES:
            writer.add(sample)
        writer.add_file("notes.txt", "mine")
        account = {"read": 3, "kept": 3, "one_input": {}, "dropped": {}}
        writer.finish({"source": {"name": "s"}, "mode": "sft", "account": account})
    return folder


def study(model, tokenizer, folder, data, **settings):
    return study_dependency("tiny", model, tokenizer, folder, DependencySettings(data, **settings))


def literal_scores(model, tokenizer, turns, scored):
    """The definition in loops, on what the stock model gives out; a token is a byte of the text."""
    text, owners = "", []
    for i, turn in enumerate(turns):
        for piece, owner in (
            (f"<|im_start|>{('user', 'assistant')[i % 2]}\n", None),
            (turn, i),
            ("<|im_end|>\n", None),
        ):
            text += piece
            owners += [owner] * len(tokenizer(piece, add_special_tokens=False)["input_ids"])
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        layers = model(ids, output_attentions=True).attentions
    scores = []
    for wanted in scored:
        of_layers = []
        for layer in layers:
            largest = []
            for t in [t for t, owner in enumerate(owners) if owner == wanted]:
                users = [s for s, owner in enumerate(owners[:t]) if owner is not None and owner % 2 == 0]
                largest.append(max(sum(float(layer[0, h, t, s]) for s in users) for h in range(layer.shape[1])))
            of_layers.append(sum(largest) / len(largest))
        scores.append(of_layers)
    return scores


def test_scores_are_the_definition_on_the_stock_models_attention(model, tokenizer, dataset, tmp_path):
    found = study(model, tokenizer, tmp_path / "d", dataset, layers="all")
    expected = literal_scores(model, tokenizer, ["What is it?", "A river."], [1])
    expected += literal_scores(model, tokenizer, ["Hi", "Hello", "And now?", "Bye"], [1, 3])
    assert [list(r.by_layer) for r in found.dependency.responses] == [pytest.approx(x, abs=1e-6) for x in expected]
    assert [(r.id, r.turn) for r in found.dependency.responses] == [("row-0", 1), ("row-1", 1), ("row-1", 2)]
    assert found.dependency.scores == pytest.approx([sum(x) / 2 for x in expected], abs=1e-6)
    assert found.title == "tiny, 2 rows of rows (3 responses)"


def test_the_folder_says_what_was_measured_on_what(model, tokenizer, dataset, tmp_path):
    done = []
    settings = DependencySettings(dataset, threshold=0.4, limit=2)
    folder = tmp_path / "d"
    found = study_dependency("tiny", model, tokenizer, folder, settings, on_row=lambda *row: done.append(row))
    assert done == [(1, 2), (2, 2)]
    content = json.loads((folder / "dependency.json").read_text())
    assert content == found.result
    wanted = {"data": str(dataset), "layers": [1], "threshold": 0.4, "device": "cpu", "dtype": "float32", "write": None}
    assert content["settings"] | wanted == content["settings"]
    assert (content["rows"], content["rows_left_out"], content["responses"]) == (2, 0, 3)
    assert sum(content["histogram"]["counts"]) == 3
    with (folder / "dependency.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["score"]) for line in lines] == pytest.approx(found.dependency.scores, abs=1e-6)
    assert (folder / "dependency.png").read_bytes().startswith(b"\x89PNG")
    svg = (folder / "dependency.svg").read_text()
    assert "tiny, 2 rows of rows (3 responses)" in svg
    assert "dependency score, layer 1" in svg


@pytest.mark.parametrize("in_place", [False, True], ids=["elsewhere", "in-place"])
def test_a_folder_is_written_with_the_scores_and_stays_a_dataset(model, tokenizer, dataset, tmp_path, in_place):
    target = dataset if in_place else tmp_path / "scored"
    for layers in ("1", "2"):  # the second time, the columns are there
        found = study(model, tokenizer, tmp_path / "d", dataset, write=target, layers=layers)
    one, two, three = found.dependency.scores
    rows = open_dataset(target)
    assert tuple(rows) == SAMPLES
    assert rows.column("dependency") == pytest.approx([one, (two + three) / 2, None])
    first, second, none = rows.column("dependency_by_turn")
    assert [*first, *second] == pytest.approx([one, two, three])
    assert none is None
    assert read_manifest(target)["dependency"]["layers"] == [2]
    assert (target / "notes.txt").read_text() == "mine"
    loaded = datasets.load_dataset(str(target), split="train", cache_dir=tmp_path / "cache")
    assert loaded["dependency"] == pytest.approx([one, (two + three) / 2, None])


def test_a_file_is_written_line_by_line_as_it_was(model, tokenizer, dataset, tmp_path):
    lines = [json.dumps({**sample.to_row(), "mine": i}) for i, sample in enumerate(SAMPLES)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    scores = []
    for data, target in ((tmp_path / "rows.jsonl", tmp_path / "new" / "a.jsonl"), (dataset, tmp_path / "b.jsonl")):
        found = study(model, tokenizer, tmp_path / "d", data, write=target, limit=1)
        written = [json.loads(line) for line in target.read_text().splitlines()]
        assert tuple(open_dataset(target)) == SAMPLES
        assert [row["dependency"] for row in written] == [found.dependency.scores[0], None, None]
        assert [row["dependency_by_turn"] for row in written] == [found.dependency.scores, None, None]
        scores.append([row.get("mine") for row in written])
    assert scores == [[0, 1, 2], [None] * 3]


def test_responses_behind_the_longest_length_have_no_score(model, tokenizer, dataset, tmp_path):
    found = study(model, tokenizer, tmp_path / "d", dataset, write=tmp_path / "a.jsonl", max_length=40)
    written = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert written[1]["dependency_by_turn"] == [found.dependency.responses[1].score, None]
    assert written[1]["dependency"] == found.dependency.responses[1].score


@pytest.mark.parametrize(
    ("data", "target", "message"),
    [
        (None, "a.jsonl", r"the starter set is no dataset to write back"),
        ("rows.jsonl", "folder", r"rows\.jsonl is a file of rows; name a file that ends in \.jsonl"),
        ("rows", "mine", "holds something that is not a misotune dataset"),
        ("rows", "rows.txt", r"is a file; name a folder, or a file that ends in \.jsonl"),
        ("rows", ".", "the working directory cannot be replaced"),
        ("rows", "lines.jsonl", r"is a folder; name a file that ends in \.jsonl"),
    ],
)
def test_nothing_is_measured_where_the_scores_could_not_be_written(
    tokenizer, dataset, tmp_path, monkeypatch, model, data, target, message
):
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "rows.txt"):
        (tmp_path / name).write_text(json.dumps(SAMPLES[0].to_row()) + "\n")
    for name in ("mine", "lines.jsonl"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    settings = {"data": None if data is None else type(tmp_path)(data), "write": type(tmp_path)(target)}
    with pytest.raises(UsageError, match=message):
        study_dependency("tiny", model, tokenizer, tmp_path / "d", DependencySettings(**settings))
    assert not (tmp_path / "d").exists()


def test_rows_without_anything_to_score_are_an_error(model, tokenizer, dataset, tmp_path):
    with pytest.raises(DataError, match="rows: no response with a user's text before it in 16 tokens; raise --max-len"):
        study(model, tokenizer, tmp_path / "d", dataset, max_length=16)


def test_a_folder_of_something_else_is_left_alone(model, tokenizer, dataset, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"mine: holds files that are no result of inspect dependency"):
        study(model, tokenizer, tmp_path / "mine", dataset)


def make_response(row, *by_layer):
    return ScoredResponse(row, f"r{row}", 1, 1, by_layer, 3, 5, False, "text")


def test_shares_and_ranks_are_of_the_mean_over_layers():
    found = Dependency((1, 2), 0.5, (make_response(0, 0.1, 0.9), make_response(1, 0.6, 0.8)), 3, 1)
    assert found.scores == pytest.approx([0.5, 0.7])
    assert found.share_above == 0.5
    assert [response.row for response in found.ranked()] == [1, 0]
    content = found.to_json()
    assert [layer["share_above"] for layer in content["by_layer"]] == [0.5, 1.0]
    assert [layer["mean"] for layer in content["by_layer"]] == pytest.approx([0.35, 0.85])


def test_bins_hold_their_lower_end_and_the_last_one_its_upper():
    counts = histogram([0.0, 0.049, 0.05, 0.999, 1.0, 1.0000001])
    assert (counts[0], counts[1], counts[-1], sum(counts)) == (2, 1, 3, 6)


def test_the_same_scores_draw_the_same_picture_and_layers_a_second_one(tmp_path):
    responses = (make_response(0, 0.1, 0.9), make_response(1, 0.6, 0.8))
    for name in ("a.svg", "b.svg"):
        draw_dependency(Dependency((3, 4), 0.6, responses, 2, 0), "title", [tmp_path / name])
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    svg = (tmp_path / "a.svg").read_text()
    for words in ("mean of layers 3 to 4", "above 0.6: 50.0 %", "mean score", "share of responses above 0.6"):
        assert words in svg
