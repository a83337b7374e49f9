import pytest
import torch
from transformers import AutoModelForCausalLM

from misotune.analysis.dilution.observed import output_shares
from misotune.analysis.dilution.shares import MEASURED, Dilution, input_counts, measure_dilution
from misotune.analysis.rows import load_rows
from misotune.errors import UsageError
from misotune.layout import ChatTemplate


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def rows(tokenizer):
    return load_rows(None, ChatTemplate(tokenizer), limit=2, max_length=700).items


def test_a_share_is_the_mean_over_heads_and_output_tokens_of_each_row_and_layer(model, rows):
    done = []
    found = measure_dilution(model, rows, (1, 3), on_row=done.append)
    assert done == [1, 2]
    for i, row in enumerate(rows):
        shares = output_shares(model, row.with_inputs(3).encoded, [1, 3], MEASURED)
        for j, n in enumerate((1, 3)):
            for weighting in MEASURED:
                expected = torch.stack([layer.mean() for layer in shares[n, weighting]])
                torch.testing.assert_close(found.shares[weighting][i, j], expected)


def test_a_repeated_input_dilutes_vanilla_alone(model, rows):
    found = measure_dilution(model, rows, (1, 2, 4), is_repeated=True)
    vanilla = found.mean("vanilla")
    assert vanilla[0] > vanilla[1] > vanilla[2]
    for weighting in ("uniform", "fid"):
        alone = found.by_layer(weighting)[0]
        torch.testing.assert_close(found.by_layer(weighting), alone.expand(3, -1), rtol=0, atol=1e-10)


def test_means_and_spread_are_over_rows():
    # Two rows, two numbers of inputs, two layers.
    shares = torch.tensor([[[0.2, 0.4], [0.1, 0.3]], [[0.4, 0.6], [0.3, 0.1]]], dtype=torch.float64)
    found = Dilution((1, 2), dict.fromkeys(MEASURED, shares))
    torch.testing.assert_close(found.by_layer("fid"), torch.tensor([[0.3, 0.5], [0.2, 0.2]], dtype=torch.float64))
    content = found.to_json()
    assert content["mean_share"]["fid"] == pytest.approx([0.4, 0.2])
    assert content["std_over_rows"]["fid"] == pytest.approx([0.1, 0.0])


@pytest.mark.parametrize(
    ("most", "counts"), [(2, (1, 2)), (3, (1, 2, 3)), (16, (1, 2, 4, 8, 16)), (17, (1, 2, 4, 8, 16, 17))]
)
def test_n_doubles_up_to_the_largest(most, counts):
    assert input_counts(most) == counts


def test_fewer_than_two_inputs_are_refused():
    with pytest.raises(UsageError, match="--max-inputs 1: the output's share changes from 2 inputs on"):
        input_counts(1)
