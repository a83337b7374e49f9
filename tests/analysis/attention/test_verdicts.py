import numpy as np
import pytest
import torch

from misotune.analysis.attention.summary import ConstraintShare, ModelShares, RowShares
from misotune.analysis.attention.verdict_plots import draw_verdicts
from misotune.analysis.attention.verdicts import contrast, contrast_of, has_both_verdicts
from misotune.evaluation.comparison.statistics import standard_error

VALUES = [0.1, 0.4, 0.2, 0.9, 0.3, 0.5, 0.7]
IS_MET = [True, False, True, True, False, False, True]
ROWS = ["a", "a", "b", "b", "b", "c", "d"]


def sandwich(values, is_met, rows):
    """Least squares on a constant and the verdict, with the errors clustered by row, written out."""
    x = np.column_stack([np.ones(len(values)), is_met]).astype(float)
    y = np.array(values)
    bread = np.linalg.inv(x.T @ x)
    coefficients = bread @ x.T @ y
    residuals = y - x @ coefficients
    names = sorted(set(rows))
    meat = np.zeros((2, 2))
    for name in names:
        chosen = np.array([row == name for row in rows])
        score = x[chosen].T @ residuals[chosen]
        meat += np.outer(score, score)
    variance = bread @ meat @ bread * len(names) / (len(names) - 1)
    return coefficients[1], variance[1, 1] ** 0.5


def row_of(name, *constraints, num_layers=2, num_heads=3):
    """A row whose constraints are (share, tokens, verdict)."""
    shares = torch.ones(num_layers, num_heads)
    made = tuple(ConstraintShare("Be <b>kind</b>.", tokens, is_met, shares * x) for x, tokens, is_met in constraints)
    return RowShares(name, "Yes.", (1, 0, 2, 3, 4, 5), torch.full((num_layers, num_heads, 6), 1 / 6), made)


def model_of(*rows, name="tiny"):
    return ModelShares(name, {"device": "cpu", "dtype": "float32"}, rows)


@pytest.mark.parametrize("order", [range(7), [6, 2, 4, 0, 1, 3, 5]], ids=["as-it-is", "shuffled"])
def test_the_difference_is_least_squares_with_errors_clustered_by_row(order):
    values, is_met, rows = ([column[i] for i in order] for column in (VALUES, IS_MET, ROWS))
    found = contrast_of(torch.tensor(values, dtype=torch.float64), is_met, rows).difference
    value, error = sandwich(values, is_met, rows)
    assert found.value.item() == pytest.approx(value, abs=1e-12)
    assert found.error.item() == pytest.approx(error, abs=1e-12)


def test_a_mean_has_the_standard_error_of_a_ratio_over_rows():
    """Of the rows' sums by the rows' numbers, as a comparison of results has it; here every row has one that is met."""
    values, is_met, rows = [*VALUES, 0.8], [*IS_MET, True], [*ROWS, "c"]
    found = contrast_of(torch.tensor(values, dtype=torch.float64), is_met, rows).met
    met = [(row, value) for row, value, verdict in zip(rows, values, is_met, strict=True) if verdict]
    sums, numbers = (
        np.array([sum(measure(value) for row, value in met if row == name) for name in "abcd"], dtype=float)
        for measure in (lambda value: value, lambda _: 1)
    )
    assert found.value.item() == pytest.approx(sums.sum() / numbers.sum(), abs=1e-12)
    assert found.error.item() == pytest.approx(standard_error(sums, numbers), abs=1e-12)


def test_the_same_row_many_times_is_no_more_certain_than_once():
    """Copies of a row's constraints say nothing new: only rows are independent."""
    once = contrast_of(torch.tensor(VALUES, dtype=torch.float64), IS_MET, ROWS).difference
    thrice = contrast_of(torch.tensor(VALUES * 3, dtype=torch.float64), IS_MET * 3, ROWS * 3).difference
    torch.testing.assert_close(thrice.error, once.error)


def test_a_share_per_token_does_not_favour_long_constraints():
    model = model_of(
        row_of("a", (0.4, 20, True), (0.1, 5, False)), row_of("b", (0.2, 10, True), (0.0, 0, False), (0.9, 1, None))
    )
    share, per_token = contrast(model, "share"), contrast(model, "share per token")
    assert share.met.value.item() == pytest.approx(0.3)
    assert share.difference.value.item() == pytest.approx(0.25)
    assert per_token.met.value.item() == pytest.approx(0.02)
    assert per_token.not_met.value.item() == pytest.approx(0.01)  # of which one has no token of its own
    by_layer = contrast(model, "share", by_layer=True)
    assert by_layer.met.value.tolist() == pytest.approx([0.3, 0.3])


def test_what_cannot_be_told_is_missing():
    one_row = model_of(row_of("a", (0.4, 20, True), (0.1, 5, False)))
    assert has_both_verdicts([one_row])
    assert contrast(one_row, "share").difference.error is None
    all_met = model_of(row_of("a", (0.4, 20, True)), row_of("b"))
    assert not has_both_verdicts([all_met])
    assert contrast(all_met, "share").not_met is None
    assert contrast(all_met, "share").difference is None
    unverified = model_of(row_of("a", (0.4, 20, None)))
    assert contrast(unverified, "share").to_json() == {"met": None, "not_met": None, "difference": None}


def test_the_picture_names_models_data_and_numbers(tmp_path):
    models = [
        model_of(row_of("a", (0.4, 20, True), (0.1, 5, False)), row_of("b", (0.2, 9, True)), name=name)
        for name in ("base", "a_$tuned$_one", "miso", "fourth")
    ]
    title = "base and others; 2 rows of x.jsonl"
    draw_verdicts(models, title, [tmp_path / "a.svg", tmp_path / "c.png"])
    draw_verdicts(models, title, [tmp_path / "b.svg"])
    svg = (tmp_path / "a.svg").read_text()
    for word in ("base and others; 2 rows of x.jsonl; 3 constraints", "30 (2)", "10 (1)", "a_$tuned$_one: by layer"):
        assert word in svg
    assert svg == (tmp_path / "b.svg").read_text()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
