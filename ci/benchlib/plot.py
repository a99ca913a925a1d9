"""The ratios as bars in an SVG: how many times pcopy's time each tool took, on a logarithmic scale."""

import math
from html import escape

from .report import by_work
from .works import IDLE

WIDTH, LEFT, RIGHT = 860, 190, 60
BAR, GAP, TOOL_GAP, TITLE = 8, 1, 7, 34
COLOURS = ("#4477aa", "#66a5d4", "#cc6677", "#dd9a4f", "#228833", "#8a6bbf")
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
LEFT_OUT = ("fio-read", "fio-write", "pcopy-nothing")  # no whole copies
STYLE = """
  text { font: 12px sans-serif; fill: #222 } .title { font-weight: bold } .value { font-size: 9px }
  .note { fill: #666 } .back { fill: #fff } .tick { stroke: #ddd } .one { stroke: #222; stroke-width: 1.5 }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .note { fill: #999 } .back { fill: #16181c } .tick { stroke: #3a3d44 } .one { stroke: #ddd }
  }"""


class Drawing:
    def __init__(self, low, high):
        self.low, self.high = math.log(low), math.log(high)
        self.parts, self.y = [], 0

    def x(self, ratio):
        return LEFT + (math.log(ratio) - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT)

    def text(self, x, y, text, kind="", anchor="start"):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>')

    def bar(self, ratio, colour):
        """From 1, to the right where pcopy is faster."""
        a, b = sorted((self.x(1), self.x(ratio)))
        self.parts.append(f'<rect x="{a:.1f}" y="{self.y}" width="{max(b - a, 1):.1f}" height="{BAR}" fill="{colour}"/>')
        on_right = ratio >= 1
        self.text(b + 3 if on_right else a - 3, self.y + BAR - 0.5, f"{ratio:.2f}", "value", "start" if on_right else "end")
        self.y += BAR + GAP

    def ticks(self, top):
        for tick in TICKS:
            if self.low <= math.log(tick) <= self.high:
                x, kind = self.x(tick), "one" if tick == 1 else "tick"
                self.parts.insert(0, f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{self.y}" class="{kind}"/>')
                self.text(x, self.y + 14, f"{tick:g}", "note", "middle")
        self.y += 20


def ratios(summaries, note):
    """The SVG's text."""
    groups = {}
    for (work, place), group in by_work(summaries).items():
        shown = [one for one in group if one.get("ratio_to_pcopy") and is_shown(one)]
        if shown and work != IDLE:
            groups[f"{work} on {place}"] = shown
    values = [ratio for group in groups.values() for one in group for ratio in one["ratio_to_pcopy"].values()]
    configs = list(dict.fromkeys(c for group in groups.values() for one in group for c in one["ratio_to_pcopy"]))
    colours = {config: COLOURS[i % len(COLOURS)] for i, config in enumerate(configs)}
    drawing = Drawing(min([0.5, *values]) / 1.4, max([2, *values]) * 1.15)
    drawing.text(12, 22, "Time over pcopy's: right of 1 pcopy is faster", "title")
    drawing.text(12, 40, note, "note")
    for i, config in enumerate(configs):
        x = 12 + 60 * i
        drawing.parts.append(f'<rect x="{x}" y="50" width="12" height="{BAR + 2}" fill="{colours[config]}"/>')
        drawing.text(x + 17, 60, config)
    drawing.text(12 + 60 * len(configs), 60, "o2: OpenMPI, np 2; m4: MPICH, np 4", "note")
    drawing.y = 66
    for title, group in groups.items():
        draw_group(drawing, title, group, colours)
    height = drawing.y + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">\n'
        f'<style>{STYLE}</style>\n<rect class="back" width="100%" height="100%"/>\n' + "\n".join(drawing.parts) + "\n</svg>\n"
    )


def is_shown(one):
    """Not what the others are compared with."""
    return one["tool"] not in LEFT_OUT and set(one["ratio_to_pcopy"].values()) != {1.0}


def draw_group(drawing, title, group, colours):
    """All bars of a tool stand under each other, one for each configuration of pcopy."""
    tools = {}
    for one in group:
        tools.setdefault(one["tool"], {}).update(one["ratio_to_pcopy"])
    drawing.y += TITLE
    drawing.text(12, drawing.y - 12, title, "title")
    top = drawing.y - 4
    for tool, bars in tools.items():
        middle = drawing.y + len(bars) * (BAR + GAP) / 2 + 4
        drawing.text(LEFT - 12, middle, tool, anchor="end")
        for config, ratio in bars.items():
            drawing.bar(ratio, colours[config])
        drawing.y += TOOL_GAP
    drawing.ticks(top)
