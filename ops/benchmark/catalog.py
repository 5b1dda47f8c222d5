"""The variants of a form on a device: ours, PyTorch's composite forms, and the installable peers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from benchmark.peers import packages, public_kernel
from benchmark.peers.composite import fair, official
from benchmark.variants import Missing, Variant, after_eager, ours, ours_fused, ours_splat, splat_name


def variants_of(form: str, device: str) -> tuple[list[Variant], dict[str, str]]:
    """Return what can be measured, and the reason for what cannot."""
    found, missing = [], {}
    for name, make in makers(form, device):
        try:
            found.append(make())
        except Missing as reason:
            missing[name] = str(reason)
    return found, missing


def makers(form: str, device: str) -> Iterable[tuple[str, Callable[[], Variant]]]:
    """Yield (name, function that makes it or raises `Missing`), the baseline of the form first."""
    if form == "plain":
        yield from plain_makers(device)
    elif form == "fused":
        yield from fused_makers(device)
    else:
        yield from splat_makers(device)


def plain_makers(device: str) -> Iterable[tuple[str, Callable[[], Variant]]]:
    yield "fair", lambda: Variant("fair", "pytorch", fair)
    yield "official", lambda: Variant("official", "pytorch", official)
    for backend in backends_on(device):
        yield backend, lambda backend=backend: ours(backend)
    if device == "cpu":
        yield "cpu, loads in L1", lambda: Variant("cpu, loads in L1", "floor", ours("cpu").run, one_spot=True)
    yield "torch-ms-deform-attn", packages.torch_ms_deform_attn
    yield "HF transformers", packages.hugging_face
    if device == "cuda":
        yield "deformops triton", lambda: packages.deformops("triton")
        yield "deformops cuda", lambda: packages.deformops("cuda")
        yield "public kernel (stand-in)", public_kernel.variant


def fused_makers(device: str) -> Iterable[tuple[str, Callable[[], Variant]]]:
    yield "eager + fair", lambda: after_eager(Variant("fair", "pytorch", fair))
    for backend in backends_on(device):
        if backend != "reference":  # which is `fair`
            yield f"eager + {backend}", lambda backend=backend: after_eager(ours(backend))
        yield f"{backend} fused", lambda backend=backend: ours_fused(backend)
    yield "eager + torch-ms-deform-attn", lambda: after_eager(packages.torch_ms_deform_attn())
    if device == "cuda":
        yield "deformops triton, its softmax", lambda: packages.deformops_softmax("triton")


def splat_makers(device: str) -> Iterable[tuple[str, Callable[[], Variant]]]:
    for backend in backends_on(device):
        yield splat_name(backend), lambda backend=backend: ours_splat(backend)


def backends_on(device: str) -> list[str]:
    """Return the names of our backends for tensors on that device."""
    return ["reference", "cpu"] if device == "cpu" else ["reference", "triton", "cuda"]
