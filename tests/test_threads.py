"""util/lib/threads.py: order, a bound on what runs ahead, and errors."""
import threading
import time

import pytest

from util.lib import threads

pytestmark = pytest.mark.check


def test_results_come_in_the_order_of_the_items():
    def slow_first(i):
        time.sleep(0.02 if i % 5 == 0 else 0)
        return i * i

    assert list(threads.in_order(slow_first, range(23), 4)) == [i * i for i in range(23)]
    assert list(threads.in_order(slow_first, [], 4)) == []


@pytest.mark.parametrize(("ahead", "most"), [(None, 4), (7, 7)])
def test_no_more_than_asked_for_is_computed_ahead(ahead, most):
    """By default two results per thread, beside the one that the caller works on."""
    taken = []

    def items():
        for i in range(30):
            taken.append(i)
            yield i

    results = threads.in_order(lambda i: i, items(), 2, ahead)
    for i in range(30):
        assert next(results) == i
        assert len(taken) <= i + 1 + most
    assert len(taken) == 30


def test_an_error_arrives_in_its_turn_and_ends_the_threads():
    def fails_at_3(i):
        if i == 3:
            raise ValueError("three")
        return i

    before, found = threading.active_count(), []
    with pytest.raises(ValueError, match="three"):
        for result in threads.in_order(fails_at_3, range(1000), 2):
            found.append(result)
    assert found == [0, 1, 2]
    assert threading.active_count() == before


def test_a_caller_that_stops_early_ends_the_threads():
    before, results = threading.active_count(), threads.in_order(lambda i: i, range(1000), 3)
    next(results)
    results.close()
    assert threading.active_count() == before


def test_count_of_threads(monkeypatch):
    monkeypatch.setattr(threads, "MOST", 1)
    assert [threads.count(asked) for asked in (0, 1, 13)] == [1, 1, 13]
