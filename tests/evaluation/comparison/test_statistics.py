import itertools
import math

import numpy as np
import pytest
import scipy.stats

from misotune.evaluation.comparison import statistics
from misotune.evaluation.comparison.statistics import (
    bootstrap_interval,
    cluster_sums,
    holm,
    mcnemar_p,
    sign_flip_p,
    standard_error,
)


def verdicts(seed, number, share_a=0.6, share_b=0.7):
    generator = np.random.default_rng(seed)
    return (generator.random(number) < share_b).astype(float) - (generator.random(number) < share_a)


def parts(seed, number):
    generator = np.random.default_rng(seed)
    numbers = generator.integers(1, 4, number)
    differences = generator.binomial(numbers, 0.7) - generator.binomial(numbers, 0.6)
    return differences.astype(float), numbers.astype(float)


def clustered_verdicts(generator, num_clusters, size, *, is_equal=True):
    """Differences of verdicts and their clusters: whole clusters suit one model or the other, as texts do."""
    lean = generator.normal(0.0 if is_equal else 0.2, 0.25, num_clusters).repeat(size)
    passed_a, passed_b = (generator.random(num_clusters * size) < 0.5 + sign * lean for sign in (-1, 1))
    return passed_b.astype(float) - passed_a, np.arange(num_clusters).repeat(size).tolist()


def test_the_interval_is_the_percentile_bootstraps_written_out():
    differences, numbers = parts(0, 17)
    generator = np.random.default_rng(5)
    found = []
    for _ in range(400):
        drawn = [int(at) for at in generator.integers(17, size=17)]
        found.append(sum(differences[at] for at in drawn) / sum(numbers[at] for at in drawn))
    expected = np.percentile(found, [2.5, 97.5])
    assert bootstrap_interval(differences, numbers, num_resamples=400, seed=5) == pytest.approx(tuple(expected))


def test_the_interval_is_scipys():
    differences, numbers = parts(1, 200)
    expected = scipy.stats.bootstrap(
        (differences, numbers),
        lambda d, n, axis: d.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(9),
    ).confidence_interval
    # Other draws: the quantiles of 10,000 resamples vary by some hundredths of the interval's width.
    width = expected.high - expected.low
    assert bootstrap_interval(differences, numbers) == pytest.approx((expected.low, expected.high), abs=0.04 * width)


def test_small_blocks_change_nothing(monkeypatch):
    differences, numbers = parts(2, 30)
    whole = bootstrap_interval(differences, numbers, num_resamples=500)
    flipped = sign_flip_p(differences / 3, num_resamples=500)
    monkeypatch.setattr(statistics, "_MAX_DRAWS", 100)
    assert bootstrap_interval(differences, numbers, num_resamples=500) == whole
    assert sign_flip_p(differences / 3, num_resamples=500) == pytest.approx(flipped, abs=0.06)


def test_the_interval_covers_a_true_difference_of_zero_in_about_95_of_100_trials():
    generator = np.random.default_rng(3)
    num_trials, num_covered = 400, 0
    for _ in range(num_trials):
        # Both models pass a prompt with the same chance, which differs between prompts.
        chances = generator.beta(2, 1, 150)
        differences = (generator.random(150) < chances).astype(float) - (generator.random(150) < chances)
        low, high = bootstrap_interval(
            differences, np.ones(150), num_resamples=500, seed=int(generator.integers(2**31))
        )
        num_covered += low <= 0 <= high
    # 95 % of 400 with three standard deviations of a binomial, and the percentile interval's small undercoverage.
    assert 0.91 <= num_covered / num_trials <= 0.985


def test_the_exact_tests_call_equal_models_different_in_no_more_than_5_of_100_trials():
    generator = np.random.default_rng(4)
    num_false = {"mcnemar": 0, "flips": 0}
    for _ in range(400):
        differences, _ = parts(int(generator.integers(2**31)), 60)
        differences = differences * generator.choice([-1, 1], 60)
        num_false["flips"] += sign_flip_p(differences) < 0.05
        num_false["mcnemar"] += mcnemar_p(int((differences < 0).sum()), int((differences > 0).sum())) < 0.05
    assert all(number <= 0.05 * 400 + 3 * math.sqrt(400 * 0.05 * 0.95) for number in num_false.values())
    assert min(num_false.values()) > 0


@pytest.mark.parametrize("seed", range(3))
def test_the_standard_error_is_the_bootstraps_and_for_verdicts_the_means(seed):
    differences, numbers = parts(seed, 400)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(400, size=(4000, 400))
    resampled = differences[drawn].sum(1) / numbers[drawn].sum(1)
    assert standard_error(differences, numbers) == pytest.approx(resampled.std(), rel=0.05)
    plain = verdicts(seed, 50)
    assert standard_error(plain, np.ones(50)) == pytest.approx(scipy.stats.sem(plain))
    assert standard_error(plain[:1], np.ones(1)) == 0.0


@pytest.mark.parametrize(("only_a", "only_b"), [*itertools.product(range(9), repeat=2), (40, 61), (300, 341), (0, 900)])
def test_mcnemar_is_scipys_binomial_test(only_a, only_b):
    found = mcnemar_p(only_a, only_b)
    assert found == mcnemar_p(only_b, only_a)
    if only_a + only_b:
        assert found == pytest.approx(scipy.stats.binomtest(only_a, only_a + only_b).pvalue, rel=1e-9)
    else:
        assert found == 1.0


def test_mcnemar_takes_thousands_of_discordant_prompts():
    assert mcnemar_p(5000, 5200) == pytest.approx(scipy.stats.binomtest(5000, 10200).pvalue, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_sign_flips_are_counted_one_by_one(seed):
    differences, _ = parts(seed, 12)
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=12)
    ]
    expected = np.mean([found >= abs(differences.sum()) for found in sums])
    assert sign_flip_p(differences) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_sampled_sign_flips_are_scipys_permutation_test(seed):
    generator = np.random.default_rng(seed)
    differences = generator.normal(0.1, 0.5, 60)
    expected = scipy.stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=10_000, rng=np.random.default_rng(seed + 50)
    ).pvalue
    found = sign_flip_p(differences)
    # Both are sampled: two standard deviations of each.
    assert found == pytest.approx(expected, abs=0.005 + 4 * math.sqrt(expected * (1 - expected) / 10_000))


def test_sign_flips_of_verdicts_are_mcnemars():
    differences = verdicts(7, 300)
    expected = mcnemar_p(int((differences < 0).sum()), int((differences > 0).sum()))
    assert sign_flip_p(differences) == pytest.approx(expected)


def test_no_difference_has_p_1_and_sampled_p_values_are_never_0():
    assert sign_flip_p(np.zeros(5)) == 1.0
    assert sign_flip_p(np.full(40, 0.25)) == pytest.approx(1 / 10_001)


def test_many_parts_are_sampled_within_the_error_of_sampling(monkeypatch):
    differences, _ = parts(11, 80)
    exact = sign_flip_p(differences)
    monkeypatch.setattr(statistics, "_MAX_EXACT_TOTAL", 0)
    sampled = sign_flip_p(differences)
    assert sampled != exact
    assert sampled == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 10_000) + 1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_holm_rejects_what_the_step_down_procedure_rejects(seed):
    p_values = np.random.default_rng(seed).random(20) ** 4
    corrected = holm(p_values.tolist())
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for rank, at in enumerate(np.argsort(p_values)):
            if p_values[at] > level / (20 - rank):
                break
            rejected.add(int(at))
        assert {at for at, p in enumerate(corrected) if p <= level} == rejected
    assert holm([]) == []


def test_clusters_are_summed_in_the_order_in_which_they_come():
    values = np.array([1.0, 2.0, 4.0, 8.0])
    assert cluster_sums(values, ["y", "x", "y", ("x", 1)]).tolist() == [5.0, 2.0, 8.0]
    assert cluster_sums(values / 3, range(4)).tolist() == (values / 3).tolist()


def test_the_clustered_interval_draws_clusters_written_out():
    differences, numbers = parts(3, 21)
    clusters = [at % 8 for at in range(21)]
    generator = np.random.default_rng(5)
    found = []
    for _ in range(400):
        drawn = [at for cluster in generator.integers(8, size=8) for at in range(21) if at % 8 == cluster]
        found.append(sum(differences[at] for at in drawn) / sum(numbers[at] for at in drawn))
    interval = bootstrap_interval(
        cluster_sums(differences, clusters), cluster_sums(numbers, clusters), num_resamples=400, seed=5
    )
    assert interval == pytest.approx(tuple(np.percentile(found, [2.5, 97.5])))


@pytest.mark.parametrize("seed", range(3))
def test_the_clustered_standard_error_is_that_of_the_pairs_of_each_cluster(seed):
    differences, clusters = clustered_verdicts(np.random.default_rng(seed), 30, 4)
    number, residuals = len(differences), differences - differences.mean()
    # Miller's sum: the plain variance, and twice the covariance of every two prompts of one cluster.
    variance = sum(
        one * other
        for one, its in zip(residuals, clusters, strict=True)
        for other, others in zip(residuals, clusters, strict=True)
        if its == others
    )
    expected = math.sqrt(30 / 29 * variance) / number
    found = standard_error(cluster_sums(differences, clusters), cluster_sums(np.ones(number), clusters))
    assert found == pytest.approx(expected)
    assert found > 1.2 * standard_error(differences, np.ones(number))


@pytest.mark.parametrize("copies", [2, 5])
def test_copies_of_a_prompt_in_its_cluster_make_nothing_surer(copies):
    differences, numbers = verdicts(8, 60), np.ones(60)
    clusters = np.arange(60).repeat(copies).tolist()
    copied, counts = (cluster_sums(values.repeat(copies), clusters) for values in (differences, numbers))
    assert bootstrap_interval(copied, counts) == pytest.approx(bootstrap_interval(differences, numbers))
    assert standard_error(copied, counts) == pytest.approx(standard_error(differences, numbers))
    assert sign_flip_p(copied) == pytest.approx(sign_flip_p(differences))
    assert standard_error(differences.repeat(copies), np.ones(60 * copies)) < 0.75 * standard_error(
        differences, numbers
    )


@pytest.fixture(scope="module")
def clustered_trials():
    """Of 300 trials of equal models on 50 texts with 6 questions each, how often each way is right."""
    generator = np.random.default_rng(6)
    num_covered, num_different = {"clusters": 0, "prompts": 0}, {"clusters": 0, "prompts": 0, "mcnemar": 0}
    for _ in range(300):
        differences, clusters = clustered_verdicts(generator, 50, 6)
        numbers, seed = np.ones(300), int(generator.integers(2**31))
        sums = cluster_sums(differences, clusters), cluster_sums(numbers, clusters)
        for name, data in (("clusters", sums), ("prompts", (differences, numbers))):
            low, high = bootstrap_interval(*data, num_resamples=400, seed=seed)
            num_covered[name] += low <= 0 <= high
            num_different[name] += sign_flip_p(data[0]) < 0.05
        num_different["mcnemar"] += mcnemar_p(int((differences < 0).sum()), int((differences > 0).sum())) < 0.05
    return num_covered, num_different


def test_over_clusters_the_interval_covers_in_about_95_of_100_trials_and_over_prompts_it_does_not(clustered_trials):
    num_covered, _ = clustered_trials
    assert 0.905 <= num_covered["clusters"] / 300 <= 0.985
    assert num_covered["prompts"] / 300 < 0.85


def test_sign_flips_of_clusters_call_equal_models_different_in_5_of_100_trials_and_mcnemars_test_in_more(
    clustered_trials,
):
    _, num_different = clustered_trials
    assert 0 < num_different["clusters"] <= 300 * 0.05 + 3 * math.sqrt(300 * 0.05 * 0.95)
    assert num_different["mcnemar"] > 300 * 0.12
    assert num_different["prompts"] > 300 * 0.12


def test_sign_flips_of_clusters_still_find_a_difference():
    generator = np.random.default_rng(7)
    found = []
    for _ in range(20):
        differences, clusters = clustered_verdicts(generator, 50, 6, is_equal=False)
        found.append(sign_flip_p(cluster_sums(differences, clusters)) < 0.05)
    assert sum(found) >= 18
