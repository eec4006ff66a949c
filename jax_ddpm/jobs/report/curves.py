"""The curves of a report: what was logged over the steps, of one run or of several."""

from collections.abc import Sequence
from typing import NamedTuple

from jax_ddpm.errors import show_name
from jax_ddpm.jobs.report.charts import Curve, draw_chart
from jax_ddpm.jobs.report.content import Content
from jax_ddpm.jobs.train_records import find_curve


class Panel(NamedTuple):
    """A chart: its title, and the fields of a row that it shows, by their names in the legend."""

    title: str
    fields: dict[str, str]
    is_log: bool = False


NUM_COLOURS = 6
PANELS = (
    Panel("Loss", {"training": "loss"}, is_log=True),
    Panel(
        "Validation loss",
        {
            "held-out images": "validation_loss",
            "training images, same noise": "trained_loss",
            "held-out images, raw weights": "validation_loss_raw",
        },
        is_log=True,
    ),
    Panel("Terms of the loss", {"mean squared error": "mse", "bound": "vb"}),
    Panel("Distance", {"Frechet distance": "frechet"}, is_log=True),
    Panel("Kernel distance", {"kernel distance": "kernel"}),
    Panel("Score", {"score": "score"}),
    Panel("Gradient norm", {"gradient norm": "grad_norm"}, is_log=True),
    Panel("Learning rate", {"learning rate": "learning_rate"}),
    Panel("Skipped steps", {"skipped": "skipped"}),
)


def render_curves(contents: Sequence[Content]) -> str:
    """Draw every panel that has points; several runs share each panel."""
    charts = [draw_panel(panel, contents) for panel in PANELS]
    found = "".join(chart for chart in charts if chart)
    if not found:
        return "<p>No step is logged yet.</p>"
    none = all(row.skipped == 0 for content in contents for row in content.rows)
    note = '<p class="note">No step was skipped.</p>' if none else ""
    return f'<div class="charts">{found}</div>{note}'


def draw_panel(panel: Panel, contents: Sequence[Content]) -> str:
    """Draw a panel; "" if nothing of it was measured."""
    curves = list[Curve]()
    several = len(contents) > 1
    for i, content in enumerate(contents):
        for j, (name, field) in enumerate(panel.fields.items()):
            steps, values = find_curve(content.rows, field)
            if not steps or (field == "skipped" and not any(values)):
                continue
            label = f"{show_name(content.run.folder.resolve().name)}, {name}" if several else name
            looks = (i % NUM_COLOURS, j) if several else (j, 0)
            curves.append(Curve(label, steps, values, *looks))
    return draw_chart(panel.title, curves, is_log=panel.is_log) if curves else ""
