"""docs/python.md: it describes each public name, by its present signature, with an example that runs."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gateway
import gateway.testing

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
SECTIONS = {
    found[1]: found[2] for found in re.finditer(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
}
TESTING = PAGE[PAGE.index("## Testing your app") :]
EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SIGNATURE = re.compile(r"^`([^`\n]+)`$", re.MULTILINE)


def test_the_page_describes_the_public_names_and_no_others() -> None:
    assert sorted(SECTIONS) == sorted(gateway.__all__)


@pytest.mark.parametrize("name", gateway.__all__)
def test_a_public_name_is_there(name: str) -> None:
    assert plain(getattr(gateway, name)).__name__ == name


def plain(value: Any) -> Any:
    """The class of a type with a dependency."""
    return getattr(value, "__origin__", value)


def test_another_name_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Gatewy'"):
        _ = gateway.Gatewy


def found(dotted: str) -> Any:
    first, *rest = dotted.split(".")
    value = getattr(gateway, first)
    for name in rest:
        value = getattr(value, name)
    return value


def written(line: str) -> tuple[str, list[str], bool]:
    """What a signature line names, its bases or parameters, and whether it is of a class."""
    if line.startswith("class "):
        (node,) = ast.parse(f"{line}: ...").body
        assert isinstance(node, ast.ClassDef)
        return node.name, [ast.unparse(base) for base in node.bases], True
    dotted, bracket, rest = line.partition("(")
    (function,) = ast.parse(f"def f{bracket}{rest}: ...").body
    assert isinstance(function, ast.FunctionDef)
    made = function.args
    listed = [made.vararg] if made.vararg else []
    names = [each.arg for each in (*made.posonlyargs, *made.args, *listed, *made.kwonlyargs)]
    return dotted, names + ([made.kwarg.arg] if made.kwarg else []), False


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_a_signature_on_the_page_is_that_of_the_code(name: str) -> None:
    lines = SIGNATURE.findall(SECTIONS[name])
    assert lines
    for line in lines:
        dotted, names, is_class = written(line)
        assert dotted.partition(".")[0] == name
        value = plain(found(dotted))
        actual = [base.__name__ for base in value.__bases__] if is_class else list(inspect.signature(value).parameters)
        assert [each for each in actual if each not in ("self", "object")] == names


@pytest.mark.parametrize("name", [*sorted(SECTIONS), "testing"])
def test_an_example_runs(name: str) -> None:
    examples = EXAMPLE.findall(TESTING if name == "testing" else SECTIONS[name])
    assert examples
    for example in examples:
        assert name in example
        exec(compile(example, f"docs/python.md:{name}", "exec", dont_inherit=True), {"__name__": "__main__"})


def test_the_page_describes_what_gateway_testing_has() -> None:
    own = [
        name
        for name, value in vars(gateway.testing).items()
        if getattr(value, "__module__", "") == "gateway.testing" and not name.startswith("_")
    ]
    assert sorted(re.findall(r"^\| `(\w+)\(", TESTING, re.MULTILINE)) == sorted(own)


def test_gateway_testing_does_not_need_pytest() -> None:
    code = "import sys; sys.modules['pytest'] = None; import gateway.testing"
    subprocess.run([sys.executable, "-c", code], check=True)
