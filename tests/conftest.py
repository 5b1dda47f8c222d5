"""What takes longest starts first, so that `make test`'s two processes end together."""

from pathlib import Path

LONGEST_FIRST = ("test_overfit.py", "test_golden.py", "test_model_cost.py", "test_twins.py")


def pytest_collection_modifyitems(items):
    names = {name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: names.get(Path(item.path).name, len(names)))
