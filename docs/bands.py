"""Draws docs/bands.svg, which rows of the input each kernel row sees: `python3 docs/bands.py`."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
# Run as a script, Python looks in docs/ only.
sys.path.insert(0, str(DOCS.parent))

from reference.problem import Chain  # noqa: E402

# The headline's kernel on a plane small enough to draw: kernel 3, stride 2, padding 1, output padding 1.
PROBLEM = Chain(1, 1, 1, 5, 5, (3, 3), (2, 2), (1, 1), (1, 1))
CELL = 18  # px, of a row of the output; the input's rows are drawn twice as far apart, as the stride is 2
PANEL = 210  # px from one kernel row's drawing to the next
# Okabe and Ito's orange and blue, told apart with any colour vision; kernel rows with one band have one colour.
COLOURS = ("#e69f00", "#0072b2")
STYLE = """text{font:14px sans-serif;fill:#222}.small{font-size:12px}.cell{stroke:#666;fill:none}.line{stroke-width:2}
.lost{stroke:#999;stroke-width:1.5;stroke-dasharray:3 3}
@media (prefers-color-scheme:dark){text{fill:#ddd}.cell{stroke:#999}}"""


def row(x: float, y: float, colour: str = "none") -> str:
    fill = f' style="fill:{colour};fill-opacity:.65"' if colour != "none" else ""
    return f'<rect class="cell" x="{x}" y="{y}" width="44" height="{CELL - 3}" rx="2"{fill}/>'


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}"{f" class={kind!r}" if kind else ""}>{words}</text>'


def panel(kh: int, left: int, top: int) -> list[str]:
    """One kernel row: input rows at the left, output rows at the right, a line from each to where it lands."""
    low, high = PROBLEM.bands(0)[kh]
    h_out, stride, padding = PROBLEM.out_size(0), PROBLEM.stride[0], PROBLEM.padding[0]
    middle = CELL / 2 - 1.5
    colour = COLOURS[sorted(set(PROBLEM.bands(0)), reverse=True).index((low, high))]
    parts = [text(left, top - 34, f"kernel row {kh}")]
    parts.append(text(left, top - 16, f"band: input rows {low} to {high - 1}", "small"))
    parts += [row(left + 120, top + CELL * out) for out in range(h_out)]
    for h in range(PROBLEM.h):
        y, lands = top + CELL * (2 * h + 0.5), h * stride - padding + kh
        seen = low <= h < high
        parts.append(row(left, y, colour if seen else "none"))
        kind = f'class="line" stroke="{colour}"' if seen else 'class="lost"'
        end = top + CELL * lands + middle
        parts.append(f'<line {kind} x1="{left + 46}" y1="{y + middle}" x2="{left + 118}" y2="{end}"/>')
    return parts


def taps(left: int, top: int) -> list[str]:
    """The kernel's taps; those of one colour and one number see the same rows and columns."""
    (rows, columns), size = PROBLEM.kernel, 46
    seen: list[object] = []
    parts = [text(left, top - 16, "equal numbers: equal bands", "small")]
    for kh in range(rows):
        for kw in range(columns):
            band = PROBLEM.bands(0)[kh], PROBLEM.bands(1)[kw]
            if band not in seen:
                seen.append(band)
            number = seen.index(band)
            x, y = left + size * kw, top + size * kh
            parts.append(f'<rect class="cell" x="{x}" y="{y}" width="{size - 4}" height="{size - 4}" rx="3"/>')
            parts.append(text(x + 17, y + 26, str(number + 1)))
    parts.append(text(left, top - 34, f"{rows * columns} taps, {len(seen)} sums of x"))
    words = (
        "the mean of the output is",
        "each sum times its taps'",
        "weights: the output",
        "itself is never made",
    )
    for number, line in enumerate(words):
        parts.append(text(left, top + size * rows + 22 + 17 * number, line, "small"))
    return parts


def main() -> None:
    """Write the picture."""
    top = 74
    parts = [part for kh in range(PROBLEM.kernel[0]) for part in panel(kh, 20 + PANEL * kh, top)]
    parts += taps(20 + PANEL * PROBLEM.kernel[0], top)
    bottom = top + CELL * PROBLEM.out_size(0) + 22
    parts.append(text(20, bottom, "input", "small"))
    words = "output of the convolution; a dashed line lands outside it and does not count"
    parts.append(text(140, bottom, words, "small"))
    width, height = 40 + PANEL * 3 + 160, bottom + 16
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    lines = [svg, f"<style>{STYLE}</style>", *parts, "</svg>", ""]
    (DOCS / "bands.svg").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
