"""Which of lm-eval's metrics are shares of the prompts."""

import pytest

from misotune.evaluation.harness.figures import metrics_of


@pytest.mark.parametrize(
    ("metric", "values", "figure", "better", "expected"),
    [
        ("acc", [1, 0, 1], 2 / 3, True, True),
        ("acc", [True, False], 0.5, None, True),
        ("f1", [0.5, 0.25], 0.375, True, True),
        ("bleu", [0.5, 0.25], 0.375, True, False),
        ("wer", [0.5, 0.25], 0.375, False, False),
        ("score", [0.5, 7.0], 3.75, True, False),
        ("score", [0.5, 0.25], 0.5, True, False),
        ("f1", [(1, 0), (1, 1)], 0.375, True, False),
    ],
    ids=["verdicts", "bools", "parts", "no-share", "less-is-better", "beyond-1", "no-mean", "pairs"],
)
def test_a_share_is_the_mean_of_shares_and_more_of_it_is_better(metric, values, figure, better, expected):
    samples = [{"doc_id": i, "filter": "none", metric: value} for i, value in enumerate(values)]
    results = {
        "results": {"t": {"alias": "t", "sample_len": 3, f"{metric},none": figure, f"{metric}_stderr,none": "N/A"}},
        "higher_is_better": {"t": {} if better is None else {metric: better}},
        "samples": {"t": samples},
    }
    (found,) = metrics_of("t", results)
    assert (found.name, found.is_share) == (metric, expected)
