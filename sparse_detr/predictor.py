"""A loaded detector: images in any form in, detections out.

    predictor = Predictor("output/config.yaml", "output/model_final.pth")
    instances = predictor("street.jpg", score_threshold=0.3)

Detectron2 is imported when a `Predictor` is made.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from sparse_detr._detectron2 import require_detectron2
from sparse_detr.budget import check_fits, checked_budget, is_dense, resolved
from sparse_detr.checks import check_score, is_real
from sparse_detr.errors import ImageError, UserError
from sparse_detr.files import file_stamp

if TYPE_CHECKING:
    import numpy as np
    from detectron2.structures import Instances

    from sparse_detr.config.kinds import Config
    from sparse_detr.modeling.effort import AnyEffort
    from sparse_detr.structures import DetectorOutput

CHANNEL_ORDERS = ("RGB", "BGR")
EXPORTED_SUFFIXES = (".onnx", ".pt2", ".torchscript")


class Outputs(NamedTuple):
    """The results of a detector for a batch of images.

    Args:
        inputs: the model's inputs, one dict an image.
        output: all results of the model.
        instances: the detections, one `Instances` an image.
    """

    inputs: list[dict[str, Any]]
    output: DetectorOutput
    instances: list[Instances]


@dataclass(frozen=True)
class Options:
    """The options of a detection.

    Args:
        score_threshold: detections with a lower score are left out, in [0, 1]; 0 keeps all.
        top_k: the largest number of detections an image; None takes the model's.
        budget: how many tokens the encoder refines: a share of them in (0, 1]; a text: `levels:0.25,0.5,1` (a share
            for every level, fine to coarse), `mass:0.9` (as many as hold 90 % of an image's saliency), `ms:30` (the
            best one of `sparse-detr sweep` within 30 ms, see `sparse_detr.budget_table`); or a `Budget`. An `Effort`,
            or a text like `0.3+decoder:2+queries:100`, also limits decoder layers and queries. None takes the
            config's.
        channel_order: "RGB" or "BGR", of arrays and tensors; files and PIL images say their own.
        batch_size: the largest number of images that go through the model together: of so many images in a row, those
            of one size after preprocessing. So nothing is padded, and an image gives the same as alone, up to rounding.

    Raises:
        UserError: names the option, its value and the values that are allowed.
    """

    score_threshold: float = 0.0
    top_k: int | None = None
    budget: AnyEffort | None = None
    channel_order: str = "RGB"
    batch_size: int = 1

    def __post_init__(self) -> None:
        check_score("score_threshold", self.score_threshold)
        object.__setattr__(self, "budget", checked_budget("budget", self.budget))
        if self.top_k is not None:
            _check_count("top_k", self.top_k)
        _check_count("batch_size", self.batch_size)
        _check_channel_order(self.channel_order)

    def updated(self, options: dict[str, Any]) -> Options:
        """Return these options with others in their place."""
        known = [field.name for field in fields(self)]
        for name in options:
            if name == "keep_ratio":
                raise UserError(f"keep_ratio={options[name]} is called budget={options[name]} now")
            if name not in known:
                raise UserError(f"there is no option {name!r}; there are {', '.join(known)}")
        return replace(self, **options)


class Predictor:
    """A detector with its weights, its preprocessing and its class names.

    Images are preprocessed as in the config's evaluation: an image alone gives exactly the detections of the
    evaluation, to the last bit. A call changes nothing in the predictor, so threads may share it. A pickled predictor
    holds the config and the path of the weights, and loads them where it is unpickled.

    Args:
        config: a config file of either kind, such as the `config.yaml` of a training; or a name of
            `sparse_detr.model_zoo`; or a loaded config, which is not changed. A config is code: load only configs you
            trust. Or a file of `sparse-detr export`, or a folder of `save`, which hold the weights too.
        weights: checkpoint of a training or of `sparse-detr convert`; None takes the config's (train.init_checkpoint,
            MODEL.WEIGHTS). It must hold the whole model, not its backbone alone.
        device: the model's device; None takes the config's, or the CPU if that is a GPU and there is none.
        ema: load the averaged weights of the checkpoint.
        class_names: by class index, in place of those of the config's data set; sets the model's number of classes.
        optimize: run the model in its inference form, which is faster; see `sparse_detr.inference`. True or "fp32" for
            the same numbers up to rounding, "bf16", "fp16" (GPU) or "int8" (CPU) for a lower precision.
        options: defaults of a call, see `Options`.

    Attributes:
        model: in eval mode.
        config: as loaded, with its overrides; an exported file has none.
        class_names: by class index; empty if they are unknown.
        weights: path or address of the weights.
        options: defaults of a call.

    Raises:
        UserError: the config, the weights or an option cannot be used.
    """

    def __new__(cls, config: Any, *arguments: Any, **options: Any) -> Predictor:
        """Return an `ExportedPredictor` for a file of `sparse-detr export`."""
        if cls is Predictor and _is_exported_file(config):
            from sparse_detr.exported_predictor import ExportedPredictor

            return super().__new__(ExportedPredictor)
        return super().__new__(cls)

    def __init__(
        self,
        config: str | os.PathLike[str] | Config,
        weights: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        ema: bool = False,
        class_names: Sequence[str] | None = None,
        optimize: bool | str | None = False,
        **options: Any,
    ) -> None:
        config, weights, class_names, options = _opened(config, weights, class_names, options)
        self.options = Options().updated(options)
        require_detectron2()
        from sparse_detr.config.model import build_detector, build_test_mapper, class_names_of, set_num_classes
        from sparse_detr.config.num_classes import model_classes
        from sparse_detr.engine.weights import load_trained_weights
        from sparse_detr.inference import optimize_to, precision_name

        self._precision = precision_name(optimize)
        self.config = cfg = _loaded(config)
        _set_device(cfg, device)
        if class_names is not None:
            class_names = _names(class_names)
        if class_names:
            set_num_classes(cfg, len(class_names))
        self.weights, self._ema = _weights_of(cfg, weights), ema
        self._stamp = file_stamp(self.weights)
        self._mapper = _checked_mapper(build_test_mapper(cfg))
        self.model: nn.Module = build_detector(cfg).eval()
        load_trained_weights(self.model, self.weights, ema=ema)
        self.model = optimize_to(self.model, self._precision)
        names = list(class_names or class_names_of(cfg))
        fits = model_classes(self.model) in (None, len(names))
        self.class_names: list[str] = names if fits else []
        self._chosen({})  # refuses options that this model cannot use

    @property
    def is_dense(self) -> bool:
        """Return whether the encoder refines every token, so that there is no budget to choose."""
        return is_dense(self.model)

    @property
    def _selects_levels(self) -> bool:
        """Return whether whole levels are selected, so that there is no budget to choose."""
        from sparse_detr.modeling.selection import LevelSelector

        return isinstance(getattr(self.model, "selector", None), LevelSelector)

    @property
    def budget(self) -> AnyEffort | None:
        """Return the budget of a call that gives none, as the model takes it; None for the model's own."""
        return self._budget(self._chosen({})).get("budget")

    def __call__(self, images: Any, **options: Any) -> Any:
        """Detect objects in one image or in many.

        Args:
            images: one image, or any iterable of images. An image is a path, a `PIL.Image`, a NumPy array (H, W, 3)
                uint8, a gray one (H, W), or a tensor (3, h, w) uint8. Or a dict of columns, as of Ray Data, with
                images in `image` or paths in `path`.
            options: for this call, in place of the predictor's: see `Options`.

        Returns:
            `Instances` for one image, a list of them for many: `pred_boxes` (x1, y1, x2, y2 in pixels of the image),
            `scores` and `pred_classes`, best first, on the model's device. A dict of arrays for a dict, see
            `sparse_detr.columns.detect_columns`.

        Raises:
            UserError: an option cannot be used.
            ImageError: an image cannot be used; names it and the reason.
        """
        if isinstance(images, Mapping):
            from sparse_detr.columns import detect_columns

            return detect_columns(images, lambda rows: self._detections(rows, options))
        return self._detections(images, options)

    def _detections(self, images: Any, options: dict[str, Any]) -> Any:
        """Return what a call does for images. A call must not call itself: Ray Data gives calls a single thread."""
        chosen = self._chosen(options)
        found: list[Instances] = []
        for batch in _batches(images, chosen.batch_size):
            inputs = [self._input(image, len(found) + i, chosen) for i, image in enumerate(batch)]
            found += [_best(instances, chosen) for instances in self._detect(inputs, chosen)]
        return found[0] if _is_one(images) else found

    def outputs(self, images: Any, *, attention_map: bool = True, **options: Any) -> Outputs:
        """Return all results of the detector for one image or for many in one padded batch.

        The detections equal those of a call up to rounding: the attention map needs another form of the attention.

        Args:
            images: as in a call of the predictor.
            attention_map: compute the decoder attention map.
            options: as in a call of the predictor; `batch_size` changes nothing.

        Raises:
            UserError: as a call of the predictor, or there is no image, or the model is Detectron2's own.
        """
        chosen = self._chosen(options)
        if not hasattr(self.model, "outputs"):
            raise UserError(f"a {type(self.model).__name__} gives detections alone; call the predictor itself")
        batch = [images] if _is_one(images) else list(images)
        if not batch:
            raise UserError("there is no image; give one or more")
        inputs = [self._input(image, i, chosen) for i, image in enumerate(batch)]
        with torch.no_grad():
            output = self.model.outputs(inputs, attention_map=attention_map, **self._budget(chosen))
            results = self.model.detections(output, inputs)
        return Outputs(inputs, output, [_best(result["instances"], chosen) for result in results])

    def read(self, image: Any, *, channel_order: str = "RGB", name: str = "the image") -> np.ndarray:
        """Return the upright image as (H, W, 3) uint8 RGB, before preprocessing; a call accepts it too.

        Args:
            image: as in a call of the predictor.
            name: of an image that is not a file, for the message.

        Raises:
            ImageError: the image cannot be used; says why.
        """
        from sparse_detr.data.any_image import read_any_image
        from sparse_detr.data.images import BadImageError

        _check_channel_order(channel_order)
        value_range = getattr(self._mapper, "value_range", None)
        try:
            return read_any_image(image, channel_order=channel_order, value_range=value_range, name=name)
        except BadImageError as error:
            raise ImageError(str(error)) from error

    def preprocess(self, image: Any, *, channel_order: str = "RGB") -> dict[str, Any]:
        """Return the model's input for an image: `image` (3, h, w), and `height` and `width` of the original.

        Args:
            image: as in a call of the predictor.
            channel_order: "RGB" or "BGR", of arrays and tensors.

        Raises:
            ImageError: the image cannot be used; says why.
        """
        return self._input(image, 0, self.options.updated({"channel_order": channel_order}))

    def detect(self, inputs: Sequence[dict[str, Any]], **options: Any) -> list[Instances]:
        """Detect objects in images that are preprocessed: those of one size go through the model together.

        Args:
            inputs: what `preprocess` returns, one dict an image.
            options: as in a call of the predictor; `batch_size` and `channel_order` change nothing.

        Returns:
            `Instances` of every image, as in a call of the predictor.

        Raises:
            UserError: an option cannot be used.
        """
        chosen = self._chosen(options)
        return [_best(instances, chosen) for instances in self._detect(list(inputs), chosen)]

    def save(self, folder: str | os.PathLike[str], *, notes: str = "") -> None:
        """Write all that this predictor needs into a folder, which `Predictor(folder)` loads on another machine.

        It holds the config, the weights that were loaded (the averaged ones with `ema=True`), the class names, the
        options of a call (in place of `ms:30` the budget that it means here) and a card, README.md. The device and the
        inference form are chosen where it is loaded.

        Args:
            folder: it is made; an earlier save in it is replaced.
            notes: what the card says of the model, such as its data and its scores; Markdown.

        Raises:
            UserError: the folder cannot be written, or a budget is an object of Python, which has no text.
        """
        from sparse_detr.config.model import build_detector
        from sparse_detr.engine.weights import load_trained_weights
        from sparse_detr.saved_folder import write_folder

        options = vars(self._chosen({}))
        if not isinstance(options["budget"], float | str | None):
            raise UserError(f"budget {options['budget']} is an object; give a number or a text to save the predictor")
        model = build_detector(self.config, device="cpu").eval()
        load_trained_weights(model, self.weights, ema=self._ema)
        write_folder(folder, self.config, model, self.class_names, options, notes)

    def _input(self, image: Any, index: int, options: Options) -> dict[str, Any]:
        """Return the model's input for an image, as the evaluation's mapper makes it."""
        from detectron2.data import transforms as T

        picture = self.read(image, channel_order=options.channel_order, name=f"image {index}")
        augmented = T.AugInput(picture if self._mapper.image_format == "RGB" else picture[:, :, ::-1])
        self._mapper.augmentations(augmented)
        tensor = torch.from_numpy(augmented.image.transpose(2, 0, 1).copy())
        name = {"file_name": os.fspath(image)} if isinstance(image, str | os.PathLike) else {}
        return {**name, "image": tensor, "height": picture.shape[0], "width": picture.shape[1]}

    def _detect(self, inputs: list[dict[str, Any]], options: Options) -> list[Instances]:
        """Return the detections of every image; those of one size go through the model together."""
        by_size: dict[torch.Size, list[int]] = {}
        for index, item in enumerate(inputs):
            by_size.setdefault(item["image"].shape, []).append(index)
        found: dict[int, Instances] = {}
        for indices in by_size.values():
            with torch.no_grad():
                results = self.model([inputs[index] for index in indices], **self._budget(options))
            found |= {index: result["instances"] for index, result in zip(indices, results, strict=True)}
        return [found[index] for index in range(len(inputs))]

    def _chosen(self, options: dict[str, Any]) -> Options:
        """Return the predictor's options, updated by those of a call."""
        chosen = self.options.updated(options)
        budget = resolved(chosen.budget, weights=self.weights, form=self._precision, ema=self._ema)
        chosen = replace(chosen, budget=budget)
        self._check(chosen)
        return chosen

    def _check(self, options: Options) -> None:
        """Refuse options that this model cannot use."""
        from sparse_detr.config.kinds import kind_of

        most = getattr(getattr(self.model, "postprocess", None), "num_detections", None)
        if options.top_k is not None and most is not None and options.top_k > most:
            remedy = kind_of(self.config).assignment("model.postprocess.num_detections", options.top_k)
            raise UserError(f"top_k is {options.top_k}, but the model gives at most {most} detections; set {remedy}")
        check_fits("budget", options.budget, self.model)

    def _budget(self, options: Options) -> dict[str, Any]:
        """Return the argument of the model that sets how much of it runs."""
        nothing = options.budget is None or (self.is_dense and is_real(options.budget))
        return {} if nothing else {"budget": options.budget}

    def __reduce__(self) -> tuple[Any, ...]:
        import cloudpickle  # a config may hold functions that pickle cannot find

        arguments = {"ema": self._ema, "class_names": self.class_names or None, "optimize": self._precision}
        arguments |= vars(self.options)
        return _restore, (cloudpickle.dumps(self.config), self.weights, self._stamp, arguments)


def _restore(config: bytes, weights: str, stamp: tuple[int, int] | None, arguments: dict[str, Any]) -> Predictor:
    """Unpickle a predictor; raise a `UserError` if the file of its weights has changed."""
    require_detectron2()
    if stamp is not None and os.path.isfile(weights) and file_stamp(weights) != stamp:
        raise UserError(f"{weights} has changed since the predictor was pickled; make a new Predictor")
    return Predictor(pickle.loads(config), weights, **arguments)


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name} {value!r} cannot be used; give a whole number, 1 or more")


def _check_channel_order(value: Any) -> None:
    if value not in CHANNEL_ORDERS:
        raise UserError(f"channel_order is {value!r}; give RGB or BGR")


def _names(class_names: Any) -> list[str]:
    """Return class names as a list."""
    if isinstance(class_names, str):
        raise UserError(f"class_names is the text {class_names!r}; give a list of names")
    if not isinstance(class_names, Sequence) or not all(isinstance(name, str) for name in class_names):
        raise UserError(f"class_names is {class_names!r}; give a list of names, one a class in their order")
    return list(class_names)


def _loaded(config: str | os.PathLike[str] | Config) -> Config:
    """Return a loaded config that the predictor may change."""
    from sparse_detr.config.kinds import kind_of
    from sparse_detr.config.load import load_config
    from sparse_detr.model_zoo import get_config_file

    if not isinstance(config, str | os.PathLike):
        return kind_of(config).copy()
    path = os.path.expanduser(os.fspath(config))
    if not os.path.exists(path):
        try:
            path = get_config_file(path)
        except UserError as error:
            raise UserError(f"there is no file {path!r} (working directory: {os.getcwd()}), and {error}") from error
    return load_config(path)


def _set_device(cfg: Config, device: str | torch.device | None) -> None:
    """Write the device to use into the config.

    Raises:
        UserError: it cannot be used here.
    """
    from sparse_detr.config.kinds import kind_of
    from sparse_detr.config.settings import device_problem

    if isinstance(device, int) and not isinstance(device, bool):
        device = f"cuda:{device}"  # as PyTorch reads a number
    wanted = str(kind_of(cfg).get("train.device") or "cpu" if device is None else device)
    if device is None and wanted.startswith("cuda") and not torch.cuda.is_available():
        wanted = "cpu"
    if problem := device_problem(wanted):
        raise UserError(f"device is {wanted!r}, {problem}; give another one, such as device='cpu'")
    kind_of(cfg).set("train.device", wanted)


def _weights_of(cfg: Config, weights: str | os.PathLike[str] | None) -> str:
    """Return the path or address of the checkpoint to load."""
    from sparse_detr.config.kinds import kind_of

    found = kind_of(cfg).get("train.init_checkpoint") or "" if weights is None else weights
    if not isinstance(found, str | os.PathLike):
        raise UserError(f"weights is a {type(found).__name__}; give the path of a checkpoint (torch.save writes one)")
    path = os.path.expanduser(os.fspath(found))
    if not path.strip():
        raise UserError("no weights are named; give weights=FILE, of a training or of `sparse-detr convert`")
    return os.path.abspath(path) if os.path.isfile(path) else path


def _checked_mapper(mapper: Any) -> Any:
    """Return the mapper; raise a `UserError` if its preprocessing needs a file."""
    image_format = getattr(mapper, "image_format", None)
    if not hasattr(mapper, "augmentations") or image_format not in CHANNEL_ORDERS:
        raise UserError(
            f"the config's dataloader.test.mapper is a {type(mapper).__name__} of image format {image_format!r}; a "
            "predictor needs one with `augmentations` and the `image_format` RGB or BGR, such as DetrDatasetMapper"
        )
    return mapper


def _opened(config: Any, weights: Any, class_names: Any, options: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """Return config, weights, class names and options; of a saved folder those that are not given."""
    from sparse_detr.saved_folder import is_saved_folder, read_folder

    if not is_saved_folder(config):
        return config, weights, class_names, options
    file, saved_weights, saved_names, saved_options = read_folder(config)
    names = saved_names if class_names is None else class_names
    return file, saved_weights if weights is None else weights, names, {**saved_options, **options}


def holds_weights(config: Any) -> bool:
    """Return whether a config is a whole detector: a file of `sparse-detr export`, or a folder of `save`."""
    from sparse_detr.saved_folder import is_saved_folder

    return _is_exported_file(config) or is_saved_folder(config)


def _is_exported_file(config: Any) -> bool:
    return isinstance(config, str | os.PathLike) and os.fspath(config).lower().endswith(EXPORTED_SUFFIXES)


def _is_one(images: Any) -> bool:
    """Return whether `images` is one image, usable or not; else it is many."""
    single = str | bytes | bytearray | memoryview | dict | Tensor
    known = isinstance(images, single) or hasattr(images, "shape") or hasattr(images, "read")
    return known or not isinstance(images, Iterable)


def _batches(images: Any, size: int) -> Iterator[list[Any]]:
    rest = iter([images] if _is_one(images) else images)
    while batch := list(islice(rest, size)):
        yield batch


def _best(instances: Instances, options: Options) -> Instances:
    """Return the detections that the options ask for."""
    chosen = instances[instances.scores >= options.score_threshold] if options.score_threshold > 0 else instances
    return chosen[: options.top_k] if options.top_k is not None else chosen
