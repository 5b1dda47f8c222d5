"""Any model of timm with a pyramid of maps as a Detectron2 backbone.

Channels, strides and frozen parts are found out from the model, never typed in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.functional import pad

from sparse_detr.errors import UserError


@dataclass(frozen=True)
class TimmMaps:
    """The maps of a model of timm, fine to coarse, and the images that it was trained on.

    Args:
        channels, strides: of every map.
        indices: of every map, in timm's `out_indices`.
        parameters: for every map, the names of the parameters that it depends on.
        channels_last: maps are (B, h, w, channels).
        pixel_mean, pixel_std: of the images, RGB, from 0 to 255.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    indices: tuple[int, ...]
    parameters: tuple[frozenset[str], ...]
    channels_last: bool
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]


class TimmBackbone(Backbone):
    """A model of timm that gives its coarsest maps, for images of any size.

    Images are padded with zeros, at the right and bottom, to a multiple of the largest stride, since many models take
    no others; the maps are cut to the size of the image, rounded up to whole cells.

    Args:
        name: of timm, such as "convnext_tiny" or "resnet18.a1_in1k".
        num_maps: number of maps, the coarsest.
        freeze_at: which parts have no gradient: 0 none, 1 up to the map of stride 2, 2 up to that of stride 4, ..., as
            in `MobileNetV2`; none in a model that has no map as fine.
        frozen_norms: keep the statistics, scales and shifts of batch norm as they are; it changes no other
            normalisation.
        checkpoint_path: file of weights, as timm publishes them; "" for random ones. Read when the model is built.
        options: further arguments of `timm.create_model`, such as `drop_path_rate`.

    Raises:
        ValueError: there is no such model, it has no such maps, or it takes images of one size only.
        UserError: the file of weights is missing, cannot be read, or is of another model.
    """

    def __init__(
        self,
        *,
        name: str,
        num_maps: int = 3,
        freeze_at: int = 2,
        frozen_norms: bool = True,
        checkpoint_path: str = "",
        options: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        maps = timm_maps(name, options or {})
        if not 0 < num_maps <= len(maps.strides):
            raise ValueError(f"num_maps must be 1 to {len(maps.strides)} for {name}, got {num_maps}")
        options = {**(options or {}), "out_indices": maps.indices[-num_maps:]}
        self.body = _create(name, options, _read(checkpoint_path) if checkpoint_path else None)
        frozen = [names for names, stride in zip(maps.parameters, maps.strides, strict=True) if stride <= 2**freeze_at]
        if freeze_at:
            for parameter_name, parameter in self.body.named_parameters():
                parameter.requires_grad_(not any(parameter_name in names for names in frozen))
        if frozen_norms:
            self.body = freeze_batch_norm_2d(self.body)
        self.channels_last, self.divisor = maps.channels_last, maps.strides[-1]
        self.channels, self.strides = maps.channels[-num_maps:], maps.strides[-num_maps:]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return maps by name of images (B, 3, H, W); a map of stride s is (B, channels, ceil(H / s), ceil(W / s))."""
        height, width = x.shape[-2:]
        maps = self.body(pad(x, (0, -width % self.divisor, 0, -height % self.divisor)))
        found = {}
        for values, stride in zip(maps, self.strides, strict=True):
            values = values.permute(0, 3, 1, 2) if self.channels_last else values
            rows, columns = (height + stride - 1) // stride, (width + stride - 1) // stride
            found[f"stride{stride}"] = values[..., :rows, :columns].contiguous()
        return found

    def output_shape(self) -> dict[str, ShapeSpec]:
        pairs = zip(self.channels, self.strides, strict=True)
        return {f"stride{stride}": ShapeSpec(channels=channels, stride=stride) for channels, stride in pairs}


_FOUND: dict[str, TimmMaps] = {}


def timm_maps(name: str, options: Mapping[str, Any]) -> TimmMaps:
    """Find out the maps of a model of timm from the model itself, built without memory where it can be.

    Args:
        name, options: see `TimmBackbone`.

    Raises:
        ValueError: there is no such model, it has no pyramid, or it takes images of one size only.
    """
    key = json.dumps([name, dict(options)], sort_keys=True, default=str)
    if key not in _FOUND:
        with torch.random.fork_rng(devices=[]):
            _FOUND[key] = _find_out(name, options)
    return _FOUND[key]


def _find_out(name: str, options: Mapping[str, Any]) -> TimmMaps:
    if not timm.is_model(name):
        near = ", ".join(get_close_matches(name, timm.list_models(), n=3)) or "see timm.list_models()"
        raise ValueError(f"timm {timm.__version__} has no model {name!r}; near ones: {near}")
    try:
        return _maps_on("meta", name, options)
    except ValueError:
        raise
    except Exception:  # a model may do what needs values
        return _maps_on("cpu", name, options)


def _maps_on(device: str, name: str, options: Mapping[str, Any]) -> TimmMaps:
    with torch.device(device):
        body = _create(name, options).eval()
    info = body.feature_info
    channels, strides = tuple(info.channels()), tuple(info.reduction())
    if list(strides) != sorted(set(strides)):
        raise ValueError(f"{name} has no pyramid: its maps have the strides {strides}; take a model whose strides rise")
    channels_last = "NHWC" in str(getattr(body, "output_fmt", ""))
    height, width = 2 * strides[-1], 3 * strides[-1]
    try:
        with torch.enable_grad():
            maps = body(torch.zeros(1, 3, height, width, device=device))
    except Exception as error:
        if device == "meta":
            raise RuntimeError("try it with values") from error
        raise ValueError(
            f"{name} cannot take images of any size ({_first_line(error)}); a Swin can with strict_img_size=False"
        ) from error
    for values, count, stride in zip(maps, channels, strides, strict=True):
        shape = (1, height // stride, width // stride, count)
        shape = shape if channels_last else (1, count, *shape[1:3])
        if tuple(values.shape) != shape:
            raise ValueError(f"{name} gives a map {tuple(values.shape)} where its stride {stride} means {shape}")
    config = getattr(body, "default_cfg", None) or timm.get_pretrained_cfg(name).to_dict()
    return TimmMaps(
        channels=channels,
        strides=strides,
        indices=tuple(info.out_indices),
        parameters=tuple(_parameters_of(values, body) for values in maps),
        channels_last=channels_last,
        pixel_mean=tuple(round(255 * value, 3) for value in config["mean"]),
        pixel_std=tuple(round(255 * value, 3) for value in config["std"]),
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _parameters_of(values: Tensor, body: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that a map depends on."""
    names, parameters = zip(*body.named_parameters(), strict=True)
    gradients = torch.autograd.grad(values.sum(), parameters, retain_graph=True, allow_unused=True)
    return frozenset(name for name, gradient in zip(names, gradients, strict=True) if gradient is not None)


def _create(name: str, options: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Create the model; with weights, through timm's own loader, which drops the classifier."""
    if options.get("pretrained"):
        raise ValueError(
            f"weights are not fetched from a hub here; download the file of {name} and give checkpoint_path=FILE, or "
            "train.init_checkpoint=FILE for the weights of a whole detector"
        )
    options = {name: value for name, value in options.items() if name != "pretrained"}
    if weights is None or torch.empty(0).is_meta:
        return timm.create_model(name, features_only=True, **options)
    unfilled = _unfilled(name, options, weights)
    if unfilled:
        raise UserError(f"the file of weights is of another model than {name}: it lacks {', '.join(unfilled[:3])}, ...")
    return _filled(name, options, weights)


def _filled(name: str, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    overlay = {"state_dict": dict(weights)}
    try:
        return timm.create_model(name, features_only=True, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except (RuntimeError, KeyError) as error:
        raise UserError(f"the file of weights does not fit {name}: {_first_line(error)}") from error


def _unfilled(name: str, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> list[str]:
    """Return the parameters that the weights do not fill, whatever timm renames: those that NaN does not reach."""
    broken = {
        entry: torch.full_like(value, torch.nan) if value.is_floating_point() else value
        for entry, value in weights.items()
    }
    with torch.random.fork_rng(devices=[]):
        body = _filled(name, options, broken)
    return [entry for entry, value in body.named_parameters() if not value.isnan().all()]


def _read(path: str) -> dict[str, Tensor]:
    """Read the weights in a file, without running code of it."""
    if not os.path.isfile(path):
        raise UserError(
            f"there is no file {path!r} (checkpoint_path of the backbone); for a trained detector, whose checkpoint "
            'holds the backbone too, give checkpoint_path=""'
        )
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file raises
        raise UserError(f"{path} cannot be read as weights: {_first_line(error)}") from error
    for key in ("state_dict", "model"):
        content = content[key] if isinstance(content, dict) and isinstance(content.get(key), dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} does not hold weights by name; give a file as timm publishes them")
    return {name.removeprefix("module."): value for name, value in content.items()}
