"""The report of one or several runs, as one HTML page that loads nothing else."""

import html
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jax_ddpm.config.presets import PRESETS
from jax_ddpm.errors import escape, flag_name, show_name
from jax_ddpm.jobs.quality_report import round_to
from jax_ddpm.jobs.report.content import Content
from jax_ddpm.jobs.report.curves import render_curves
from jax_ddpm.jobs.report.ending import format_duration, list_figures, list_next
from jax_ddpm.jobs.report.sentences import describe_settings
from jax_ddpm.runs.changes import list_changes
from jax_ddpm.runs.folder import to_dict

STYLE, SCRIPT = (Path(__file__).with_name(name) for name in ("page.css", "page.js"))
SECTIONS = ("data", "model", "diffusion", "train", "sample")


def render_page(contents: Sequence[Content]) -> str:
    """Render the page of one run, or of several side by side."""
    title = " and ".join(name_run(content) for content in contents)
    parts: dict[str, Callable[[Content], str]] = {
        "Samples": _render_grids,
        "From noise to images": _render_strip,
        "Data": _render_data,
        "Configuration": _render_settings,
        "Evaluation": _render_evaluation,
        "Environment": _render_environment,
        "Next": _render_next,
    }
    sections = {"Curves": f"<h2>Curves</h2>{render_curves(contents)}"}
    if len(contents) > 1:
        sections["Differences"] = f"<h2>Differences</h2>{_render_differences(contents)}"
    for name, render in parts.items():
        if cards := _render_cards(render, contents):
            sections[name] = f"<h2>{name}</h2>{cards}"
    body = [_render_head(title, contents, list(sections))]
    body += [f'<section id="{_anchor(name)}">{text}</section>' for name, text in sections.items()]
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{STYLE.read_text()}</style>\n<main>\n"
        + "\n".join(body)
        + f"\n</main>\n<script>\n{SCRIPT.read_text()}</script>\n</html>\n"
    )


def name_run(content: Content) -> str:
    """The name of a run as HTML."""
    return _show(content.run.folder.resolve().name)


def _show(text: object) -> str:
    """Text that may come from outside, as HTML on one line."""
    return html.escape(show_name(text))


def _render_head(title: str, contents: Sequence[Content], names: Sequence[str]) -> str:
    cards = []
    for content in contents:
        figures = "".join(
            f"<div><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>"
            for name, value in list_figures(content.rows, content.calls)
        )
        total = content.run.config.train.num_steps
        if content.step < total:
            part = f"{content.step / total:.0%}"
            figures += f"<div><b>{part}</b><span>of {total:,} steps</span></div>"
        missing = "".join(f'<p class="note">{html.escape(m)}</p>' for m in content.missing)
        cards.append(f'<div class="figures">{figures}</div>{missing}')
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in names)
    figures = _set_side_by_side(contents, cards)
    return f"<header><h1>{title}</h1><nav>{links}</nav>{figures}</header>"


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


def _render_cards(render: Callable[[Content], str], contents: Sequence[Content]) -> str:
    """Render a part of every run; "" if none has it."""
    cards = [render(content) for content in contents]
    if not any(cards):
        return ""
    return _set_side_by_side(
        contents, [card or '<p class="note">Nothing here yet.</p>' for card in cards]
    )


def _set_side_by_side(contents: Sequence[Content], cards: Sequence[str]) -> str:
    """Set the parts of several runs side by side, under their names."""
    if len(contents) == 1:
        return cards[0]
    columns = (
        f'<div><h3 class="run c{i % 6}">{name_run(content)}</h3>{card}</div>'
        for i, (content, card) in enumerate(zip(contents, cards, strict=True))
    )
    return f'<div class="columns">{"".join(columns)}</div>'


def _render_grids(content: Content) -> str:
    """The sample grids, of which a slider shows one; without scripts, the last."""
    grids = content.grids
    if not grids:
        return ""
    last = len(grids) - 1
    pictures = "".join(
        f'<img src="{grid.uri}" alt="samples after step {grid.step}" data-step="{grid.step:,}"'
        f"{'' if i == last else ' hidden'}>"
        for i, grid in enumerate(grids)
    )
    slider = (
        f'<label>after step <output>{grids[-1].step:,}</output><input type="range" min="0" '
        f'max="{last}" value="{last}" aria-label="training step"></label>'
    )
    return f'<figure class="slides">{pictures}{slider if last else ""}</figure>'


def _render_strip(content: Content) -> str:
    text = "Each row is an image, from pure noise on the left to the sample on the right."
    return _render_picture(content.strip, "images emerging from noise", text)


def _render_data(content: Content) -> str:
    text = "The first images of the first batch, cropped and resized as they go to the network"
    flip = ", which sees half of them mirrored." if content.run.config.data.random_flip else "."
    return _render_picture(content.data, "training images", text + flip)


def _render_picture(uri: str | None, name: str, text: str) -> str:
    if uri is None:
        return ""
    return f'<figure><img src="{uri}" alt="{name}"><figcaption>{text}</figcaption></figure>'


def _render_settings(content: Content) -> str:
    facts = describe_settings(content.run, content.environment.get("parameters", ""))
    sentences = "".join(f"<dt>{name}<dd>{html.escape(escape(text))}" for name, text in facts)
    return f"<dl>{sentences}</dl>{_render_every_setting(content)}"


def _render_every_setting(content: Content) -> str:
    """Every setting as its flag, folded; those that differ from the preset stand out."""
    config, preset = content.run.config, PRESETS.get(content.run.config.preset)
    rows, count = [], 0
    for section in SECTIONS:
        settings, usual = getattr(config, section), getattr(preset, section, None)
        for field in fields(settings):
            value = getattr(settings, field.name)
            differs = preset is not None and value != getattr(usual, field.name, value)
            count += differs
            mark = ' class="differs"' if differs else ""
            flag = flag_name(field.name, f"--{section}.")
            rows.append(f"<tr{mark}><td>{flag}<td>{_show(_format(value))}")
    differ = f", {count} unlike the preset {_show(config.preset)}" if preset else ""
    table = f'<div class="wide"><table>{"".join(rows)}</table></div>'
    return f"<details><summary>Every setting{differ}</summary>{table}</details>"


def _format(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _render_differences(contents: Sequence[Content]) -> str:
    """A table of the settings in which the runs differ."""
    first, *others = (to_dict(content.run.config) for content in contents)
    names = {change.name: change.old for other in others for change in list_changes(first, other)}
    rows = []
    for name, value in names.items():
        changed = ({c.name: c.new for c in list_changes(first, other)} for other in others)
        values = [value, *(changes.get(name, value) for changes in changed)]
        cells = "".join(f"<td>{_show(_format(_to_tuple(value)))}" for value in values)
        rows.append(f"<tr><td>{_show(flag_name(name))}{cells}")
    head = "".join(f"<th>{name_run(content)}" for content in contents)
    table = f'<div class="wide"><table><tr><th>{head}{"".join(rows)}</table></div>'
    return table if rows else "<p>All settings are equal.</p>"


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _render_evaluation(content: Content) -> str:
    quality, likelihood, parts = content.quality, content.likelihood, []
    if quality is not None:
        how = f"{quality['sampler']} in {quality['steps']} steps"
        against = f"against {quality.get('reference', 'the data')}"
        about = f"{quality['images']} images, {how}, {against}."
        parts.append(f"<p>{_show(about)}</p>")
        real = [quality["baseline"]] if "baseline" in quality else []
        parts += map(_render_result, [*quality["results"], *real])
    if content.neighbours is not None:
        text = "Drawn images, each with the training images nearest to it."
        parts.append(_render_picture(content.neighbours, "nearest training images", text))
    if likelihood is not None:
        bits = f"{likelihood['bits_per_dimension']:.4g}"
        parts.append(f"<p>Likelihood: {bits} bits per dimension.</p>")
    return "".join(parts)


def _render_result(result: Any) -> str:
    rows = []
    for figure in result["figures"].values():
        value, margin = figure["value"], figure.get("margin")
        known = isinstance(margin, int | float)
        more = f" ± {round_to(margin, margin)}" if known else ""
        number = round_to(value, margin if known else None)
        rows.append(f"<tr><td>{_show(figure['title'])}<td>{number}{more}")
    title = _show(result.get("parameters", ""))
    return f'<table class="small"><tr><th colspan="2">{title}{"".join(rows)}</table>'


def _render_environment(content: Content) -> str:
    if not content.calls:
        return ""
    facts = "".join(
        f"<dt>{_show(name)}<dd>{_show(value)}" for name, value in content.environment.items()
    )
    rows = "".join(
        f"<tr><td>{_show(call.began)}<td>{call.first_step:,} to {call.last_step:,}"
        f"<td>{format_duration(call.seconds)}"
        for call in content.calls
    )
    table = f'<table class="small"><tr><th>began<th>steps<th>took{rows}</table>'
    return f"<dl>{facts}</dl>{table}"


def _render_next(content: Content) -> str:
    rows = []
    for each in list_next(content.run, content.step):
        line = html.escape(escape(f"jax-ddpm {shlex.join(each.words)}"))
        rows.append(f"<p>To {each.why}:</p><pre>{line}</pre>")
    return "".join(rows)
