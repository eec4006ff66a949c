"""Small line charts as SVG, which take their colours from the page."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 420, 230  # in the SVG's own units; a phone shows them at nearly this size
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 8, 26
MAX_POINTS = 240  # of one curve; more are averaged
MAX_TICKS = 5
WIDE = 3  # the least ratio of the largest to the smallest value on a logarithmic axis


class Curve(NamedTuple):
    """A curve over the training steps."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    """Finite, and as many as there are steps."""
    colour: int = 0
    """Which of the page's colours it has."""
    dash: int = 0
    """Which of the page's kinds of dashes it has; 0: a solid line."""


class Axis(NamedTuple):
    """The values that an axis shows, and where they lie on it."""

    low: float
    high: float
    ticks: Sequence[float]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where `value` lies, from 0 to 1."""
        low, high = (math.log(end) if self.is_log else end for end in (self.low, self.high))
        at = math.log(value) if self.is_log else value
        return (at - low) / (high - low)


def draw_chart(title: str, curves: Sequence[Curve], *, is_log: bool = False) -> str:
    """Draw `curves` over the steps, on a logarithmic axis if asked for and the values suit it.

    Returns a figure with its title and a legend that gives the last and the lowest value of each.
    """
    every = [value for curve in curves for value in curve.values]
    steps = [step for curve in curves for step in curve.steps]
    x_axis = make_axis(0, max(steps))
    can_log = is_log and 0 < WIDE * min(every) < max(every)
    y_axis = make_log_axis(min(every), max(every)) if can_log else make_axis(min(every), max(every))
    lines = [*_draw_grid(x_axis, y_axis), *(_draw_curve(c, x_axis, y_axis) for c in curves)]
    name = html.escape(title)
    return (
        f'<figure class="chart"><figcaption>{name}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name} over the steps">'
        f"{''.join(lines)}</svg><ul>{''.join(map(_describe, curves))}</ul></figure>"
    )


def make_axis(low: float, high: float) -> Axis:
    """Make a linear axis from `low`, or 0 if that is near, to `high`, with round ticks."""
    low = 0 if 0 < low < high / 2 else low
    if low == high:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    rough = (high - low) / (MAX_TICKS - 1)
    power = 10 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough)
    ticks = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return Axis(low, high, ticks)


def make_log_axis(low: float, high: float) -> Axis:
    """Make a logarithmic axis from `low` to `high`, which are positive and at least WIDE apart."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        inside = [tick for tick in found if low <= tick <= high]
        ticks = inside if len(inside) <= MAX_TICKS or not ticks else ticks
    return Axis(low, high, ticks[:: -(-len(ticks) // MAX_TICKS)], is_log=True)


def thin_out(
    steps: Sequence[int], values: Sequence[float]
) -> tuple[Sequence[float], Sequence[float]]:
    """Average neighbours, so that at most MAX_POINTS points are left."""
    size = -(-len(steps) // MAX_POINTS)
    if size <= 1:
        return steps, values
    groups = [slice(i, i + size) for i in range(0, len(steps), size)]
    return [_average(steps[group]) for group in groups], [_average(values[g]) for g in groups]


def smooth(curve: Curve) -> Curve:
    """Average each value with those before it, over a twentieth of the curve."""
    window = max(1, len(curve.values) // 20)
    starts = [max(0, i + 1 - window) for i in range(len(curve.values))]
    values = [_average(curve.values[start : i + 1]) for i, start in enumerate(starts)]
    return curve._replace(values=values)


def format_number(value: float) -> str:
    """Write `value` in a few characters, such as 250k, 0.031 or 2e-05."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * size or (abs(value) >= size and value % 100 == 0):
            return f"{value / size:.4g}{unit}"
    return f"{value:.3g}"


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _place(x: float, y: float) -> tuple[float, float]:
    """Where a point of the plot lies on the SVG; `x` and `y` go from 0 to 1."""
    return (
        LEFT + x * (WIDTH - LEFT - RIGHT),
        HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM),
    )


def _draw_grid(x_axis: Axis, y_axis: Axis) -> Iterable[str]:
    left, bottom = _place(0, 0)
    right, _ = _place(1, 1)
    for tick in y_axis.ticks:
        _, y = _place(0, y_axis.place(tick))
        yield f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>'
        yield _write_text(left - 6, y + 4, "end", tick)
    for tick in x_axis.ticks:
        x, _ = _place(x_axis.place(tick), 0)
        anchor = "end" if x > right - 12 else "middle"
        yield _write_text(x, bottom + 18, anchor, tick)
    yield f'<path class="axis" d="M{left:.1f} {bottom:.1f}H{right:.1f}"/>'


def _write_text(x: float, y: float, anchor: str, number: float) -> str:
    text = format_number(number)
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _draw_curve(curve: Curve, x_axis: Axis, y_axis: Axis) -> str:
    """Draw the curve, faint, and its running mean; without the latter if it has few points."""
    looks = f"c{curve.colour} d{curve.dash}"
    if len(curve.values) < 40:
        dots = "" if len(curve.values) > 12 else _draw_dots(curve, x_axis, y_axis)
        return _draw_line(curve, x_axis, y_axis, looks) + dots
    faint = _draw_line(curve, x_axis, y_axis, f"{looks} faint")
    return faint + _draw_line(smooth(curve), x_axis, y_axis, looks)


def _draw_line(curve: Curve, x_axis: Axis, y_axis: Axis, looks: str) -> str:
    points = [
        "{:.1f} {:.1f}".format(*_place(x_axis.place(step), y_axis.place(value)))
        for step, value in zip(*thin_out(curve.steps, curve.values), strict=True)
    ]
    return f'<path class="curve {looks}" d="M{"L".join(points)}"/>'


def _draw_dots(curve: Curve, x_axis: Axis, y_axis: Axis) -> str:
    places = [
        _place(x_axis.place(step), y_axis.place(value))
        for step, value in zip(curve.steps, curve.values, strict=True)
    ]
    return "".join(
        f'<circle class="c{curve.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places
    )


def _describe(curve: Curve) -> str:
    """The entry of a curve in the legend."""
    last, lowest = curve.values[-1], min(curve.values)
    more = "" if lowest == last else f", lowest {lowest:.4g}"
    line = f'<path class="curve c{curve.colour} d{curve.dash}" d="M0 4H24"/>'
    key = f'<svg class="key" viewBox="0 0 24 8">{line}</svg>'
    return f"<li>{key}{html.escape(curve.name)}: {last:.4g}{more}</li>"
