"""FLOPs of our operators in fvcore's counter, without importing it: it loads PyTorch, which takes seconds."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

COUNTER = "fvcore.nn.flop_count"


def teach_flop_counter() -> None:
    """Add our flop handles to fvcore's counter: now if it is imported, else as soon as anything imports it.

    May be called any number of times.
    """
    if COUNTER in sys.modules:
        _register()
    elif not any(isinstance(finder, _Teacher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Teacher())


def _register() -> None:
    from sparse_detr.analysis.flops import register_flop_handles

    register_flop_handles()


class _Teacher:
    """Finds the counter as Python would, and adds our handles after its code has run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != COUNTER or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        loader.exec_module = execute_and_register
        return spec
