"""The saved comparisons as one picture: a bar per claim, how many times the peer's rate is ours.

    python benchmarks/_picture.py

writes results/ratios.svg; so does a script that saves its figures.
"""

from __future__ import annotations

import re
from math import ceil, floor, log2
from pathlib import Path

import msgspec

RESULTS = Path(__file__).parent / "results"
FILES = ("rpc_vs_peers.txt", "kv_vs_peers.txt", "consensus_vs_peers.txt")

ROW, BAR = 26, 14
LEFT, WIDTH, RIGHT = 170, 330, 260
"""Of names, bars and figures [px]."""

LINE = re.compile(
    r"(?P<claim>[a-z][\w.]+) +(?P<ours>\d+)/s +(?P<peer>\d+)/s +(?P<ratio>[\d.]+) "
    r".* (?P<name>[a-z][\w-]*)"
)


class Bar(msgspec.Struct, frozen=True):
    """One claim as saved."""

    claim: str
    ours: int
    peer: int
    ratio: float
    name: str


def bars() -> list[Bar]:
    """Return all saved claims, in order of files and lines."""
    found = []
    for file in FILES:
        for line in (RESULTS / file).read_text(encoding="utf-8").splitlines():
            match = LINE.fullmatch(line)
            if match is not None:
                name = match["name"].partition("-")[0]
                rates = int(match["ours"]), int(match["peer"])
                found.append(Bar(match["claim"], *rates, float(match["ratio"]), name))
    return found


def drawn(claims: list[Bar]) -> str:
    """Return the picture; its scale is logarithmic, so twice and half are equally far from 1."""
    low = floor(min(log2(bar.ratio) for bar in claims))
    high = ceil(max(log2(bar.ratio) for bar in claims))
    step = WIDTH / (high - low)
    height = ROW * (len(claims) + 2)
    one = LEFT - low * step
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + RIGHT}" '
        f'height="{height}" font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for power in range(low, high + 1):
        x = LEFT + (power - low) * step
        shade = "#444" if power == 0 else "#ddd"
        label = f"{2**power:g}×" if power >= 0 else f"1/{2**-power}"
        lines.append(f'<path d="M{x:.0f} {ROW}V{height - ROW}" stroke="{shade}"/>')
        lines.append(f'<text x="{x:.0f}" y="18" text-anchor="middle" fill="#444">{label}</text>')
    for number, bar in enumerate(claims):
        y = ROW * (number + 1) + (ROW - BAR) // 2
        end = one + log2(bar.ratio) * step
        begin, length = min(one, end), abs(end - one)
        colour = "#2a7f62" if bar.ratio >= 1.0 else "#c2702d"
        lines += [
            f'<text x="{LEFT - 10}" y="{y + 12}" text-anchor="end">{bar.claim}</text>',
            f'<rect x="{begin:.0f}" y="{y}" width="{length:.0f}" height="{BAR}" fill="{colour}"/>',
            f'<text x="{LEFT + WIDTH + 12}" y="{y + 12}" fill="#444">{bar.ratio:.2f}×  '
            f"{bar.ours:,}/s, {bar.name} {bar.peer:,}/s</text>",
        ]
    lines.append(
        f'<text x="{LEFT}" y="{height - 8}" fill="#444">operations per second, ours over the '
        "peer's in the same run; logarithmic</text>"
    )
    return "\n".join([*lines, "</svg>", ""])


def save() -> None:
    (RESULTS / "ratios.svg").write_text(drawn(bars()), encoding="utf-8")


if __name__ == "__main__":
    save()
