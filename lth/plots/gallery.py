"""plots/index.html: all experiments on one page, each with its figure, small, and its verdict."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

from lth.analysis import labels, sentences
from lth.plots import draw
from lth.records import files
from lth.records.tables import Run

THUMBNAILS = 100  # experiments that have a figure on the page: drawing each takes most of a second
SIZE = (760, 400)  # pixels that a figure has at most


def write(groups: Sequence[Sequence[Run]], folder: Path) -> Path:
    """Write index.html into `folder` for groups of runs, each of one model, data set and settings, unless the page that
    is there is of the same numbers. Links lead to the reports that there are."""
    file = folder / "index.html"
    whole = hashlib.sha256("".join(draw.fingerprint(runs) for runs in groups).encode())
    reports = [runs[0].plots / "report.html" for runs in groups]
    links = [Path(os.path.relpath(page, folder)).as_posix() if page.is_file() else "" for page in reports]
    whole.update(" ".join(links).encode())
    mark = f"<!-- {whole.hexdigest()} -->"
    if file.is_file() and file.read_text(encoding="utf-8", errors="replace").rstrip().endswith(mark):
        return file
    import jinja2  # here, since a page that is up to date needs neither this nor matplotlib

    entries = [
        {
            "title": title,
            "settings": labels.settings(*runs),
            "sentences": sentences.of_runs(runs),
            "link": link,
            "image": _thumbnail(runs) if number < THUMBNAILS else "",
        }
        for number, (runs, title, link) in enumerate(zip(groups, labels.told_apart(groups), links, strict=True))
    ]
    template = (Path(__file__).with_name("gallery.html")).read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    files.write(file, f"{page.render(entries=entries)}\n{mark}\n".encode())
    return file


def _thumbnail(runs: Sequence[Run]) -> str:
    """The figure of accuracy and early stop as a small PNG in a data: address."""
    from PIL import Image

    from lth.plots import comparison

    drawn, small = runs[0].plots / "comparison.png", io.BytesIO()
    if drawn.is_file() and draw.up_to_date(runs, drawn.parent, "png") is not None:
        image = Image.open(drawn)
    else:
        figure, large = comparison.draw(runs), io.BytesIO()
        if figure is None:
            return ""
        figure.savefig(large, format="png")
        image = Image.open(large)
    image.thumbnail(SIZE)
    image.convert("RGB").quantize(64).save(small, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}"
