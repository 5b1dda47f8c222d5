import pytest

from sparse_detr.report.numbers import report_numbers
from sparse_detr.report.words import sentences
from tests.report.made_up import make_results, make_truth


@pytest.fixture
def numbers():
    """Return the numbers of the made-up report, with its sentences."""
    found = report_numbers(make_truth(), make_results())
    return {**found, "sentences": sentences(found)}
