from __future__ import annotations

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from guided.metrics import accuracy, f1_per_class, macro_f1

cells = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@given(cells)
def test_macro_f1_is_the_mean_over_the_classes_present(pairs: list[tuple[int, int]]) -> None:
    true, predicted = (list(part) for part in zip(*pairs, strict=True))
    ours = macro_f1(np.array(true), np.array(predicted), 5)
    assert ours == pytest.approx(oracles.macro_f1(true, predicted, 5), abs=1e-12)
    present = sorted(set(true))
    assert ours == pytest.approx(f1_score(true, predicted, labels=present, average="macro", zero_division=0))


@given(cells, st.permutations(range(5)))
def test_the_order_of_the_classes_does_not_matter(pairs: list[tuple[int, int]], order: list[int]) -> None:
    true, predicted = (np.array(part) for part in zip(*pairs, strict=True))
    turned = np.array(order)
    assert macro_f1(true, predicted, 5) == pytest.approx(macro_f1(turned[true], turned[predicted], 5))


def test_a_class_without_true_cells_has_no_f1_but_its_predictions_cost_the_others() -> None:
    true, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    f1 = f1_per_class(true, predicted, 3)
    assert f1[0] == pytest.approx(2 / 3) and f1[1] == 1 and np.isnan(f1[2])
    assert macro_f1(true, predicted, 3) == pytest.approx(5 / 6)
    assert accuracy(true, predicted) == 0.75


def test_no_cells_have_no_score() -> None:
    with pytest.raises(ValueError, match="undefined"):
        macro_f1(np.array([], dtype=np.int64), np.array([], dtype=np.int64), 3)
