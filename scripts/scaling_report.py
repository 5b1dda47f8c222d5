"""Tables and fits of what `measure_scaling.py` measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparse_detr.analysis.fits import Fit, fit_line, fit_sum
from sparse_detr.analysis.tables import markdown_table

TITLES = {
    "transformers": "Deformable DETR of `transformers`",
    "dense": "Deformable DETR",
    "topk": "Deformable DETR, two-stage",
    "sparse": "Sparse DETR",
    "dino5": "DINO, five levels",
    "focus5": "Focus-DETR, five levels",
    "sparse_dino5": "Sparse DETR on DINO, five levels",
}
TWINS = {"sparse": "topk", "focus5": "dino5", "sparse_dino5": "dino5"}
"""Model -> the dense one that it is compared with."""
FORMS = {"plain": "plain", "fp32": "form"}
TRAINING = "training"
"""A form of which only the memory is measured."""
LIMITS_GIB, TRAINING_LIMITS_GIB = (0.5, 1, 2, 4), (8, 16, 24, 80)
BATCH_SIZE = 800, 1333
"""Height and width of the images of the largest batches."""
MIN_POINTS = 3  # of a line that is reported
STEP = 8  # pixels of the side of an image that a fit gives


@dataclass(frozen=True)
class Cell:
    """What is measured together: a model in one form, on batches of one size.

    Args:
        model: a key of `TITLES`.
        form: a key of `FORMS`, or `TRAINING`.
        height, width: of the images.
        batch: number of images.
        percent: share of the tokens to refine; None for the model's own.
    """

    model: str
    form: str
    height: int
    width: int
    batch: int = 1
    percent: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batch, height and width."""
        return self.batch, self.height, self.width

    @property
    def size(self) -> str:
        """Height and width in words."""
        return f"{self.height}x{self.width}"

    @property
    def pixels(self) -> int:
        """Of the whole batch."""
        return self.batch * self.height * self.width

    @property
    def megapixels(self) -> float:
        """Of the whole batch."""
        return self.pixels / 1e6

    @property
    def name(self) -> str:
        """All of it in words."""
        return f"{self.title}, {self.form}, {self.batch} of {self.size}"

    @property
    def keep_ratio(self) -> float | None:
        """Share of the tokens to refine."""
        return None if self.percent is None else self.percent / 100

    @property
    def title(self) -> str:
        """The model in words."""
        return TITLES[self.model] + ("" if self.percent is None else f", {self.percent} %")

    def scaled(self, scale: float) -> Cell:
        """Return the cell with smaller images."""
        return Cell(
            self.model, self.form, round(self.height * scale), round(self.width * scale), self.batch, self.percent
        )


@dataclass
class Measured:
    """The numbers of a cell.

    Args:
        cell: its fields.
        ms: part, or `whole` -> milliseconds of every round.
        tokens: of the batch.
        kept: tokens of the batch that an encoder layer refines on average.
        peak_mib: peak memory of a call.
    """

    cell: dict[str, Any]
    ms: dict[str, list[float]] = field(default_factory=dict)
    tokens: float | None = None
    kept: float | None = None
    peak_mib: float | None = None

    @property
    def key(self) -> Cell:
        """The cell."""
        return Cell(**self.cell)

    def times(self, part: str) -> list[float]:
        """Return the milliseconds of a part in every round."""
        return self.ms.get(part, [])

    def median(self, part: str = "whole") -> float:
        """Return the median milliseconds of a part."""
        return statistics.median(self.ms[part])


def choose(measured: Iterable[Measured], **fields: Any) -> list[Measured]:
    """Return the cells whose fields have these values."""
    return [found for found in measured if all(found.cell[name] == value for name, value in fields.items())]


def timed(measured: Iterable[Measured], **fields: Any) -> list[Measured]:
    """Return the cells with times whose fields have these values."""
    return [found for found in choose(measured, **fields) if found.times("whole")]


def twin_of(found: Measured, measured: Iterable[Measured]) -> Measured | None:
    """Return the dense twin on the same batch and in the same form; None if it is missing."""
    cell = found.cell | {"model": TWINS.get(found.cell["model"], ""), "percent": None}
    return next(iter(choose(measured, **cell)), None)


def gain(found: Measured | None, measured: Iterable[Measured], part: str = "whole") -> str:
    """Return how many times faster a cell is than its twin; "" if one is missing."""
    twin = None if found is None else twin_of(found, measured)
    if found is None or twin is None or not (found.times(part) and twin.times(part)):
        return ""
    return f"{twin.median(part) / found.median(part):.2f}x"


def milliseconds(found: Measured | None, part: str = "whole") -> str:
    """Return the median of a part in words; "" if it is missing."""
    return "" if found is None or not found.times(part) else f"{found.median(part):.0f}"


def mebibytes(found: Measured | None) -> str:
    """Return the peak memory in words; "" if it is missing."""
    return "" if found is None or found.peak_mib is None else f"{found.peak_mib:.0f}"


def by_form(measured: Iterable[Measured], **fields: Any) -> tuple[Measured | None, Measured | None]:
    """Return a cell as it is and in inference form."""
    found = {one.cell["form"]: one for one in choose(measured, **fields)}
    return found.get("plain"), found.get("fp32")


def unique(values: Iterable[Any]) -> list[Any]:
    """Return the different values in order."""
    return list(dict.fromkeys(values))


def largest_share_size(measured: Sequence[Measured]) -> str:
    """Return the size at which the most shares of Sparse DETR were timed; "" if there is none."""
    sizes = [found.key.size for found in timed(measured, model="sparse", batch=1, form="fp32")]
    return max(sizes, key=sizes.count, default="")


def share_points(measured: Sequence[Measured], form: str) -> list[Measured]:
    """Return the cells of Sparse DETR at that size, by their share."""
    size = largest_share_size(measured)
    points = [found for found in timed(measured, model="sparse", batch=1, form=form) if found.key.size == size]
    return sorted(points, key=lambda found: found.cell["percent"])


# curves


def curves(measured: Sequence[Measured], facts: dict[str, str]) -> str:
    """Return the tables of the curves, and the fits."""
    tables = [sides(measured), batches(measured), shares(measured), fits(measured)]
    return "\n\n".join([*filter(None, tables), protocol(measured, facts)])


def sides(measured: Sequence[Measured]) -> str:
    """Return the table of time against image side."""
    table = _growth(timed(measured, batch=1), "image", lambda found: found.key.size, lambda found: 1)
    return f"One image; *dense* is the two-stage Deformable DETR, *10 %* Sparse DETR:\n\n{table}" if table else ""


def batches(measured: Sequence[Measured]) -> str:
    """Return the table of time against batch."""
    batched = [found for found in timed(measured) if found.key.batch > 1]
    sizes = {found.key.size for found in batched}
    points = [found for found in timed(measured) if found.key.size in sizes]
    table = _growth(points, "batch", lambda found: str(found.key.batch), lambda found: found.key.batch)
    return f"Milliseconds an image, in batches of {', '.join(sorted(sizes))}:\n\n{table}" if batched else ""


def _growth(
    points: Sequence[Measured], name: str, label: Callable[[Measured], str], images: Callable[[Measured], int]
) -> str:
    """Return a table with one row a label: the dense twin and Sparse DETR with 10 %, both forms."""
    rows = []
    for value in unique(label(found) for found in sorted(points, key=lambda found: found.key.megapixels)):
        here = [found for found in points if label(found) == value]
        dense, sparse = by_form(here, model="topk"), by_form(here, model="sparse", percent=10)
        if not any((*dense, *sparse)):
            continue
        times = ["" if one is None else f"{one.median() / images(one):.0f}" for one in (*dense, *sparse)]
        rows.append([value, *times, gain(sparse[1], here), gain(sparse[1], here, "encoder")])
    head = ["dense, plain, ms", "form, ms", "10 %, plain, ms", "form, ms", "dense form / 10 % form", "its encoder"]
    return markdown_table([name, *head], rows) if rows else ""


def shares(measured: Sequence[Measured]) -> str:
    """Return the table of time against the share of the tokens."""
    size, rows = largest_share_size(measured), []
    for found in share_points(measured, "fp32"):
        plain, _ = by_form(measured, **{**found.cell, "form": "plain"})
        rows.append(
            [
                f"{found.cell['percent']} %",
                f"{found.kept:.0f}",
                milliseconds(plain),
                milliseconds(found),
                milliseconds(found, "encoder"),
                gain(found, measured),
                gain(found, measured, "encoder"),
            ]
        )
    head = ["kept", "tokens", "plain, ms", "form, ms", "its encoder, ms", "dense form / it", "its encoder"]
    return f"Sparse DETR, one image of {size}:\n\n{markdown_table(head, rows)}" if rows else ""


def encoder_fit(measured: Sequence[Measured], form: str) -> Fit | None:
    """Return the fit of the encoder's time to a constant and the kept tokens of one image."""
    points = share_points(measured, form)
    if len(points) < MIN_POINTS:
        return None
    return fit_line([float(found.kept or 0) for found in points], [found.median("encoder") for found in points])


def whole_fit(measured: Sequence[Measured], model: str, percent: int | None, form: str) -> Fit | None:
    """Return the fit of the whole time to a constant and the megapixels of one image."""
    points = timed(measured, model=model, percent=percent, form=form, batch=1)
    if len(points) < MIN_POINTS:
        return None
    return fit_line([found.key.megapixels for found in points], [found.median() for found in points])


def all_images_fit(measured: Sequence[Measured], form: str) -> Fit | None:
    """Return the fit of the encoder's time to a constant, all tokens and the kept ones, over all of Sparse DETR."""
    points = timed(measured, model="sparse", form=form)
    if len(points) <= MIN_POINTS or len({found.cell["percent"] for found in points}) < 2:
        return None
    terms = [(1.0, float(found.tokens or 0), float(found.kept or 0)) for found in points]
    return fit_sum(terms, [found.median("encoder") for found in points])


def fits(measured: Sequence[Measured]) -> str:
    """Return the table of the fits."""
    size = largest_share_size(measured)
    rows: list[tuple[str, str, Fit]] = []
    for form, title in FORMS.items():
        if fit := encoder_fit(measured, form):
            a, b = fit.coefficients
            rows.append((f"encoder, {title}, one image of {size}", f"{a:.0f} ms + {1000 * b:.0f} us a kept token", fit))
    for form, title in FORMS.items():
        if fit := all_images_fit(measured, form):
            a, b, c = fit.coefficients
            text = f"{a:.0f} ms + {1000 * b:.1f} us a token + {1000 * c:.0f} us a kept token"
            rows.append((f"encoder, {title}, all images, batches and shares", text, fit))
    for model, percent in (("topk", None), ("sparse", 10)):
        for form, title in FORMS.items():
            if fit := whole_fit(measured, model, percent, form):
                a, b = fit.coefficients
                name = Cell(model, form, 1, 1, 1, percent).title
                rows.append((f"whole, {name}, {title}", f"{a:.0f} ms + {b:.0f} ms a megapixel", fit))
    head = ["fit of the medians", "", "R2", "largest deviation"]
    cells = [[name, text, f"{fit.r2:.4f}", f"{fit.largest_deviation:.1%}"] for name, text, fit in rows]
    return markdown_table(head, cells) if rows else ""


# large


def large(measured: Sequence[Measured], facts: dict[str, str]) -> str:
    """Return the table of large encoders, and what fits into a memory."""
    largest = max((found.key.megapixels for found in measured), default=0.0)
    here = [found for found in measured if found.key.megapixels == largest]
    rows = []
    for model, percent in unique((found.cell["model"], found.cell["percent"]) for found in here):
        plain, form = by_form(here, model=model, percent=percent)
        known = form or plain
        assert known is not None
        rows.append(
            [
                known.key.title,
                f"{known.tokens:.0f}",
                f"{known.kept:.0f}",
                *(milliseconds(plain, part) for part in ("whole", "encoder")),
                *(milliseconds(form, part) for part in ("whole", "encoder")),
                gain(form, here),
                gain(form, here, "encoder"),
                mebibytes(plain),
                mebibytes(form),
            ]
        )
    head = ["", "tokens", "refined", "plain, ms", "its encoder", "form, ms", "its encoder"]
    head += ["dense form / it", "encoder", "peak MiB, plain", "form"]
    if not rows:
        return protocol(measured, facts)
    table = f"One image of {here[0].key.size}:\n\n{markdown_table(head, rows)}"
    size = "x".join(map(str, BATCH_SIZE))
    note = (
        f"The largest image of this shape, and the largest batch of {size}, whose {{what}} fits into so much memory "
        "beyond the model, {extra}. By a fit to three measured sizes; what is larger was not measured:"
    )
    forms = {form: f", {name}" for form, name in FORMS.items()}
    inference = note.format(what="detection", extra="float32")
    training = note.format(what="training step", extra="float32, with gradients, without the states of an optimiser")
    fitting = (
        what_fits(measured, forms, LIMITS_GIB, inference),
        what_fits(measured, {TRAINING: ""}, TRAINING_LIMITS_GIB, training),
    )
    return "\n\n".join([*filter(None, [table, *fitting]), protocol(measured, facts)])


def memory_fit(points: Sequence[Measured]) -> Fit | None:
    """Return the fit of the peak memory to a constant and the megapixels; None if it does not grow with them."""
    known = [(found.key.megapixels, found.peak_mib) for found in points if found.peak_mib]
    if len(known) < MIN_POINTS:
        return None
    fit = fit_line(*zip(*known, strict=True))
    return fit if fit.coefficients[1] > 0 else None


def what_fits(measured: Sequence[Measured], forms: dict[str, str], limits: Sequence[float], note: str) -> str:
    """Return the table of the largest image and batch in given memories, by fits.

    Args:
        measured: all cells.
        forms: the forms to report -> their names.
        limits: of the memory in GiB.
        note: what the table is of.
    """
    rows = []
    for model, percent, form in unique(
        tuple(found.cell[name] for name in ("model", "percent", "form")) for found in measured
    ):
        points = choose(measured, model=model, percent=percent, form=form)
        fit = memory_fit(points) if form in forms else None
        if fit is None:
            continue
        cell = max(points, key=lambda found: found.key.megapixels).key
        a, b = fit.coefficients
        text = f"{a:.0f} + {b:.0f} a megapixel, {fit.largest_deviation:.0%}"
        rows.append([f"{cell.title}{forms[form]}", text, *(largest(fit, cell, limit) for limit in limits)])
    if not rows:
        return ""
    head = ["", "peak MiB, largest deviation", *(f"in {limit:g} GiB" for limit in limits)]
    return f"{note}\n\n{markdown_table(head, rows)}"


def largest(fit: Fit, cell: Cell, limit_gib: float) -> str:
    """Return the largest image of a cell's shape, and the largest batch of `BATCH_SIZE`, that need no more memory."""
    constant, slope = fit.coefficients
    megapixels = (1024 * limit_gib - constant) / slope
    if megapixels <= 0:
        return "none"
    height = math.floor(math.sqrt(1e6 * megapixels * cell.height / cell.width) / STEP) * STEP
    width = math.floor(math.sqrt(1e6 * megapixels * cell.width / cell.height) / STEP) * STEP
    batch = math.floor(1e6 * megapixels / math.prod(BATCH_SIZE))
    return f"{height}x{width}" + (f", batch of {batch}" if batch > 1 else "")


# memory


def memory(measured: Sequence[Measured], facts: dict[str, str]) -> str:
    """Return the table of peak memory."""
    rows = []
    for model, percent in unique((found.cell["model"], found.cell["percent"]) for found in measured):
        plain, form = by_form(measured, model=model, percent=percent)
        known = plain or form
        assert known is not None
        rows.append([known.key.title, mebibytes(plain), mebibytes(form)])
    sizes = ", ".join(unique(found.key.size for found in measured))
    table = markdown_table([f"{sizes}, peak MiB", "plain", "form"], rows)
    return f"{table}\n\n{protocol(measured, facts)}"


def protocol(measured: Sequence[Measured], facts: dict[str, str]) -> str:
    """Return how the numbers were taken."""
    rounds = sorted({len(found.times("whole")) for found in measured} - {0})
    spans = f"{rounds[0]} to {rounds[-1]}" if len(rounds) > 1 else f"{rounds[0]}" if rounds else ""
    times = f", CPU time, medians of {spans} round{'s' * (rounds[-1] > 1)}" if rounds else ""
    peaks = ", peak memory of a call beyond model and images" * any(found.peak_mib for found in measured)
    return (
        f"{facts['cpu']} ({facts['instructions']}), PyTorch {facts['torch']}, float32, ResNet-50, random weights, one "
        f"thread{times}{peaks}, clean allocator"
    )


REPORTS = {"curves": curves, "large": large, "memory": memory}
