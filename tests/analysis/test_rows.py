import json
from itertools import combinations

import pytest

from misotune.analysis.rows import load_rows, starter_samples
from misotune.data.starter import TRAIN_FILE
from misotune.errors import DataError
from misotune.layout import ChatTemplate


@pytest.fixture
def template(tokenizer):
    return ChatTemplate(tokenizer)


def write_rows(path, *inputs):
    """Rows with inputs of these texts, and an output."""
    rows = [
        {
            "id": f"row-{i}",
            "inputs": [{"role": "full", "messages": [{"role": "user", "content": text}]} for text in texts],
            "output": "An answer.",
        }
        for i, texts in enumerate(inputs)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_starter_row_has_one_input_for_every_subset_of_its_constraints():
    rows = {row["id"]: row for row in map(json.loads, TRAIN_FILE.read_text().splitlines())}
    samples = list(starter_samples())
    assert len(samples) == sum(len(row["constraints"]) >= 4 for row in rows.values())
    for sample in samples[:5]:
        constraints = rows[sample.id]["constraints"]
        subsets = [set(x) for size in range(len(constraints) + 1) for x in combinations(constraints, size)]
        texts = [entry.messages[-1]["content"] for entry in sample.inputs]
        found = [{item for item in constraints if item in text} for text in texts]
        assert len(set(texts)) == len(texts) == 2 ** len(constraints)
        assert sorted(map(sorted, found)) == sorted(map(sorted, subsets))
        # The inputs of para come first: all constraints, each alone, none.
        para = [set(constraints), *({item} for item in constraints), set()]
        assert found[: len(para)] == para
        assert sample.output == rows[sample.id]["output"]


def test_n_inputs_are_the_rows_own_in_order_and_begin_again(tmp_path, template):
    (row,) = load_rows(write_rows(tmp_path / "d.jsonl", ["a", "b", "c"]), template, limit=1, max_length=99).items
    chosen = row.with_inputs(5)
    assert [entry.messages[0]["content"] for entry in chosen.sample.inputs] == ["a", "b", "c", "a", "b"]
    texts = [template.tokenizer.decode(x) for x in chosen.encoded.inputs]
    assert texts == [f"<|im_start|>user\n{text}<|im_end|>\n" for text in "abcab"]
    repeated = row.with_inputs(3, is_repeated=True)
    assert [entry.messages[0]["content"] for entry in repeated.sample.inputs] == ["a", "a", "a"]
    assert len({x.tobytes() for x in repeated.encoded.inputs}) == 1


def test_rows_with_one_input_are_left_out_and_counted_unless_it_is_repeated(tmp_path, template):
    path = write_rows(tmp_path / "d.jsonl", ["alone"], ["a", "b"], ["c", "d"], ["e", "f"])
    rows = load_rows(path, template, limit=2, max_length=99)
    assert [row.sample.id for row in rows.items] == ["row-1", "row-2"]
    assert rows.num_left_out == 1
    repeated = load_rows(path, template, limit=2, max_length=99, needs_several_inputs=False)
    assert [row.sample.id for row in repeated.items] == ["row-0", "row-1"]


def test_outputs_are_cut_where_the_longest_pair_ends(tmp_path, template):
    (row,) = load_rows(write_rows(tmp_path / "d.jsonl", ["a", "bbb"]), template, limit=1, max_length=30).items
    assert row.encoded.longest_pair == 30


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([["alone"]], {}, r"d\.jsonl: no row with several inputs in 99 tokens; prepare it with --mode para"),
        ([["a" * 99, "b"]], {}, "raise --max-length"),
        ([["a" * 99]], {"needs_several_inputs": False}, "no row in 99 tokens; raise --max-length"),
    ],
)
def test_without_a_row_that_can_be_used_the_cure_is_named(tmp_path, template, texts, options, message):
    path = write_rows(tmp_path / "d.jsonl", *texts)
    with pytest.raises(DataError, match=message):
        load_rows(path, template, limit=1, max_length=99, **options)
