"""util/lib/neighbours.py: the nearest rows are those of a plain sort, in bounded memory."""
import numpy as np
import pytest

from util.lib import neighbours


@pytest.mark.parametrize("at_once", [1 << 25, 700], ids=["one block", "blocks of 7 rows"])
def test_the_nearest_are_those_of_a_plain_sort(monkeypatch, at_once):
    monkeypatch.setattr(neighbours, "AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    unit = neighbours.unit_rows(np.float32(rng.normal(size=(131, 5))))
    rows, pool = np.arange(3, 131, 5), np.sort(rng.permutation(131)[:100])
    sizes = [similarity.size for _, similarity in neighbours.similarities(unit, rows, pool, "test")]
    assert max(sizes) <= at_once
    found, cosine = neighbours.nearest_with_cosine(unit, rows, pool, 13)
    for row, nearest, values in zip(rows, found, cosine):
        others = pool[pool != row]
        by_hand = unit[others] @ unit[row]
        order = np.argsort(-by_hand)[:13]
        assert nearest.tolist() == others[order].tolist()
        np.testing.assert_allclose(values, by_hand[order], rtol=1e-5)
