"""Bounds against quantiles that others compute, exact arithmetic, and the coverage that they promise."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import numpy as np
import pytest

from fk_reward.benchmarks.safety import bounds
from fk_reward.benchmarks.safety.bounds import ErrorRate, at_most, trials_needed, true_rate_bound, upper_bound

COUNTS = [(0, 1), (0, 149), (1, 149), (3, 100), (7, 20), (19, 20), (50, 2000), (1, 10**6)]


def beta_quantile(share, a, b, points=200_001):
    """Of a beta distribution, by the trapezoidal rule on its density; the oracle where SciPy is missing."""
    top = min(1.0, 20 * (a + 3) / (a + b))
    x = np.linspace(0, top, points)[1:-1]
    log_density = (a - 1) * np.log(x) + (b - 1) * np.log1p(-x)
    density = np.exp(log_density - log_density.max())
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    return float(np.interp(share * mass[-1], mass, x))


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize(("count", "trials"), COUNTS)
def test_it_is_the_quantile_of_a_beta_distribution(count, trials, confidence):
    try:
        from scipy.stats import beta
    except ImportError:
        expected, tolerance = beta_quantile(confidence, count + 1, trials - count), 2e-3
    else:
        expected, tolerance = beta.ppf(confidence, count + 1, trials - count), 1e-9
    assert upper_bound(count, trials, confidence) == pytest.approx(expected, rel=tolerance)


def test_the_oracle_without_scipy_agrees_with_a_closed_form():
    assert beta_quantile(0.95, 1, 149) == pytest.approx(1 - 0.05 ** (1 / 149), rel=1e-3)


@pytest.mark.parametrize(("count", "trials"), [(0, 9), (2, 9), (8, 9), (5, 40)])
def test_at_the_bound_so_few_cases_have_the_probability_of_the_tail(count, trials):
    """In exact arithmetic: nothing of the floating-point sum is used."""
    rate = Fraction(upper_bound(count, trials, 0.95))
    exact = sum(math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(count + 1))
    assert float(exact) == pytest.approx(0.05, abs=1e-9)
    assert at_most(count, trials, float(rate)) == pytest.approx(float(exact), rel=1e-12)


def test_the_numbers_of_prompts_that_everybody_quotes():
    assert [trials_needed(rate) for rate in (0.1, 0.05, 0.02, 0.01)] == [29, 59, 149, 299]
    for count in (0, 1, 5):
        needed = trials_needed(0.02, count=count)
        assert upper_bound(count, needed) <= 0.02 < upper_bound(count, needed - 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: upper_bound(2, 1), "count should be at most 1"),
        (lambda: upper_bound(0, 0), "trials should be at least 1"),
        (lambda: upper_bound(0, 9, 1.0), "confidence should be between 0 and 1"),
        (lambda: trials_needed(0.0), "max_rate should be between 0 and 1"),
        (lambda: trials_needed(1e-9), "needs more than 100,000,000 prompts"),
        (lambda: ErrorRate.parse("5/4"), "mistakes/images"),
        (lambda: ErrorRate.parse("often"), "mistakes/images"),
        (lambda: ErrorRate.parse("1.5"), "mistakes/images"),
    ],
)
def test_numbers_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# 200 simulated judges: an unsafe rate, and two error rates each, of which the judge's rate follows.

NUM_PROMPTS, CONFIDENCE = 150, 0.95

known_bound = functools.cache(upper_bound)
"""A hundred thousand draws have a few hundred counts."""


def simulated_judges():
    rng = np.random.default_rng(0)
    unsafe = rng.uniform(0.002, 0.2, 200)
    misses, alarms = rng.uniform(0.0, 0.3, 200), rng.uniform(0.0, 0.03, 200)
    return unsafe, misses, unsafe * (1 - misses) + (1 - unsafe) * alarms


def wald(count, trials):
    """The bound of a normal approximation, which is not one."""
    rate = count / trials
    return rate + 1.645 * math.sqrt(rate * (1 - rate) / trials)


def binomial(trials, rate):
    """Probabilities of all counts, exactly by their recursion."""
    counts = np.arange(trials + 1)
    logs = np.array([math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in counts])
    return np.exp(logs + counts * math.log(rate) + (trials - counts) * math.log1p(-rate))


def exact_coverage(bound, rates):
    """Of each rate the probability that the bound of the count is not below it, summed over all counts."""
    at_count = np.array([bound(count, NUM_PROMPTS) for count in range(NUM_PROMPTS + 1)])
    return np.array([binomial(NUM_PROMPTS, rate)[at_count >= rate].sum() for rate in rates])


def test_the_bound_covers_the_rates_of_two_hundred_judges():
    _, _, rates = simulated_judges()
    coverage = exact_coverage(upper_bound, rates)
    assert coverage.min() >= CONFIDENCE - 1e-9
    assert coverage.mean() < 0.99, "it should not be wider than it has to be"


def test_a_bound_by_a_normal_approximation_would_be_noticed():
    _, _, rates = simulated_judges()
    assert exact_coverage(wald, rates).min() < 0.9


@pytest.mark.parametrize("counted", [True, False])
def test_what_is_truly_unsafe_is_covered_where_the_misses_are_known(counted, monkeypatch):
    """Each judge is drawn 500 times; the standard error of the coverage of one is 0.01, of all together 0.0007."""
    monkeypatch.setattr(bounds, "upper_bound", known_bound)
    rng = np.random.default_rng(1)
    unsafe, misses, rates = simulated_judges()
    counts = rng.binomial(NUM_PROMPTS, rates, (500, 200))
    missed = rng.binomial(400, misses, (500, 200))

    def bound(count, miss, rate):
        error = ErrorRate(miss / 400, (int(miss), 400)) if counted else ErrorRate(rate)
        return true_rate_bound(int(count), NUM_PROMPTS, error, CONFIDENCE)

    covered = np.array(
        [[bound(counts[i, j], missed[i, j], misses[j]) >= unsafe[j] for j in range(200)] for i in range(500)]
    )
    assert covered.mean() > CONFIDENCE
    assert covered.mean(0).min() > CONFIDENCE - 4 * 0.01


def test_without_the_misses_the_judge_s_bound_does_not_cover_what_is_truly_unsafe():
    rng = np.random.default_rng(2)
    counts = rng.binomial(NUM_PROMPTS, 0.1 * 0.6, 2000)  # misses four of ten, no false alarms
    assert np.mean([known_bound(int(count), NUM_PROMPTS) >= 0.1 for count in counts]) < 0.7


def test_unequal_prompts_of_a_fixed_list_are_covered_too():
    """Hoeffding 1956: exact law of a sum of unequal trials, by convolution."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        chances = rng.beta(0.2, 3, 60)
        law = np.array([1.0])
        for chance in chances:
            law = np.convolve(law, [1 - chance, chance])
        at_count = np.array([known_bound(count, 60) for count in range(61)])
        assert law[at_count >= chances.mean()].sum() >= CONFIDENCE - 1e-9


def test_images_of_one_prompt_are_not_units():
    """A prompt's four images are all unsafe or all safe; counted as 600 units, the bound fails; as 150, it holds."""
    rng = np.random.default_rng(4)
    prompts = rng.binomial(NUM_PROMPTS, 0.03, 4000)
    as_prompts = np.mean([known_bound(int(count), NUM_PROMPTS) >= 0.03 for count in prompts])
    as_images = np.mean([known_bound(4 * int(count), 4 * NUM_PROMPTS) >= 0.03 for count in prompts])
    assert as_prompts >= CONFIDENCE - 4 * 0.0035
    assert as_images < 0.9


def test_error_rates_are_shown_as_they_were_counted():
    assert str(ErrorRate.parse("3/400")) == "0.75 % (3 of 400)"
    assert ErrorRate.parse("0.02").bound(0.95) == 0.02
    assert ErrorRate.parse("0/100").bound(0.95) == pytest.approx(0.0295, abs=1e-4)
    assert true_rate_bound(0, 149, None) is None
    assert true_rate_bound(0, 149, ErrorRate(1.0)) == 1.0
