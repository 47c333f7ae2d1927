"""Imports point downwards only: errors, structures, imaging <- geometry <- models <- tracking <- pipelines, metrics <- training
<- cli."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "diffdeid"
FLOORS = {
    "errors": 0, "structures": 0, "imaging": 0, "video": 0, "video_parts": 0, "geometry": 1, "models": 2, "schedulers": 2,
    "tracking": 3, "pipelines": 4, "metrics": 4, "evaluation": 5, "training": 5, "conversion": 5, "visualization": 5, "doctor": 5,
    "batch": 6, "camera": 6, "serving": 6, "cli": 6, "__main__": 6,
}  # fmt: skip
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def imported_parts(path: Path) -> set[str]:
    """The parts of the package (first name after `diffdeid.`) that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write `from diffdeid…` instead of a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("diffdeid.")} & FLOORS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in imported_parts(path) - {part}:
        beside = FLOORS[other] == FLOORS[part] in (0, 6)
        assert FLOORS[other] < FLOORS[part] or beside, f"{part} (floor {FLOORS[part]}) imports {other} (floor {FLOORS[other]})"
        assert other != "conversion" or part == "cli", "conversion is imported by the command line only"
