"""Draw docs/architecture.svg: the parts of the package, in one row for each level, and which part imports which.

python scripts/draw_architecture.py
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE, PICTURE = ROOT / "diffdeid", ROOT / "docs/architecture.svg"
ROWS = (  # from the top; every part may import those below, and in the first and last row some import their neighbours
    ("cli", "distributed", "batch", "serving", "camera", "review_page"),
    ("training", "conversion", "reviewing"),
    ("command_line", "planning", "evaluation", "visualization", "detection", "doctor"),
    ("pipelines", "metrics"),
    ("engine",),
    ("stages", "temporal"),
    ("models", "face_lists"),
    ("geometry",),
    ("options", "structures", "errors", "io"),
)
EVERYWHERE = {"options", "structures", "errors"}  # arrows to them would hide the others
WIDTH, HEIGHT, BOX, GAP = 980, 74, 132, 18


def imported_parts(file: Path) -> set[str]:
    """The parts of the package (first name after `diffdeid.`) that a file imports."""
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom | ast.Import)]
    names = {f"{getattr(node, 'module', '')}.{alias.name}".lstrip(".") for node in nodes for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("diffdeid.")}


def imports(part: str) -> set[str]:
    """The parts that a part imports."""
    path = PACKAGE / part
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    return set().union(*map(imported_parts, files)) - {part}


def arrows() -> list[tuple[str, str]]:
    """Which part imports which, without imports that follow from others."""
    parts = [part for row in ROWS for part in row]
    uses = {part: imports(part) & set(parts) for part in parts}
    reached: dict[str, set[str]] = {}
    for part in reversed(parts):
        reached[part] = uses[part].union(*(reached.get(other, set()) for other in uses[part]))
    return [
        (part, other)
        for part in parts
        for other in sorted(uses[part] - EVERYWHERE)
        if not any(other in reached.get(between, set()) for between in uses[part] - {other})
    ]


def places() -> dict[str, tuple[float, float]]:
    """The middle of each box."""
    middles = {}
    for number, row in enumerate(ROWS):
        left = (WIDTH - len(row) * BOX - (len(row) - 1) * GAP) / 2
        for column, part in enumerate(row):
            middles[part] = left + column * (BOX + GAP) + BOX / 2, 30 + number * HEIGHT
    return middles


def draw() -> str:
    """The picture, as SVG."""
    middles = places()
    lines = []
    for (x, y), (to_x, to_y) in ((middles[part], middles[other]) for part, other in arrows()):
        curve = f"M{x:g} {y + 16:g} C{x:g} {y + 50:g} {to_x:g} {to_y - 50:g} {to_x:g} {to_y - 17:g}"
        if to_y == y:
            curve = f"M{x - BOX / 2:g} {y:g} L{to_x + BOX / 2:g} {to_y:g}"
        lines.append(f'<path d="{curve}" fill="none" stroke="#799" marker-end="url(#head)"/>')
    boxes = [
        f'<rect x="{x - BOX / 2:g}" y="{y - 16:g}" width="{BOX}" height="32" rx="5" fill="#eef4fb" stroke="#357"/>'
        f'<text x="{x:g}" y="{y + 5:g}" text-anchor="middle">{part}{"/" if (PACKAGE / part).is_dir() else ".py"}</text>'
        for part, (x, y) in middles.items()
    ]
    head = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
    head += '<path d="M0 0L8 4L0 8z" fill="#799"/></marker>'
    frame = f'viewBox="0 0 {WIDTH} {len(ROWS) * HEIGHT}" font-family="sans-serif" font-size="14"'
    ground = f'<rect width="100%" height="100%" fill="white"/><defs>{head}</defs>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {frame}>{ground}', *lines, *boxes, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw())
    print(PICTURE)
