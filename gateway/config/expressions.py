"""JMESPath over values whose numbers keep their digits.

Pure. Differences from the library: numbers in a body and in literals are compared exactly and returned as written;
inapplicable functions and comparisons raise only ValueError; and `places` keeps the places of a list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError
from jmespath.functions import Functions, signature
from jmespath.visitor import Options, TreeInterpreter
from pydantic import JsonValue

from gateway.http.json_text import TooDeep, exact, number_of, text_of

_LITERAL = re.compile(r"`(?:[^`\\]|\\.)*`")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_SUMS = Context(prec=100)
"""The maximum number of digits of a sum."""


class Expression:
    """A JMESPath expression, ready to be searched for. `parsed` is its tree."""

    def __init__(self, text: str) -> None:
        """Raises ValueError with the reason in one line."""
        try:
            tree = jmespath.compile(text).parsed
        except JMESPathError as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), "it can't be parsed")
            raise ValueError(f"isn't a valid JMESPath expression ({reason.strip().rstrip(':')})") from None
        literals = (match for literal in _LITERAL.findall(text) for match in _NUMBER.findall(literal))
        self.parsed = _with_literals(tree, {float(each): each for each in literals})

    def search(self, value: JsonValue | Mapping[str, object]) -> JsonValue:
        """The result. Raises ValueError if a function or an operator can't be applied to the value."""
        return self._visited(TreeInterpreter(_OPTIONS), value)

    def places(self, value: JsonValue | Mapping[str, object]) -> JsonValue:
        """The same, with null in a list for each element that has nothing there: `items[*].id` has as many elements as
        `items`, where JMESPath leaves those without an `id` out. Raises ValueError."""
        return self._visited(_InPlace(_OPTIONS), value)

    def _visited(self, interpreter: TreeInterpreter, value: object) -> JsonValue:
        try:
            found: JsonValue = interpreter.visit(self.parsed, value)
        except (TypeError, ArithmeticError, RecursionError) as error:
            # The library compares strings with numbers by Python's own rules.
            raise ValueError(str(error)) from None
        return found


def _with_literals(node: Any, written: Mapping[float, str]) -> Any:
    """A tree whose literal numbers are as the expression writes them: the library reads them as floats."""
    if isinstance(node, dict):
        return {name: _with_literals(each, written) for name, each in node.items()}
    if isinstance(node, list):
        return [_with_literals(each, written) for each in node]
    return number_of(written[node]) if isinstance(node, float) and node in written else node


class _Functions(Functions):
    """The library's functions, for numbers that keep their digits. The marked names are missing in its stubs."""

    def _get_allowed_pytypes(self, types: Any) -> Any:
        allowed, of_elements = super()._get_allowed_pytypes(types)  # type: ignore[misc]
        of_elements = [(*names, "Number") if "float" in names else names for names in of_elements]
        return [*allowed, "Number"] if "float" in allowed else allowed, of_elements

    def _convert_to_jmespath_type(self, name: str) -> Any:
        if name == "Number":
            return "number"
        return super()._convert_to_jmespath_type(name)  # type: ignore[misc]

    @signature({"types": ["number"]})
    def _func_abs(self, number: float) -> float:
        return _as_number(abs(exact(number))) if number < 0 else number

    @signature({"types": ["number"]})
    def _func_ceil(self, number: float) -> float:
        return _as_number(exact(number).to_integral_value(ROUND_CEILING))

    @signature({"types": ["number"]})
    def _func_floor(self, number: float) -> float:
        return _as_number(exact(number).to_integral_value(ROUND_FLOOR))

    @signature({"types": ["array-number"]})
    def _func_sum(self, numbers: list[float]) -> float:
        total = Decimal(0)
        for number in numbers:
            total = _SUMS.add(total, exact(number))
        return _as_number(total)

    @signature({"types": []})
    def _func_to_number(self, value: object) -> float | None:
        if isinstance(value, str):
            if _NUMBER.fullmatch(value):
                return number_of(value)
            other: float | None = super()._func_to_number(value)  # type: ignore[misc]
            return other
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    @signature({"types": []})
    def _func_to_string(self, value: object) -> str:
        try:
            return value if isinstance(value, str) else text_of(value).decode()
        except TooDeep as error:
            raise ValueError(str(error)) from None


def _as_number(value: Decimal) -> float:
    text = str(value)
    return number_of(text) if _NUMBER.fullmatch(text) else float(value)


def truthy(value: object) -> bool:
    """Truth as JMESPath has it: null, false and the empty are false; 0 is true."""
    return not (value is None or value is False or value == "" or value == [] or value == {})


_OPTIONS = Options(custom_functions=_Functions())


class _InPlace(TreeInterpreter):
    """Keeps null for elements in which a projection finds nothing."""

    def visit_projection(self, node: Any, value: Any) -> Any:
        base = self.visit(node["children"][0], value)
        return [self.visit(node["children"][1], each) for each in base] if isinstance(base, list) else None

    def visit_value_projection(self, node: Any, value: Any) -> Any:
        base = self.visit(node["children"][0], value)
        return [self.visit(node["children"][1], each) for each in base.values()] if isinstance(base, dict) else None

    def visit_filter_projection(self, node: Any, value: Any) -> Any:
        base = self.visit(node["children"][0], value)
        if not isinstance(base, list):
            return None
        _, shown, condition = node["children"]
        return [self.visit(shown, each) for each in base if truthy(self.visit(condition, each))]
