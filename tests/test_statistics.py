"""Statistics of returns: worked examples, properties, and intervals that cover what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import stats

from ultra.common.errors import UltraError
from ultra.common.statistics import (
    bootstrap_band,
    difference_interval,
    holm,
    interquartile_mean,
    interval_remark,
    mean_interval,
    normalize,
    performance_profile,
    probability_of_improvement,
    rises,
    sign_flip_p_value,
    stratified_bootstrap,
    welch_difference,
)

Array = NDArray[np.float64]

VALUES = st.floats(-1e6, 1e6, allow_subnormal=False).map(lambda x: round(x, 6))
SAMPLES = st.lists(VALUES, min_size=2, max_size=30)
TABLES = st.tuples(st.integers(1, 8), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(-5, 5).map(float))
)


# Means


def test_the_sign_flip_test_of_a_worked_example() -> None:
    """Of the eight sign patterns of 1, 2 and 3 two sum to at least 2 + 3 - 1 = 4: all plus, and minus the 1."""
    assert sign_flip_p_value([-1, 2, 3]) == 2 / 8
    assert sign_flip_p_value([1, 2, 3]) == 1 / 8
    assert sign_flip_p_value([1] * 7 + [-1]) == 9 / 256
    with pytest.raises(UltraError, match="1 to 16 differences, not 17"):
        sign_flip_p_value([1.0] * 17)


@settings(deadline=None)
@given(st.lists(st.integers(-20, 20).map(float), min_size=2, max_size=8))  # ties without rounding
def test_the_sign_flip_test_is_scipys(values: list[float]) -> None:
    theirs = stats.permutation_test(
        (values,), np.sum, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert sign_flip_p_value(values) == pytest.approx(theirs.pvalue)


def test_the_t_interval_of_a_worked_example() -> None:
    """Mean 3, deviation sqrt(2.5); the table's t(0.975, 4) is 2.776."""
    estimate = mean_interval([1, 2, 3, 4, 5])
    assert estimate.mean == 3
    assert estimate.high - 3 == pytest.approx(2.7764 * math.sqrt(2.5 / 5), rel=1e-4)
    assert 3 - estimate.low == pytest.approx(estimate.high - 3)
    assert estimate.count == 5
    assert str(estimate) == "3.0 [1.0, 5.0]"
    assert estimate.as_dict() == {"mean": 3, "ci95": [estimate.low, estimate.high], "episodes": 5}


def test_welchs_interval_of_a_worked_example() -> None:
    """Variances of the means 1 and 4 with 3 and 7 degrees of freedom: 25 / (1/3 + 16/7) = 9.55."""
    new = [8.0, 12.0, 10.0, 10.0]  # variance 8/3; mean 10
    new = [10 + (x - 10) * math.sqrt(1.5) for x in new]  # variance 4
    old = [1.0, -1.0] * 4  # variance 8/7
    old = [5 + x * math.sqrt(28) for x in old]  # variance 32
    estimate = difference_interval(new, old)
    assert estimate.mean == pytest.approx(5)
    assert estimate.high - estimate.mean == pytest.approx(stats.t.ppf(0.975, 25 / (1 / 3 + 16 / 7)) * math.sqrt(5))


@settings(deadline=None)
@given(new=SAMPLES, old=SAMPLES, confidence=st.floats(0.5, 0.99))
def test_welchs_interval_is_scipys(new: list[float], old: list[float], confidence: float) -> None:
    if min(np.std(new), np.std(old)) < 1e-3:
        return  # the reference loses its precision there
    theirs = stats.ttest_ind(new, old, equal_var=False).confidence_interval(confidence)
    estimate = difference_interval(new, old, confidence)
    size = max(np.abs(new).max(), np.abs(old).max())
    np.testing.assert_allclose([estimate.low, estimate.high], theirs, rtol=1e-6, atol=1e-6 * size)


@settings(deadline=None)
@given(new=SAMPLES, old=SAMPLES)
def test_welchs_p_value_is_scipys(new: list[float], old: list[float]) -> None:
    if min(np.std(new), np.std(old)) < 1e-3:
        return
    theirs = stats.ttest_ind(new, old, equal_var=False).pvalue
    assert welch_difference(np.array(new), np.array(old)).p_value == pytest.approx(theirs, rel=1e-6, abs=1e-9)


def test_welchs_test_over_two_tasks_of_a_worked_example() -> None:
    """Differences 2 and 0, so 1 on average; variances of the means 1 and 1, 4 and 4 with 3 degrees of freedom each.

    The variance of the average is (1 + 1 + 4 + 4) / 4 = 2.5, its degrees of freedom 100 / ((1 + 1 + 16 + 16) / 3).
    """
    base = np.array([1.0, -1.0, 1.0, -1.0]) * math.sqrt(3)  # variance 4, of the mean 1
    new = np.stack([base + 2, 2 * base], axis=1)
    old = np.stack([base, 2 * base], axis=1)
    found = welch_difference(new, old)
    freedom = 100 / (34 / 3)
    assert found.estimate.mean == pytest.approx(1.0)
    assert found.estimate.high - 1 == pytest.approx(stats.t.ppf(0.975, freedom) * math.sqrt(2.5))
    assert found.p_value == pytest.approx(2 * stats.t.sf(1 / math.sqrt(2.5), freedom))


def test_a_difference_without_spread_is_certain() -> None:
    same, other = np.array([1.0, 1.0]), np.array([2.0, 2.0])
    assert (welch_difference(same, same).p_value, welch_difference(other, same).p_value) == (1.0, 0.0)


def test_holms_adjustment_of_a_worked_example() -> None:
    """Four hypotheses: 4 x 0.01, 3 x 0.02, then 2 x 0.03 and 1 x 0.04, neither below the one before."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.02, 1.0, 1.0, 1.0, 1.0]) == pytest.approx([0.1, 1.0, 1.0, 1.0, 1.0])
    assert holm([0.3, 0.4]) == pytest.approx([0.6, 0.6])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_adjustment_lies_between_none_and_bonferronis(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for own, found in zip(p_values, adjusted, strict=True):
        assert own <= found <= min(1.0, len(p_values) * own)
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_holm_keeps_the_error_over_a_family_where_single_tests_do_not() -> None:
    """Five tasks without any difference, five seeds each: how often something is called different on some task."""
    rng = np.random.default_rng(0)
    single = family = 0
    repeats = 1000
    for _ in range(repeats):
        new, old = rng.normal(size=(2, 5, 5))
        p_values = [welch_difference(new[:, k], old[:, k]).p_value for k in range(5)]
        single += min(p_values) <= 0.05
        family += min(holm(p_values)) <= 0.05
    assert family <= repeats * 0.05 + 3 * math.sqrt(repeats * 0.05 * 0.95)
    assert single > 0.15 * repeats


@settings(deadline=None)
@given(sample=SAMPLES, shift=VALUES, scale=st.floats(0.01, 100))
def test_an_interval_moves_and_grows_with_its_sample(sample: list[float], shift: float, scale: float) -> None:
    estimate = mean_interval(sample)
    moved = mean_interval([shift + scale * x for x in sample])
    size = 1 + abs(shift) + scale * np.abs(sample).max()
    assert estimate.low <= estimate.mean <= estimate.high
    for old, new in zip((estimate.mean, estimate.low, estimate.high), (moved.mean, moved.low, moved.high), strict=True):
        assert new == pytest.approx(shift + scale * old, rel=1e-6, abs=1e-6 * size)


@settings(deadline=None)
@given(new=SAMPLES, old=SAMPLES)
def test_exchanging_the_samples_turns_the_difference_round(new: list[float], old: list[float]) -> None:
    ahead, back = difference_interval(new, old), difference_interval(old, new)
    assert ahead.mean == -back.mean
    assert ahead.low == pytest.approx(-back.high, rel=1e-9, abs=1e-6)
    assert ahead.high == pytest.approx(-back.low, rel=1e-9, abs=1e-6)


@settings(deadline=None)
@given(SAMPLES)
def test_more_confidence_takes_a_wider_interval(sample: list[float]) -> None:
    narrow, wide = mean_interval(sample, 0.8), mean_interval(sample, 0.99)
    assert wide.low <= narrow.low <= narrow.high <= wide.high


def test_samples_without_spread_have_intervals_without_width() -> None:
    alike = mean_interval([2.0, 2.0, 2.0])
    assert (alike.mean, alike.low, alike.high) == (2, 2, 2)
    apart = difference_interval([3.0, 3.0], [1.0, 1.0, 1.0])
    assert (apart.mean, apart.low, apart.high) == (2, 2, 2)


def test_a_minute_spread_is_no_division_by_zero() -> None:
    """The squared variances of returns that differ by 1e-100 are 0 in double precision."""
    estimate = difference_interval([0.0, 0.0], [0.0, 1e-100])
    assert estimate.low <= estimate.mean <= estimate.high < 1e-50


@pytest.mark.parametrize("sample", [[], [1.0]])
def test_too_small_a_sample_is_an_error_with_its_size(sample: list[float]) -> None:
    with pytest.raises(UltraError, match=f"at least 2 values, not {len(sample)}"):
        mean_interval(sample)
    with pytest.raises(UltraError, match=f"at least 2 values of each, not 3 and {len(sample)}"):
        difference_interval([1.0, 2.0, 3.0], sample)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Also for unequal variances and sizes, where a pooled interval would not."""
    rng = np.random.default_rng(0)
    runs, covered, differences = 2000, 0, 0
    for _ in range(runs):
        small, large = rng.normal(1, 10, 5), rng.normal(-2, 1, 20)
        estimate, difference = mean_interval(small.tolist()), difference_interval(small.tolist(), large.tolist())
        covered += estimate.low < 1 < estimate.high
        differences += difference.low < 3 < difference.high
    slack = 4 * math.sqrt(0.95 * 0.05 / runs)
    assert abs(covered / runs - 0.95) < slack
    assert abs(differences / runs - 0.95) < slack


# Summaries over runs and tasks


def test_the_interquartile_mean_of_worked_examples() -> None:
    assert interquartile_mean(np.arange(1.0, 9.0)) == 4.5  # of 3, 4, 5 and 6
    assert interquartile_mean(np.array([[-1000.0, 2.0], [4.0, 9999.0]])) == 3.0
    assert interquartile_mean(np.array([1.0, 2.0, 3.0, 4.0, 100.0])) == 3.0  # a quarter of five is one


@settings(deadline=None)
@given(table=TABLES, shift=st.integers(-10, 10))
def test_the_interquartile_mean_keeps_to_the_values(table: Array, shift: int) -> None:
    found = interquartile_mean(table)
    assert table.min() - 1e-9 <= found <= table.max() + 1e-9
    assert interquartile_mean(table + shift) == pytest.approx(found + shift)
    assert interquartile_mean(table.T[::-1]) == pytest.approx(found)


@settings(deadline=None)
@given(TABLES)
def test_the_interquartile_mean_is_scipys_trimmed_mean(table: Array) -> None:
    assert interquartile_mean(table) == pytest.approx(stats.trim_mean(table.ravel(), 0.25))


def test_outliers_do_not_move_the_interquartile_mean() -> None:
    values = np.random.default_rng(0).normal(size=40)
    spoilt = values.copy()
    spoilt[values.argmax()], spoilt[values.argmin()] = 1e9, -1e9
    assert interquartile_mean(spoilt) == pytest.approx(interquartile_mean(values))


def test_the_probability_of_improvement_of_a_worked_example() -> None:
    """First task: 3 beats 1 and 2, 2 beats 1 and ties with 2: 3.5 of 4. Second task: none of 4."""
    new = np.array([[3.0, 0.0], [2.0, 0.0]])
    old = np.array([[1.0, 5.0], [2.0, 6.0]])
    assert probability_of_improvement(new, old) == pytest.approx((3.5 / 4 + 0) / 2)


@settings(deadline=None)
@given(TABLES)
def test_a_method_is_even_with_itself(table: Array) -> None:
    assert probability_of_improvement(table, table) == pytest.approx(0.5)


@settings(deadline=None)
@given(st.data())
def test_improvements_both_ways_add_up_to_one(data: st.DataObject) -> None:
    """Also with another number of runs."""
    new = data.draw(TABLES)
    rows = data.draw(st.integers(1, 8))
    old = data.draw(arrays(np.float64, (rows, new.shape[1]), elements=st.integers(-5, 5).map(float)))
    ahead = probability_of_improvement(new, old)
    assert 0 <= ahead <= 1
    assert ahead + probability_of_improvement(old, new) == pytest.approx(1)
    assert probability_of_improvement(new + 11, old) == 1


def test_normalised_scores_of_a_worked_example() -> None:
    """The start scores 0, the reference 1; also for negative returns."""
    np.testing.assert_allclose(normalize(np.array([100.0, 600.0, 1100.0, 0.0]), 100, 1100), [0, 0.5, 1, -0.1])
    np.testing.assert_allclose(normalize(np.array([-21.0, 0.0, 21.0]), -21, 21), [0, 0.5, 1])
    for reference in (5.0, 4.0, math.nan):
        with pytest.raises(UltraError, match="must be above the start, 5"):
            normalize(np.array([1.0]), 5, reference)


def test_a_performance_profile_of_a_worked_example() -> None:
    """Of 0.2, 0.4, 0.6 and 0.8, three are above 0.3, and none above 0.8 itself."""
    table = np.array([[0.2, 0.4], [0.6, 0.8]])
    np.testing.assert_allclose(performance_profile(table, np.array([0.0, 0.3, 0.5, 0.8, 1.0])), [1, 0.75, 0.5, 0, 0])


@settings(deadline=None)
@given(TABLES)
def test_a_profile_falls_and_its_area_is_the_mean(table: Array) -> None:
    """The mean of scores between 0 and 1 is the area under their profile (arXiv 2108.13264, appendix A.4)."""
    scores = (table + 5) / 10
    profile = performance_profile(scores, np.linspace(0, 1, 10_001))
    assert (np.diff(profile) <= 1e-12).all()
    assert np.trapezoid(profile, dx=1e-4) == pytest.approx(scores.mean(), abs=1e-3)


# The bootstrap


def test_the_bootstrap_covers_the_truth_at_about_its_nominal_rate() -> None:
    """A percentile interval of few runs is a little narrow: 3 tasks of 15 runs stay near 90%."""
    rng = np.random.default_rng(1)
    trials, covered = 300, 0
    truth = np.array([0.0, 10.0, -5.0])
    for _ in range(trials):
        table = rng.normal(truth, [1.0, 2.0, 0.5], (15, 3))
        estimate = stratified_bootstrap(lambda scores: float(scores.mean()), table, rng=rng, draws=200, confidence=0.9)
        assert estimate.mean == pytest.approx(table.mean())
        covered += estimate.low < truth.mean() < estimate.high
    assert 0.8 < covered / trials < 0.96


def test_runs_are_resampled_within_their_task() -> None:
    """Tasks of other scales do not mix: without spread inside a task, there is none in the interval."""
    table = np.tile([0.0, 1000.0], (6, 1))
    estimate = stratified_bootstrap(interquartile_mean, table, rng=np.random.default_rng(0), draws=50)
    assert (estimate.low, estimate.mean, estimate.high) == (500, 500, 500)


def test_each_task_is_resampled_by_itself() -> None:
    """Runs of unlike tasks are not pairs: what seed 0 gave on one says nothing about seed 0 on another."""
    table = np.array([[0.0, 1.0], [1.0, 0.0]])  # as rows, every resample would have a mean of 0.5
    estimate = stratified_bootstrap(lambda scores: float(scores.mean()), table, rng=np.random.default_rng(0), draws=400)
    assert (estimate.low, estimate.high) == (0, 1)


def test_the_bootstrap_compares_two_methods() -> None:
    rng = np.random.default_rng(0)
    new, old = rng.normal(2, 1, (10, 2)), rng.normal(0, 1, (8, 2))
    estimate = stratified_bootstrap(probability_of_improvement, new, old, rng=rng, draws=200)
    assert 0.7 < estimate.low <= estimate.mean <= estimate.high <= 1


def test_the_bootstrap_follows_its_generator() -> None:
    table = np.random.default_rng(0).normal(size=(5, 2))
    first, same, other = (
        stratified_bootstrap(interquartile_mean, table, rng=np.random.default_rng(seed), draws=100)
        for seed in (1, 1, 2)
    )
    assert first == same
    assert first != other


def test_a_band_is_the_interval_at_every_point() -> None:
    table = np.random.default_rng(0).normal(size=(6, 2))
    rng = np.random.default_rng(3)
    low, high = bootstrap_band(lambda t: np.array([t.mean(), interquartile_mean(t)]), table, rng=rng, draws=100)
    one = stratified_bootstrap(lambda t: float(t.mean()), table, rng=np.random.default_rng(3), draws=100)
    two = stratified_bootstrap(interquartile_mean, table, rng=np.random.default_rng(3), draws=100)
    np.testing.assert_allclose([low, high], [[one.low, two.low], [one.high, two.high]])


def test_a_band_of_curves_resamples_whole_curves() -> None:
    curves = np.arange(4.0)[:, None, None] + np.linspace(0, 1, 7)
    low, high = bootstrap_band(lambda t: t.mean(axis=(0, 1)), curves, rng=np.random.default_rng(0), draws=200)
    np.testing.assert_allclose(high - low, np.full(7, high[0] - low[0]))
    assert (low < curves.mean(axis=(0, 1))).all()


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "expected"), [(2, 0.50), (3, 0.75), (5, 0.90), (10, 0.94)])
def test_what_is_said_of_few_seeds_is_what_a_simulation_finds(runs: int, expected: float) -> None:
    """Coverage of 95% intervals of the interquartile mean of normal scores, one task."""
    rng, trials = np.random.default_rng(0), 150
    covered = 0
    for _ in range(trials):
        estimate = stratified_bootstrap(interquartile_mean, rng.normal(size=(runs, 1)), rng=rng, draws=150)
        covered += estimate.low <= 0 <= estimate.high
    assert covered / trials == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / trials))
    assert bool(interval_remark(runs)) == (expected < 0.9)


def test_one_seed_has_no_interval() -> None:
    assert "no interval" in interval_remark(1)
    assert "three quarters" in interval_remark(3)


def test_a_curve_rises_if_its_second_half_does_beyond_its_noise() -> None:
    def curve(slope: float, seed: int) -> list[list[float]]:
        noise = np.random.default_rng(seed).normal(size=40)
        return [[float(t), slope * t + noise[t], 0.0, 1.0] for t in range(40)]

    assert all(rises(curve(0.5, seed)) for seed in range(20))
    assert not any(rises(curve(-0.5, seed)) for seed in range(20))
    flat = sum(rises(curve(0.0, seed)) for seed in range(1000))
    assert flat < 60  # about 3%: one side of two standard errors
    assert not rises([])
    assert not rises([[1.0, 5.0, 0.0, 1.0]] * 6)
