"""The loss curve of a run as a picture, from its metrics.jsonl."""

import io
from pathlib import Path

from mova_engine.train.metrics import read_metrics

PICTURE = "loss_curve.png"
_COLOURS = {"video": "tab:blue", "audio": "tab:orange"}


def loss_curve(metrics: Path) -> bytes | None:
    """The losses over the steps as a PNG: training as lines, held-out as dots. None without rows."""
    # Imported here: matplotlib takes a second. Figure, not pyplot: no display and no global state are involved.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(metrics) if metrics.exists() else []
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    drawn = False
    for modality, colour in _COLOURS.items():
        for name, label, style in (
            (f"loss/{modality}", modality, "-"),
            (f"heldout/{modality}", f"{modality}, held out", "o"),
        ):
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            if points:
                # A line through one point would not be seen.
                looks = {"color": colour, "label": label, "markersize": 4, "linewidth": 1.2}
                axes.plot(*zip(*points, strict=True), "o" if len(points) == 1 else style, **looks)
                drawn = True
    if not drawn:
        return None
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()
