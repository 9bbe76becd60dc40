"""The grammar that chooses manifest rows: what it means, what it refuses and where it points."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guided.where import parse_where

ROW = {"a": "1", "b": "x", "größe": "3.5", "cell type": "blast", "and": "7", "empty": ""}


def keeps(expression: str) -> bool:
    return parse_where(expression, list(ROW))(ROW)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("b == 'x'", True),
        ('b == "x"', True),
        ("b != 'x'", False),
        ("b=='x'", True),
        ("a == 1", True),
        ("a == 1.0", True),
        ("a == '1.0'", False),  # a text compares with the cell as it stands
        ("a > -1e0", True),
        ("a<2", True),
        ("a >= 1 and a <= 1", True),
        ("größe > 3", True),
        ("`cell type` == 'blast'", True),
        ("`and` == 7", True),
        ("empty == ''", True),
        ("b in ('y', 'x')", True),
        ("b not in ('y', 'x')", False),
        ("a in (1)", True),
        ("a in (2, '1')", True),
        ("not a == 1", False),
        ("not not a == 1", True),
        ("not (a == 1 and b == 'y')", True),
        ("  a\t==\n1  ", True),
        ("b == 'é'", False),
        ('b == "it\'s"', False),
    ],
)
def test_what_an_expression_means(expression: str, expected: bool) -> None:
    assert keeps(expression) is expected


@settings(deadline=None)
@given(p=st.booleans(), q=st.booleans(), r=st.booleans())
def test_not_binds_before_and_before_or_as_in_python(p: bool, q: bool, r: bool) -> None:
    row = {"p": str(int(p)), "q": str(int(q)), "r": str(int(r))}
    for text in (
        "{p} or {q} and {r}",
        "{p} and {q} or {r}",
        "not {p} and {q}",
        "not {p} or {q}",
        "({p} or {q}) and {r}",
        "not ({p} or {q}) and not {r}",
        "{p} and not {q} or {r} and {q}",
    ):
        ours = text.format(p="p == 1", q="q == 1", r="r == 1")
        expected = eval(text.format(p="p", q="q", r="r"), {}, {"p": p, "q": q, "r": r})
        assert parse_where(ours, ["p", "q", "r"])(row) is expected, text


@pytest.mark.parametrize("operator", ["==", "!=", "<", "<=", ">", ">="])
@settings(deadline=None)
@given(left=st.integers(-9, 9), right=st.integers(-9, 9))
def test_operators_compare_numbers_not_texts(operator: str, left: int, right: int) -> None:
    expected = eval(f"{left} {operator} {right}")
    assert parse_where(f"n {operator} {right}", ["n"])({"n": f" {left} "}) is expected


@pytest.mark.parametrize(
    ("expression", "told", "position"),
    [
        ("", "expected a column, found the end", 0),
        ("a", "expected a comparison (== != < <= > >= in), found the end", 1),
        ("a = 1", "'=' cannot be read; equality is written ==", 2),
        ("b == x", "expected a number or a quoted text, found 'x'", 5),
        ("b == 'x", "\"'\" cannot be read; quote texts like 'A'", 5),
        ("b == 'x' b", "expected an operator or the end, found 'b'", 9),
        ("(a == 1", "expected ')', found the end", 7),
        ("a == 1)", "expected an operator or the end, found ')'", 6),
        ("a in 1", "expected '(' and a list of values, found '1'", 5),
        ("a in ()", "expected a number or a quoted text, found ')'", 6),
        ("a in (1,)", "expected a number or a quoted text, found ')'", 8),
        ("a not == 1", "expected a comparison (== != < <= > >= in), found '=='", 6),
        ("1 == a", "expected a column, found '1'", 0),
        ("a == 1 or", "expected a column, found the end", 9),
        ("a == 1\nor bb == 2", "no column 'bb' (there are: a, b, größe, cell type, and, empty)", 10),
        ("größe > 1 and grosse > 1", "no column 'grosse'", 14),
        ("a == 1 && b == 'x'", "'&' cannot be read", 7),
        ("a == 12x", "'1' cannot be read", 5),
        ("__import__('os')", "no column '__import__'", 0),
        ("__import__('os').system('true')", "'.' cannot be read", 16),
        ("a.__class__ == 1", "no column 'a.__class__'", 0),
        ("a == 1; b == 2", "';' cannot be read", 6),
    ],
)
def test_an_error_points_at_its_place(expression: str, told: str, position: int) -> None:
    with pytest.raises(ValueError) as caught:
        parse_where(expression, list(ROW))
    first, shown, mark = str(caught.value).split("\n")
    assert first.startswith("where: ") and told in first
    assert shown.strip() == expression.replace("\n", " ").strip()
    assert mark.index("^") - 4 == position


def test_a_misspelt_column_comes_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no column 'größ'.*did you mean 'größe'"):
        keeps("größ == 1")


def test_a_cell_that_is_no_number_is_named() -> None:
    with pytest.raises(ValueError, match="column 'b' holds 'x', which is no number"):
        keeps("b > 1")


@pytest.mark.parametrize("deep", ["(" * 3000 + "a == 1" + ")" * 3000, "not " * 3000 + "a == 1"])
def test_nesting_has_an_end_before_the_stack_has(deep: str) -> None:
    with pytest.raises(ValueError, match="more than 50 brackets and nots inside each other"):
        keeps(deep)
    assert keeps("(" * 50 + "a == 1" + ")" * 50)
    assert keeps(" and ".join(["(not (a == 2))"] * 3000)), "long is not deep"


names = ["a", "b", "größe", "`cell type`", "`", "and", "or", "not", "in"]
signs = ["(", ")", ",", "==", "!=", "<", ">=", "=", "&", "\n", "\0", " "]
pieces = st.sampled_from([*names, *signs, "1", "-2.5e3", "1e999", "٣", "²", "'x'", '"y"', "'"])


@settings(deadline=None)
@given(st.one_of(st.text(max_size=40), st.lists(pieces, max_size=25).map(" ".join), st.lists(pieces).map("".join)))
@example("a == 1e999")
def test_no_input_gives_anything_but_a_value_error(expression: str) -> None:
    try:
        test = parse_where(expression, list(ROW))
        kept = test(ROW)
    except ValueError as error:
        assert str(error).startswith("where: ")
    else:
        assert isinstance(kept, bool)
