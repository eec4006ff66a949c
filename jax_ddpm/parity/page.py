"""The report as one HTML page that loads nothing else."""

import html
import math
from itertools import groupby
from pathlib import Path
from typing import Any

from jax_ddpm.parity.figures import COLOURS, draw_curves, draw_overview, place_on_axis

Record = dict[str, Any]
STYLE = Path(__file__).with_name("page.css")
# The ends of the rulers, in powers of ten.
RULERS = {"float64": (-18, -8), "float32": (-10, 0)}
assert RULERS.keys() == COLOURS.keys()
# Parts with more lines than this are folded at first.
FOLDED = 60
READING = """<details class="reading"><summary>How to read this page</summary>
<p>Each quantity is computed twice, by jax_ddpm and by PyTorch code, from the same numbers.
<b>float64</b> shows that the algorithm is the same: a different formula, constant or order of
layers would change far more than the 16th digit. <b>float32</b>, the precision in which networks
are used, shows only the effect of rounding.</p>
<p>A difference is the largest over all entries, <b>relative to the largest entry</b>. On each ruler
the dot is the difference and the tick is the tolerance; the marks are factors of ten, and a hollow
dot at the left end means bit-identical. <b>Absolute</b> and <b>ULP</b> refer to float32. One ULP
(unit in the last place) is the spacing of floating-point numbers at the entry itself; only entries
of at least a tenth of the largest count. <b>PyTorch's rounding</b> is the difference between
PyTorch's own float32 and float64 results, for comparison with the difference between the
frameworks.</p></details>"""
COLUMNS = ("what", "num", "rule", "tol", "num", "rule", "tol", "num", "num", "num", "mark")
TABLE_HEAD = (
    f'<div class="wide"><table><colgroup>{"".join(f"<col class={c}>" for c in COLUMNS)}</colgroup>'
    '\n<tr><th>quantity<th colspan="3">float64<th colspan="3">float32<th>absolute<th>ULP'
    "<th>PyTorch's rounding<th></tr>"
)


def render_page(record: Record) -> str:
    """Render the page of a report from the content of its JSON file."""
    quantities, parts = record["quantities"], record["parts"]
    overview = draw_overview(parts, quantities)
    body = [_render_head(record), READING, _render_figure(overview, "Every quantity at once.")]
    for part in parts:
        body.append(_render_part(part, [q for q in quantities if q["part"] == part["name"]]))
    body += [f"<p>{html.escape(reason)}</p>" for reason in record["left_out"].values()]
    body.append(_render_environment(record))
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Parity: {html.escape(record['summary']['sentence'])}</title>\n"
        f"<style>\n{STYLE.read_text()}</style>\n<main>\n" + "\n".join(body) + "\n</main>\n</html>\n"
    )


def _render_head(record: Record) -> str:
    state = "ok" if record["ok"] else "bad"
    summary, environment = record["summary"], record["environment"]
    versions = {"JAX": "jax", "PyTorch": "torch", "NumPy": "numpy"}
    facts = [
        *(f"{summary['identical'][dtype]} bit-identical in {dtype}" for dtype in RULERS),
        *(f"{label} {environment[name]}" for label, name in versions.items()),
        f"{environment['processor']}, {environment['machine']}".strip(", "),
    ]
    links = "".join(
        f'<a href="#{p["name"]}">{html.escape(p["title"])}</a>' for p in record["parts"]
    )
    return (
        f"<header><h1>Parity of JAX and PyTorch</h1>"
        f"<p>What {html.escape(record['subject'])} computes, quantity by quantity.</p>"
        f'<div class="verdict {state}"><strong>{html.escape(summary["sentence"])}</strong>'
        f"<span>{' · '.join(html.escape(fact) for fact in facts)}</span></div>"
        f"<nav>{links}</nav></header>"
    )


def _render_figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _render_part(part: Record, quantities: list[Record]) -> str:
    pieces = [
        f'<section id="{part["name"]}"><h2>{html.escape(part["title"])}'
        f"<small>jax_ddpm against {html.escape(part['against'])}</small></h2>"
        f"<p>{html.escape(part['text'])}</p>"
    ]
    if along := [q for q in quantities if q["along"]]:
        caption = f"The difference at each {along[0]['along']}. Dashed: tolerances."
        pieces.append(_render_figure(draw_curves(along), caption))
    for group, members in groupby(quantities, key=lambda q: q["group"]):
        pieces.append(_render_group(group, list(members), len(quantities) <= FOLDED))
    return "\n".join([*pieces, "</section>"])


def _render_group(name: str, members: list[Record], unfolded: bool) -> str:
    failed = sum(not q["ok"] for q in members)
    state = f'<b class="bad">{failed} out of tolerance</b>' if failed else "within tolerance"
    worst = ", ".join(_describe_worst(members, dtype) for dtype in RULERS)
    rows = "\n".join(map(_render_row, members))
    return (
        f"<details{' open' if unfolded or failed else ''}><summary>{html.escape(name)}"
        f"<span>{len(members)} {'quantity' if len(members) == 1 else 'quantities'}, {state}; "
        f"largest: {worst}</span></summary>\n{TABLE_HEAD}\n{rows}\n</table></div></details>"
    )


def _render_row(quantity: Record) -> str:
    cells = [f'<td class="what">{html.escape(quantity["what"])}']
    for dtype in RULERS:
        measure = quantity[dtype]
        cells.append(f"<td>{_format_gap(measure['relative'])}<td>{_render_ruler(measure, dtype)}")
        cells.append(f'<td class="tol">≤ {measure["tolerance"]:.0e}')
    single = quantity["float32"]
    cells.append(f"<td>{_format(single['absolute'])}<td>{_format(single['ulp'], '.1f')}")
    cells.append(f"<td>{_format(single['rounding'])}")
    mark = '<td class="ok">✓' if quantity["ok"] else '<td class="bad">✗'
    return f"<tr{'' if quantity['ok'] else ' class=bad'}>{''.join(cells)}{mark}</tr>"


def _describe_worst(members: list[Record], dtype: str) -> str:
    """Describe the largest difference in a group in one precision."""
    gaps = [q[dtype]["relative"] for q in members]
    return f"{_format_gap(None if None in gaps else max(gaps))} in {dtype}"


def _format_gap(gap: float | None) -> str:
    return "not finite" if gap is None else _format(gap)


def _format(number: float | None, form: str = ".1e") -> str:
    if number is None:
        return ""
    return "0" if number == 0 else f"{number:{form}}"


def _render_ruler(measure: Record, dtype: str) -> str:
    """Render a logarithmic ruler with the difference as a dot and the tolerance as a tick."""
    gap, tolerance = measure["relative"], measure["tolerance"]
    kind = "bad" if not measure["ok"] else "zero" if gap == 0 else dtype
    used = "" if gap is None else f"{gap / tolerance:.2g} of the tolerance"
    tick, dot = _find_percent(tolerance, dtype), _find_percent(place_on_axis(gap), dtype)
    return (
        f'<span class="ruler" title="{used}"><i style="left:{tick:.1f}%"></i>'
        f'<b class="{kind}" style="left:{dot:.1f}%"></b></span>'
    )


def _find_percent(value: float, dtype: str) -> float:
    """Where `value` lies on the ruler of `dtype`, in percent of its length."""
    low, high = RULERS[dtype]
    return min(max((math.log10(value) - low) / (high - low), 0), 1) * 100


def _render_environment(record: Record) -> str:
    rows = {**record["environment"], "seed": record["seed"], "created": record["created"]}
    cells = "".join(
        f"<dt>{html.escape(name)}<dd>{html.escape(str(value))}" for name, value in rows.items()
    )
    return f'<section id="environment"><h2>Made with</h2><dl>{cells}</dl></section>'
