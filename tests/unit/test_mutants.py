"""The list of `tests/mutants.py` fits the package; whether its tests notice is seen where there is time for it."""

from __future__ import annotations

import pytest

from tests.mutants import GUARDS, MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", [*MUTANTS, *GUARDS], ids=str)
def test_a_line_to_break_stands_once_in_its_module_and_has_tests(mutant: Mutant) -> None:
    assert mutant.file().read_text().count(mutant.line) == 1
    assert mutant.broken != mutant.line
    assert (ROOT / "tests" / f"{mutant.tests}.py").is_file()
