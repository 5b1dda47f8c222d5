import math

import pytest

from sparse_detr.analysis.fits import fit_line, fit_sum


def test_points_on_a_line_give_the_line():
    fit = fit_line([0, 10, 20, 50], [100, 120, 140, 200])
    assert fit.coefficients == pytest.approx((100, 2))
    assert fit.r2 == pytest.approx(1)
    assert fit.largest_deviation == pytest.approx(0, abs=1e-12)
    assert fit(1, 30) == pytest.approx(160)


def test_errors_count_relative_to_their_values():
    """By hand: of 9 and 11 the fit is (1/9 + 1/11) / (1/81 + 1/121) = 990/101, and twice that of 18 and 22."""
    fit = fit_line([1, 1, 2, 2], [9, 11, 18, 22])
    assert fit.coefficients == pytest.approx((0, 990 / 101), abs=1e-9)
    assert fit.largest_deviation == pytest.approx(11 * 101 / 990 - 1)  # 11 lies further off than 9
    deviations = [value - factor * 990 / 101 for value, factor in ((9, 1), (11, 1), (18, 2), (22, 2))]
    assert fit.r2 == pytest.approx(1 - sum(d * d for d in deviations) / (36 + 16 + 9 + 49))


def test_a_cost_of_two_terms_is_found_without_a_constant():
    terms = [(1000, 100), (1000, 1000), (4000, 400), (4000, 4000)]
    fit = fit_sum(terms, [0.005 * tokens + 0.14 * kept for tokens, kept in terms])
    assert fit.coefficients == pytest.approx((0.005, 0.14))


def test_equal_values_have_no_coefficient_of_determination():
    assert math.isnan(fit_line([1, 2, 3], [5, 5, 5]).r2)


@pytest.mark.parametrize(("x", "values"), [([1], [3]), ([2, 2, 2], [3, 4, 5]), ([1, 2], [0, 1])])
def test_points_that_determine_no_line_are_refused(x, values):
    with pytest.raises(ValueError, match="values"):
        fit_line(x, values)
