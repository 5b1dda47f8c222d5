"""Measure the inference form beside the plain model, and beside `transformers` as shipped with the same weights.

    python scripts/measure_inference.py                                     measure what is missing, print the tables
    python scripts/measure_inference.py --sizes 480x640 --models dense --rounds 1
    python scripts/measure_inference.py --report --readme docs/inference.md --summary README.md     tables, no more
    python scripts/measure_inference.py --compiled --allocator system       another table: torch.compile of Sparse DETR

Protocol: one thread, CPU time of that thread, random weights and a fresh random image in every round; all models and
forms of a size in turn, in an order that rotates. The first round of a process warms up and does not count. Every
round is saved, so that the command can be stopped and goes on where it was. `clean` names glibc's allocator with
settings that keep freed memory, `system` the same allocator as it comes; the difference is the time for mapping memory
anew.

`--compiled` needs a C++ compiler. It compiles every model with PyTorch's inductor as one graph and measures it beside
the model that it was made of. `one` compiles for the image size alone, which takes minutes; `all` for all sizes
(`dynamic=True`), which takes several times as long.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sparse_detr.analysis.machine import cpu_model, use_clean_allocator
from sparse_detr.analysis.tables import fill_readme, markdown_table
from sparse_detr.checkpoint import convert_checkpoint, load_file
from sparse_detr.config import load_config, model_config
from sparse_detr.config.model import build_detector
from sparse_detr.errors import UserError, run_script
from sparse_detr.files import write_text_atomically
from sparse_detr.inference import optimize

PROJECTS = Path(__file__).resolve().parents[1] / "projects"
MODELS = {
    "dense": ("Deformable DETR", "DeformableDETR/configs/deformable_detr_r50.py"),
    "topk": ("Deformable DETR, two-stage, dense", "SparseDETR/configs/deformable_detr_topk_r50.py"),
    "rho10": ("Sparse DETR, 10 %", "SparseDETR/configs/sparse_detr_r50_rho10.py"),
    "rho30": ("Sparse DETR, 30 %", "SparseDETR/configs/sparse_detr_r50_rho30.py"),
    "dino": ("DINO", "DINO/configs/dino_r50_4scale_36ep.py"),
    "focus": ("Focus-DETR", "FocusDETR/configs/focus_detr_r50_36ep.py"),
}
"""Name -> title and config in `projects`; every model has a ResNet-50."""
FORMS: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": torch.float32},
    "bf16": {"dtype": torch.bfloat16},
    "int8": {"int8": True},
}
"""Name -> options of `optimize`; `plain` is the model as it is."""
PEER = "transformers"
RATIOS = (
    ("Deformable DETR, form / `transformers` as shipped", (PEER, "plain"), ("dense", "fp32"), "whole"),
    (
        "Sparse DETR, 10 %, form / Deformable DETR of `transformers`",
        (PEER, "plain"),
        ("rho10", "fp32"),
        "whole",
    ),
    ("Sparse DETR, 10 %, form / dense form", ("topk", "fp32"), ("rho10", "fp32"), "whole"),
    ("the same, encoder alone", ("topk", "fp32"), ("rho10", "fp32"), "encoder"),
    ("Sparse DETR, 30 %, form / dense form", ("topk", "fp32"), ("rho30", "fp32"), "whole"),
    ("the same, encoder alone", ("topk", "fp32"), ("rho30", "fp32"), "encoder"),
    ("Focus-DETR, form / DINO, form", ("dino", "fp32"), ("focus", "fp32"), "whole"),
    ("the same, encoder alone", ("dino", "fp32"), ("focus", "fp32"), "encoder"),
    ("Sparse DETR, 10 %, form / dense model as it is", ("topk", "plain"), ("rho10", "fp32"), "whole"),
)
"""Rows of the summary: title, the slower and the faster (model, form), part."""
BASE = {"rho10": "topk", "rho30": "topk", "focus": "dino"}
"""Model -> the dense one that it is compared with."""
PARTS = ("backbone", "tokenizer", "selector", "encoder", "queries", "decoder")
COMPILED = {"one": " compiled for one size", "all": " compiled for all sizes"}
"""Sizes that `torch.compile` was asked for -> ending of the name of a form."""
SAME = 1e-3
"""Largest difference of logits and boxes of a query that is the same."""

Measured = dict[str, list[float]]


def main() -> int:
    """Measure and print."""
    args = parse_arguments()
    if args.allocator == "clean" and not args.report:
        use_clean_allocator()
    table = "inference compiled" if args.compiled else f"inference {args.allocator}"
    path = args.output / f"inference_{'compiled_' if args.compiled else ''}{args.allocator}.json"
    results = json.loads(path.read_text()) if path.is_file() else {"machine": machine(), "cells": {}}
    if not args.report:
        torch.set_num_threads(1)
        args.output.mkdir(parents=True, exist_ok=True)
        for size in args.sizes:
            measure(size, args, results, lambda: write_text_atomically(path, json.dumps(results, indent=1)))
    text = report_compiled(results, args.allocator) if args.compiled else report(results, args.allocator)
    print(text)
    if args.readme:
        fill_readme(args.readme, table, text)
    if args.summary:
        fill_readme(args.summary, f"inference {args.allocator} summary", summary(results, args.allocator))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/inference"), help="folder of the results")
    parser.add_argument("--sizes", nargs="+", metavar="HxW", help="480x640 800x1066; with --compiled 480x640")
    parser.add_argument("--models", nargs="+", choices=[PEER, *MODELS], help="all; with --compiled rho10")
    parser.add_argument(
        "--forms", nargs="+", choices=["plain", *FORMS], help="plain fp32 bf16; with --compiled plain fp32"
    )
    parser.add_argument(
        "--compiled", nargs="*", choices=COMPILED, help="torch.compile of every form beside it: one, all, or both (one)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--allocator", choices=["clean", "system"], default="clean")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--readme", type=Path, help="file with the lines `<!-- table inference clean -->`")
    parser.add_argument("--summary", type=Path, help="file with the lines `<!-- table inference clean summary -->`")
    args = parser.parse_args()
    few = args.compiled is not None
    args.compiled = (args.compiled or ["one"]) if few else []
    args.sizes = args.sizes or (["480x640"] if few else ["480x640", "800x1066"])
    args.models = args.models or (["rho10"] if few else [PEER, *MODELS])
    args.forms = args.forms or (["plain", "fp32"] if few else ["plain", "fp32", "bf16"])
    return args


def machine() -> dict[str, str]:
    """Return what the numbers depend on."""
    return {
        "cpu": cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def measure(size: str, args: argparse.Namespace, results: dict[str, Any], save: Callable[[], None]) -> None:
    """Measure the missing rounds of one image size."""
    cells = results["cells"]
    asked = [(PEER, "plain")] * (PEER in args.models)
    endings = ["", *(COMPILED[sizes] for sizes in args.compiled)]
    asked += [(name, form + end) for name in args.models if name in MODELS for form in args.forms for end in endings]
    missing = {
        cell: rounds
        for cell in asked
        if (rounds := args.rounds - len(cells.get(key(size, *cell), {}).get("whole", []))) > 0
    }
    if not missing:
        return
    actions = build(list(missing))
    height, width = map(int, size.split("x"))
    generator = torch.Generator().manual_seed(len(json.dumps(cells)))  # other images after a stop
    for turn in tqdm(range(1 + max(missing.values())), desc=size, unit="round"):
        image = torch.randn(1, 3, height, width, generator=generator)
        names = list(actions)
        for cell in names[turn % len(names) :] + names[: turn % len(names)]:
            if turn > missing[cell]:
                continue
            found = actions[cell](image)
            cell_results = cells.setdefault(key(size, *cell), {})
            if turn == 0:
                cell_results |= getattr(actions[cell], "facts", {})
            else:
                for part, seconds in found.items():
                    cell_results.setdefault(part, []).append(1000 * seconds)
        save()


def key(size: str, model: str, form: str) -> str:
    """Return the name of a cell in the file of results."""
    return f"{size} {model} {form}"


def build(cells: list[tuple[str, str]]) -> dict[tuple[str, str], Callable[[Tensor], dict[str, float]]]:
    """Return for every (model, form) a function from an image to its seconds, whole and by part."""
    models = {name for name, _ in cells}
    plain: dict[str, nn.Module] = {}
    peer = None
    if PEER in models:
        peer, plain["dense"] = transformers_and_ours()
    for name in models & set(MODELS):
        if name not in plain:
            plain[name] = random_model(MODELS[name][1])
    actions = {}
    for name, form in cells:
        if name == PEER:
            actions[name, form] = peer_action(peer)
        else:
            kind, sizes = eager_form(form)
            model = plain[name] if kind == "plain" else optimize(plain[name], **FORMS[kind])
            actions[name, form] = Compiled(model, sizes) if sizes else action(model)
    return actions


def random_model(config: str, overrides: Sequence[str] = ()) -> nn.Module:
    """Return the transformer of a config in `projects`, with random weights."""
    torch.manual_seed(0)
    cfg = load_config(str(PROJECTS / config), overrides)
    return random_weights(build_detector(cfg, device="cpu").eval()).transformer()


def eager_form(name: str) -> tuple[str, str]:
    """Split the name of a form, or of its cell, into that without `torch.compile` and its sizes, "" for neither."""
    sizes = next((sizes for sizes, ending in COMPILED.items() if name.endswith(ending)), "")
    return name.removesuffix(COMPILED.get(sizes, "")), sizes


def random_weights(model: nn.Module) -> nn.Module:
    """Add noise to all parameters, so that no product is one with zeros."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def transformers_and_ours() -> tuple[nn.Module, nn.Module]:
    """Return Deformable DETR of `transformers` and ours with the same weights, after a check of equal results.

    Raises:
        UserError: the package is missing, or the results differ.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError("transformers is not installed; install it, or leave it out of --models") from error
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"])
    config = transformers.DeformableDetrConfig(use_timm_backbone=False, backbone_config=backbone, num_labels=91)
    public = random_weights(transformers.DeformableDetrForObjectDetection(config)).eval()
    with tempfile.TemporaryDirectory() as folder:
        public.save_pretrained(folder)
        converted = convert_checkpoint(load_file(folder))
    cfg = load_config(str(PROJECTS / MODELS["dense"][1]))
    cfg.model = model_config(converted.description)
    ours = build_detector(cfg, device="cpu")
    ours.load_state_dict(converted.state_dict, strict=True)
    ours = ours.eval().transformer()
    image = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        expected, (logits, _) = public(pixel_values=image).logits, ours(image, [(96, 128)])
    if (logits - expected).abs().max() > 1e-3:
        raise UserError(f"the models differ by {(logits - expected).abs().max():.1e}; update the converter")
    return public, ours


def peer_action(model: nn.Module) -> Callable[[Tensor], dict[str, float]]:
    """Return a function from an image to the seconds of a model of `transformers`."""

    @torch.no_grad()
    def run(image: Tensor) -> dict[str, float]:
        start = time.thread_time()
        model(pixel_values=image)
        return {"whole": time.thread_time() - start}

    return run


def action(model: nn.Module, budget: float | None = None) -> Callable[[Tensor], dict[str, float]]:
    """Return a function from images to the seconds of a model, whole and by part; for `budget` see the model."""

    @torch.no_grad()
    def run(image: Tensor) -> dict[str, float]:
        with timed_parts(model) as seconds:
            start = time.thread_time()
            model(image, [tuple(image.shape[-2:])] * len(image), budget)
            seconds["whole"] = time.thread_time() - start
        return seconds

    return run


class Compiled:
    """A model through `torch.compile`, from an image to its seconds; the first call compiles.

    Args:
        model: a detection transformer.
        sizes: "one" or "all".

    Attributes:
        facts: of the first call: seconds that it took, the number of graphs (for all sizes: after a second one), the
            median difference of a query's logits and boxes to the model's, and the share of queries that are the same,
            each in a list of one number.
    """

    def __init__(self, model: nn.Module, sizes: str) -> None:
        self._model = copy.deepcopy(model)  # the other action hooks its parts
        self._all_sizes, self._graphs = sizes == "all", 0
        self._compiled = torch.compile(self._model, backend=self._inductor, dynamic=self._all_sizes, fullgraph=True)
        self.facts: Measured = {}

    def _inductor(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        from torch._inductor.compile_fx import compile_fx

        self._graphs += 1
        return compile_fx(graph, inputs)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> dict[str, float]:
        if not self.facts:
            self._compile(image)
        start = time.thread_time()
        self._compiled(image, [tuple(image.shape[-2:])])
        return {"whole": time.thread_time() - start}

    def _compile(self, image: Tensor) -> None:
        start = time.perf_counter()
        with torch.compiler.config.patch(force_disable_caches=True):  # nothing that an earlier run left
            self._compiled(image, [tuple(image.shape[-2:])])
        seconds = time.perf_counter() - start
        smaller = image[..., : image.shape[-2] * 3 // 4, : image.shape[-1] // 2].contiguous()
        images = (image, smaller) if self._all_sizes else (image,)
        distances = torch.cat([self._distances(each) for each in images])
        self.facts = {
            "compile_s": [seconds],
            "graphs": [float(self._graphs)],
            "difference": [float(distances.median())],
            "same": [float((distances < SAME).double().mean())],
        }

    def _distances(self, image: Tensor) -> Tensor:
        """Return for every query (B * Q,) how far the nearest eager one is: rounding may change order and choice."""
        sizes = [tuple(image.shape[-2:])]
        found, expected = (torch.cat(list(run(image, sizes)), -1) for run in (self._compiled, self._model))
        return torch.cdist(found, expected, p=float("inf")).amin(-1).flatten()


@contextmanager
def timed_parts(model: nn.Module) -> Iterator[dict[str, float]]:
    """Add up the seconds of the parts of a model while a block runs."""
    seconds: dict[str, float] = {}
    handles = []
    for name in PARTS:
        part = getattr(model, name)

        def before(*_: Any, name: str = name) -> None:
            seconds[name] = seconds.get(name, 0.0) - time.thread_time()

        def after(*_: Any, name: str = name) -> None:
            seconds[name] += time.thread_time()

        handles += [part.register_forward_pre_hook(before), part.register_forward_hook(after)]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def report(results: dict[str, Any], allocator: str) -> str:
    """Return the tables of everything that was measured."""
    cells: dict[str, Measured] = results["cells"]
    blocks = []
    for size in dict.fromkeys(name.split()[0] for name in cells):
        rows = [row(cells, size, name) for name in [PEER, *MODELS]]
        forms = ["plain", *FORMS]
        head = ["", *(f"{form}, ms" for form in forms), f"fp32 against `{PEER}`"]
        head += ["encoder, ms", "against dense, fp32", "encoder against dense"]
        blocks.append(f"{size}:\n\n" + markdown_table(head, [cells_of for cells_of in rows if cells_of]))
        blocks.append(parts_of_forms(cells, size))
    return "\n\n".join([*blocks, f"{setting(results, allocator)}; the encoder of the fp32 form"])


def report_compiled(results: dict[str, Any], allocator: str) -> str:
    """Return the table of what `torch.compile` changes."""
    cells: dict[str, Measured] = results["cells"]
    rows = []
    for name, compiled in cells.items():
        eager_name, sizes = eager_form(name)
        eager = cells.get(eager_name, {})
        if sizes and "whole" in compiled and "whole" in eager:
            size, model, form = eager_name.split()
            title = f"{MODELS[model][0]}, {'as it is' if form == 'plain' else f'{form} form'}, {size}"
            times = [spread(eager["whole"]), spread(compiled["whole"]), faster(eager["whole"], compiled["whole"])]
            facts = [f"{compiled['compile_s'][0]:.0f}", f"{compiled['graphs'][0]:.0f}"]
            facts += [f"{compiled['difference'][0]:.0e}", f"{compiled['same'][0]:.1%}"]
            rows.append([title, f"{sizes} size" + "s" * (sizes == "all"), *times, *facts])
    head = ["", "compiled for", "eager, ms", "compiled, ms", "gain", "compiling, s", "graphs", "difference", "same"]
    how = (
        "inductor, `fullgraph=True`; compiling in wall time; the median difference of a query's logits and boxes to "
        f"the eager ones, and the share of queries that differ by less than {SAME}: random weights choose among tokens "
        "with nearly equal scores, so rounding changes a few"
    )
    return f"{markdown_table(head, rows)}\n\n{setting(results, allocator)}; {how}"


def setting(results: dict[str, Any], allocator: str) -> str:
    """Return how the times were taken."""
    facts = results["machine"]
    return (
        f"{facts['cpu']} ({facts['instructions']}), PyTorch {facts['torch']}, one thread, CPU time, {allocator} "
        "allocator, medians with quartiles"
    )


def row(cells: dict[str, Measured], size: str, name: str) -> list[str]:
    """Return the cells of a model's row; an empty list if nothing was measured."""
    found = {form: cells.get(key(size, name, form)) for form in ("plain", *FORMS)}
    if not any(found.values()):
        return []
    title = "`transformers` as shipped" if name == PEER else MODELS[name][0]
    peer, own = cells.get(key(size, PEER, "plain")), found["plain"]
    base = cells.get(key(size, BASE.get(name, ""), "fp32"))
    entries = [title]
    for form, measured in found.items():
        text = "" if measured is None else spread(measured["whole"])
        reference = peer if form == "plain" and name == "dense" else own if form != "plain" else None
        if measured is not None and reference is not None:
            text += f", {faster(reference['whole'], measured['whole'])}"
        entries.append(text)
    fp32 = found["fp32"]
    entries.append(faster(peer["whole"], fp32["whole"]) if fp32 and peer else "")
    entries.append(spread(fp32["encoder"]) if fp32 else "")
    both = fp32 is not None and base is not None
    entries.append(faster(base["whole"], fp32["whole"]) if both else "")
    entries.append(faster(base["encoder"], fp32["encoder"]) if both else "")
    return entries


def parts_of_forms(cells: dict[str, Measured], size: str) -> str:
    """Return a table of the parts of the fp32 forms, and the ratio to dense of an encoder that takes no time."""
    rows = []
    for name, (title, _) in MODELS.items():
        found, base = cells.get(key(size, name, "fp32")), cells.get(key(size, BASE.get(name, ""), "fp32"))
        if found is None:
            continue
        whole = statistics.median(found["whole"])
        medians = {part: statistics.median(found.get(part, [0.0])) for part in PARTS}
        shares = [f"{milliseconds:.0f} ({milliseconds / whole:.0%})" for milliseconds in medians.values()]
        bound = "" if base is None else f"{statistics.median(base['whole']) / (whole - medians['encoder']):.2f}x"
        rows.append([title, *shares, bound])
    head = ["parts of the fp32 form, ms", *PARTS, "against dense if the encoder took no time"]
    return markdown_table(head, rows) if rows else ""


def summary(results: dict[str, Any], allocator: str) -> str:
    """Return how many times faster one thing is than another, at every size; float32."""
    cells: dict[str, Measured] = results["cells"]
    sizes = list(dict.fromkeys(name.split()[0] for name in cells))
    rows = []
    for title, slow, fast, part in RATIOS:
        pairs = [(cells.get(key(size, *slow)), cells.get(key(size, *fast))) for size in sizes]
        if all(first and second for first, second in pairs):
            rows.append([title, *(faster(first[part], second[part]) for first, second in pairs)])
    facts = results["machine"]
    table = markdown_table([f"times faster, float32, {allocator} allocator", *sizes], rows)
    return f"{table}\n\n{facts['cpu']} ({facts['instructions']}), PyTorch {facts['torch']}, one thread, CPU time."


def spread(values: list[float]) -> str:
    """Return the median, with the quartiles if there are enough values."""
    if len(values) < 4:
        return f"{statistics.median(values):.0f}"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def faster(slow: list[float], fast: list[float]) -> str:
    """Return how many times faster one is than the other, by medians."""
    return f"{statistics.median(slow) / statistics.median(fast):.2f}x"


if __name__ == "__main__":
    run_script(main)
