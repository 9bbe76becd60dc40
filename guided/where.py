"""A small grammar to choose manifest rows: `acquisition == 'A' and not label in ('platelet', 'basophil')`.

    expression := term ('or' term)*          term := factor ('and' factor)*
    factor     := 'not' factor | '(' expression ')' | column operator value | column ['not'] 'in' '(' value, … ')'
    operator   := == != < <= > >=            value := 'text' | "text" | number
    column     := word | `any name`

Nothing is evaluated as code. A number compares with the cell read as a number, a text with the cell as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

Row = Mapping[str, str]
Test = Callable[[Row], bool]
Value = str | float

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?![\w])"
    r"|(?P<text>'[^']*'|\"[^\"]*\")"
    r"|`(?P<name>[^`]*)`"
    r"|(?P<operator>==|!=|<=|>=|<|>)"
    r"|(?P<sign>[(),])"
    r"|(?P<word>[^\W\d][\w.]*))"
)
_WORDS = ("and", "or", "not", "in")
_DEEPEST = 50  # nested brackets and nots: far more than a person writes, far less than Python's stack


class _Token(NamedTuple):
    kind: str
    text: str
    position: int


def parse_where(expression: str, columns: Sequence[str]) -> Test:
    """The test of a row (a mapping of columns to texts) that `expression` describes.

    Raises ValueError pointing at the position of a syntax error, or naming an unknown column with its nearest
    neighbour. The test itself raises ValueError for a cell that is no number where a number is compared.
    """
    parser = _Parser(expression, columns)
    test = parser.expression()
    if parser.token.kind != "end":
        raise parser.wrong("an operator or the end")
    return test


class _Parser:
    def __init__(self, expression: str, columns: Sequence[str]) -> None:
        self._text, self._columns = expression, columns
        self._tokens = self._split()
        self._at = 0
        self._depth = 0

    def _split(self) -> list[_Token]:
        tokens, position = [], 0
        while self._text[position:].strip():
            found = _TOKEN.match(self._text, position)
            if found is None or found.lastgroup is None:
                start = position + len(self._text[position:]) - len(self._text[position:].lstrip())
                hint = "equality is written ==" if self._text[start] == "=" else "quote texts like 'A'"
                raise self._error(start, f"{self._text[start]!r} cannot be read; {hint}")
            kind, text = found.lastgroup, found.group(found.lastgroup)
            if kind == "word" and text in _WORDS:
                kind = text
            tokens.append(_Token(kind, text, found.start(found.lastgroup)))
            position = found.end()
        tokens.append(_Token("end", "", len(self._text)))
        return tokens

    @property
    def token(self) -> _Token:
        return self._tokens[self._at]

    def _next(self) -> _Token:
        token = self.token
        self._at += 1
        return token

    def _take(self, kind: str, text: str | None = None) -> _Token | None:
        if self.token.kind == kind and (text is None or self.token.text == text):
            return self._next()
        return None

    def _error(self, position: int, told: str) -> ValueError:
        line = re.sub(r"\s", " ", self._text)  # so that the mark stands under its place
        return ValueError(f"where: {told}\n    {line}\n    {' ' * position}^")

    def wrong(self, expected: str) -> ValueError:
        """The error for a token that does not fit."""
        given = repr(self.token.text) if self.token.text else "the end"
        return self._error(self.token.position, f"expected {expected}, found {given}")

    def expression(self) -> Test:
        tests = [self._term()]
        while self._take("or"):
            tests.append(self._term())
        return tests[0] if len(tests) == 1 else lambda row: any(test(row) for test in tests)

    def _term(self) -> Test:
        tests = [self._factor()]
        while self._take("and"):
            tests.append(self._factor())
        return tests[0] if len(tests) == 1 else lambda row: all(test(row) for test in tests)

    def _factor(self) -> Test:
        start = self.token
        if start.kind != "not" and (start.kind, start.text) != ("sign", "("):
            return self._comparison()
        self._next()
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._error(start.position, f"more than {_DEEPEST} brackets and nots inside each other")
        if start.kind == "not":
            negated = self._factor()
            inner: Test = lambda row: not negated(row)  # noqa: E731
        else:
            inner = self.expression()
            self._close()
        self._depth -= 1
        return inner

    def _close(self) -> None:
        if not self._take("sign", ")"):
            raise self.wrong("')'")

    def _comparison(self) -> Test:
        column = self._column()
        if operator := self._take("operator"):
            return _compare(column, operator.text, self._value())
        negated = self._take("not") is not None
        if not self._take("in"):
            raise self.wrong("a comparison (== != < <= > >= in)")
        if not self._take("sign", "("):
            raise self.wrong("'(' and a list of values")
        values = [self._value()]
        while self._take("sign", ","):
            values.append(self._value())
        self._close()
        tests = [_compare(column, "==", value) for value in values]
        return lambda row: any(test(row) for test in tests) != negated

    def _column(self) -> str:
        token = self._take("word") or self._take("name")
        if token is None:
            raise self.wrong("a column")
        if token.text not in self._columns:
            near = get_close_matches(token.text, self._columns, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            told = f"no column {token.text!r} (there are: {', '.join(self._columns)}){hint}"
            raise self._error(token.position, told)
        return token.text

    def _value(self) -> Value:
        if token := self._take("number"):
            return float(token.text)
        if token := self._take("text"):
            return token.text[1:-1]
        raise self.wrong("a number or a quoted text")


_OPERATORS: dict[str, Callable[[Value, Value], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,  # type: ignore[operator]
    "<=": lambda a, b: a <= b,  # type: ignore[operator]
    ">": lambda a, b: a > b,  # type: ignore[operator]
    ">=": lambda a, b: a >= b,  # type: ignore[operator]
}


def _compare(column: str, operator: str, value: Value) -> Test:
    compare = _OPERATORS[operator]
    if isinstance(value, str):
        return lambda row: compare(row[column], value)

    def test(row: Row) -> bool:
        try:
            return compare(float(row[column]), value)
        except ValueError:
            raise ValueError(f"where: column {column!r} holds {row[column]!r}, which is no number") from None

    return test
