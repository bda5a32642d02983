"""Charts of the report as SVG, which needs no library and is sharp in print."""

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from .scoring import PrecisionRecall


_INK, _FAINT, _BAR = "#1f2933", "#d9dee4", "#2f6f9f"
_FONT = 'font-family="system-ui, sans-serif" font-size="12"'


def precision_recall_chart(curves: PrecisionRecall) -> str:
    """Precision over recall, one curve for each OKS threshold; the legend has the AP at that threshold."""
    left, top, width, height = 48, 14, 420, 300
    parts = [
        f'<svg viewBox="0 0 {left + width + 140} {top + height + 46}" role="img" {_FONT} fill="{_INK}">',
        "<title>Precision over recall at ten OKS thresholds</title>",
    ]
    for tick in range(0, 11, 2):
        x, y, label = left + width * tick / 10, top + height * (1 - tick / 10), f"{tick / 10:.1f}"
        parts += [
            f'<path d="M{x:.1f} {top}V{top + height}M{left} {y:.1f}H{left + width}" stroke="{_FAINT}"/>',
            f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle">{label}</text>',
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>',
        ]
    parts += [
        f'<text x="{left + width / 2}" y="{top + height + 38}" text-anchor="middle">recall</text>',
        f'<text transform="translate(12 {top + height / 2}) rotate(-90)" text-anchor="middle">precision</text>',
        f'<text x="{left + width + 20}" y="{top + 10}" font-weight="600">OKS</text>',
        f'<text x="{left + width + 122}" y="{top + 10}" text-anchor="end" font-weight="600">AP</text>',
    ]
    count = len(curves.thresholds)
    for number, (threshold, precision) in enumerate(zip(curves.thresholds, curves.precision, strict=True)):
        color = _threshold_color(number / max(count - 1, 1))
        y = top + 32 + 22 * number
        reached = np.flatnonzero(np.nan_to_num(precision) > 0)
        if reached.size:
            last = reached[-1] + 1
            xs = left + width * curves.recall[:last]
            ys = top + height * (1 - precision[:last])
            points = " ".join(f"{px:.1f},{py:.1f}" for px, py in zip(xs, ys, strict=True))
            # a single point is drawn by the round ends of its stroke
            points = points if last > 1 else f"{points} {points}"
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2" stroke-linecap="round" '
                'stroke-linejoin="round"/>'
            )
        mean = "n/a" if np.isnan(precision).all() else f"{np.nanmean(precision):.3f}"
        parts += [
            f'<path d="M{left + width + 20} {y - 4}h18" stroke="{color}" stroke-width="3"/>',
            f'<text x="{left + width + 46}" y="{y}">{threshold:.2f}</text>',
            f'<text x="{left + width + 122}" y="{y}" text-anchor="end">{mean}</text>',
        ]
    return "\n".join([*parts, "</svg>"])


def line_chart(
    lines: Mapping[str, Sequence[tuple[float, float]]], title: str, x_label: str, highest: float | None = None
) -> str:
    """Lines over a common axis, with their names and last values beside them.

    Args:
        lines (`Mapping[str, Sequence[tuple[float, float]]]`): points (x, y) by name; x rises from 0 on.
        title (`str`): what the chart shows, for screen readers.
        x_label (`str`): what x is.
        highest (`float`, *optional*): the upper end of the y axis; by default a round number that no point is above.
    """
    left, top, width, height = 48, 14, 420, 220
    points = [point for line in lines.values() for point in line]
    furthest = max((x for x, _ in points), default=0) or 1
    highest = highest or _round_above(max((y for _, y in points), default=0))
    lowest = -_round_above(-min((y for _, y in points), default=0)) if any(y < 0 for _, y in points) else 0.0
    parts = [
        f'<svg viewBox="0 0 {left + width + 170} {top + height + 46}" role="img" {_FONT} fill="{_INK}">',
        f"<title>{escape(title)}</title>",
    ]
    for tick in range(5):
        x, y = left + width * tick / 4, top + height * (1 - tick / 4)
        parts += [
            f'<path d="M{left} {y:.1f}H{left + width}" stroke="{_FAINT}"/>',
            f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle">{furthest * tick / 4:g}</text>',
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{lowest + (highest - lowest) * tick / 4:g}</text>",
        ]
    parts.append(f'<text x="{left + width / 2}" y="{top + height + 38}" text-anchor="middle">{escape(x_label)}</text>')
    for number, (name, line) in enumerate(lines.items()):
        color, y = _threshold_color(number / max(len(lines) - 1, 1)), top + 14 + 22 * number
        # a single point is drawn by the round ends of its stroke
        path = " ".join(
            f"{left + width * px / furthest:.1f},{top + height * (highest - py) / (highest - lowest):.1f}"
            for px, py in (line if len(line) > 1 else [*line, *line])
        )
        last = f"{line[-1][1]:.3g}" if line else "n/a"
        parts += [
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2" stroke-linecap="round" '
            'stroke-linejoin="round"/>',
            f'<path d="M{left + width + 16} {y - 4}h18" stroke="{color}" stroke-width="3"/>',
            f'<text x="{left + width + 42}" y="{y}">{escape(name)} {last}</text>',
        ]
    return "\n".join([*parts, "</svg>"])


def chart_grid(charts: Sequence[tuple[str, str]], title: str) -> str:
    """Charts in two columns as one picture, an SVG file of its own.

    Args:
        charts (`Sequence[tuple[str, str]]`): a heading and an SVG element each.
        title (`str`): the heading of the picture.
    """
    width, height, top = 638, 306, 40
    rows = -(-len(charts) // 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * width} {top + rows * height}" role="img" {_FONT} '
        f'fill="{_INK}">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="16" y="24" font-weight="600">{escape(title)}</text>',
    ]
    for number, (heading, chart) in enumerate(charts):
        x, y = width * (number % 2), top + height * (number // 2)
        parts += [
            f'<text x="{x + 48}" y="{y + 16}" font-weight="600">{escape(heading)}</text>',
            chart.replace("<svg ", f'<svg x="{x}" y="{y + 22}" width="{width}" height="{height - 26}" ', 1),
        ]
    return "\n".join([*parts, "</svg>", ""])


def _round_above(value: float) -> float:
    """The least of 1, 2, 4, 6 and 8 times a power of ten that is not below `value`."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next((step * power for step in (1, 2, 4, 6, 8) if step * power >= value), 10 * power)


def bar_chart(rows: Sequence[tuple[str, float | None, str]], title: str) -> str:
    """Horizontal bars from 0 to 1.

    Args:
        rows (`Sequence[tuple[str, float | None, str]]`): label, value (`None`: there is none) and a note.
        title (`str`): what the chart shows, for screen readers.
    """
    left, width, step = 104, 250, 28
    parts = [
        f'<svg viewBox="0 0 {left + width + 206} {step * len(rows) + 6}" role="img" {_FONT} fill="{_INK}">',
        f"<title>{escape(title)}</title>",
    ]
    for number, (label, value, note) in enumerate(rows):
        y = 4 + step * number
        parts += [
            f'<text x="{left - 10}" y="{y + 15}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{left}" y="{y}" width="{width}" height="20" rx="3" fill="#edf0f3"/>',
            f'<rect x="{left}" y="{y}" width="{width * (value or 0):.1f}" height="20" rx="3" fill="{_BAR}"/>',
            f'<text x="{left + width + 10}" y="{y + 15}" font-weight="600">'
            f"{'n/a' if value is None else format(value, '.3f')}</text>",
            f'<text x="{left + width + 54}" y="{y + 15}" fill="#66727f">{escape(note)}</text>',
        ]
    return "\n".join([*parts, "</svg>"])


def _threshold_color(share: float) -> str:
    """Dark blue for the loosest threshold, over green to orange for the strictest; ever lighter in print."""
    stops = np.array([[33, 60, 120], [38, 130, 142], [106, 175, 80], [238, 150, 40]], dtype=np.float64)
    position = share * (len(stops) - 1)
    low = min(int(position), len(stops) - 2)
    red, green, blue = np.rint(stops[low] + (stops[low + 1] - stops[low]) * (position - low)).astype(int)
    return f"#{red:02x}{green:02x}{blue:02x}"
