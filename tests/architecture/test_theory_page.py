"""The theory page and the code: docs/theory.md names what exists, holds what is cited, and leaves nothing out."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from hermosis_server import dynamics
from hermosis_server.dynamics import RECIPES, KineticEnergy, Metric, Scheme, ThermalProfile

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
DYNAMICS = Path(dynamics.__path__[0])
CITING = ("server", "client", "proto", "tests", "docs")
NAME = re.compile(r"`([a-z_]+(?:\.[A-Za-z_]+)+)`")
SPAN = re.compile(r"`[^`\n]+`")
CITATION = re.compile(r"docs/theory\.md,\s+sections?\s+(\d+(?:(?:,\s*|\s+and\s+|,\s+and\s+)\d+)*)")
FUNCTION_COLUMN = "computed by"


def exists(name: str) -> bool:
    """Whether `module.name` or `module.Class.name` is there in hermosis_server.dynamics."""
    module, *path = name.split(".")
    if not (DYNAMICS / f"{module}.py").exists():
        return False
    found: object = importlib.import_module(f"hermosis_server.dynamics.{module}")
    for part in path:
        if not hasattr(found, part):
            return part in getattr(found, "__annotations__", {})
        found = getattr(found, part)
    return True


def names_in(text: str) -> list[str]:
    return [name for name in NAME.findall(text) if exists(name)]


def blocks() -> list[str]:
    """Paragraphs, whole tables and lists, as blank lines part them."""
    return re.split(r"\n\s*\n", PAGE)


def formulas() -> list[str]:
    """Blocks that display a formula."""
    return [block for block in blocks() if "$$" in block]


def rows() -> list[str]:
    """Rows of tables that have a column for the function."""
    tables = [block.splitlines() for block in blocks() if block.startswith("|")]
    return [row for table in tables if FUNCTION_COLUMN in table[0] for row in table[2:]]


def citations() -> Iterator[tuple[Path, int]]:
    for folder in CITING:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix not in (".py", ".proto", ".md", ".pyi"):
                continue
            for cited in CITATION.findall(path.read_text(encoding="utf-8")):
                for number in re.findall(r"\d+", cited):
                    yield path, int(number)


def test_every_name_on_the_page_exists() -> None:
    named = NAME.findall(PAGE)
    assert len(named) > 50
    assert [name for name in named if not exists(name)] == []


def test_sections_are_numbered_one_by_one() -> None:
    assert re.findall(r"^## (\d+)\. ", PAGE, flags=re.MULTILINE) == [str(number) for number in range(1, 14)]


def test_every_section_that_is_cited_exists() -> None:
    there = {int(number) for number in re.findall(r"^## (\d+)\. ", PAGE, flags=re.MULTILINE)}
    cited = list(citations())
    assert len({path for path, _ in cited}) > 8
    assert [(str(path), number) for path, number in cited if number not in there] == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_on_the_page(recipe: str) -> None:
    assert f"`{recipe}`" in PAGE


@pytest.mark.parametrize("scheme", Scheme)
def test_every_scheme_is_on_the_page(scheme: Scheme) -> None:
    assert f"`{scheme}`" in PAGE


@pytest.mark.parametrize(
    "part", [each for union in (ThermalProfile, KineticEnergy, Metric) for each in get_args(union)]
)
def test_every_part_of_the_hamiltonian_is_on_the_page(part: type) -> None:
    module = part.__module__.rpartition(".")[2]
    assert f"`{module}.{part.__name__}`" in PAGE


def test_every_displayed_formula_names_the_code_that_computes_it() -> None:
    """In its own paragraph: no blank line between."""
    assert len(formulas()) > 15
    assert [block for block in formulas() if not names_in(block)] == []


def test_every_row_of_a_table_of_formulas_names_the_code_that_computes_it() -> None:
    """In the column for it; a dash says that there is nothing to compute."""
    assert len(rows()) > 20
    last = [row.rstrip(" |").rpartition("|")[2].strip() for row in rows()]
    assert [cell for cell in last if cell != "–" and not names_in(cell)] == []


def test_formulas_are_closed_and_code_spans_pair() -> None:
    """An odd `$$` or backtick would turn the rest of a paragraph into something else."""
    assert [block for block in blocks() if block.count("$$") % 2] == []
    assert [block for block in blocks() if "`" in SPAN.sub("", block)] == []
