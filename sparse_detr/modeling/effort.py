"""How much of a model a call runs: tokens that the encoder refines, decoder layers and queries.

A model has one set of weights; what a call leaves out is simply not run. Every decoder layer has losses of its own, and
queries come from a ranking of proposals, so every model can stop early, and a two-stage model can start fewer queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Union

import torch

from sparse_detr.modeling.selection import AnyBudget, UnknownBudgetError, deal, parse_budget

PARTS = {"decoder": "decoder_layers", "queries": "num_queries"}
"""The words of a text, and the fields that they set."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much of a model a call runs; None leaves a part as it is.

    Args:
        tokens: how many tokens the encoder refines, see `budget_of_call`.
        decoder_layers: the decoder stops after so many layers.
        num_queries: the best proposals that become queries, in two-stage models; a list has a number for every image.

    Raises:
        ValueError: a number is no whole number above 0, or the list is empty.
    """

    tokens: AnyBudget | None = None
    decoder_layers: int | None = None
    num_queries: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.num_queries is not None and not self.query_numbers:
            raise ValueError("num_queries is an empty list; give one number for every image")
        given = [("decoder_layers", self.decoder_layers), *(("num_queries", number) for number in self.query_numbers)]
        for name, value in given:
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
                raise ValueError(f"{name} must be a whole number above 0, got {value!r}")

    @property
    def query_numbers(self) -> Sequence[int]:
        """The numbers of queries that are asked for; () for the model's own."""
        if self.num_queries is None:
            return ()
        return self.num_queries if isinstance(self.num_queries, Sequence) else (self.num_queries,)

    def check(self, *, decoder_layers: int, num_queries: int | None) -> None:
        """Raise `ValueError` for what a model does not have.

        Args:
            decoder_layers: the layers of its decoder.
            num_queries: its largest number of queries; None for queries without a ranking.
        """
        if self.decoder_layers is not None and self.decoder_layers > decoder_layers:
            raise ValueError(
                f"decoder_layers is {self.decoder_layers}, but the decoder has {decoder_layers}; give at most that"
            )
        if self.query_numbers and num_queries is None:
            raise ValueError(
                f"num_queries is {self.num_queries}, but the queries of this model are learned and have no ranking, so "
                "it needs all; leave num_queries out"
            )
        if self.query_numbers and max(self.query_numbers) > num_queries:  # type: ignore[operator]
            raise ValueError(
                f"num_queries is {max(self.query_numbers)}, but the model has {num_queries}; give at most that"
            )

    def __str__(self) -> str:
        words = [] if self.tokens is None else [str(self.tokens)]
        words += [f"{word}:{getattr(self, name)}" for word, name in PARTS.items() if getattr(self, name) is not None]
        return "+".join(words)


FULL = Effort(tokens=1.0)
"""All of a model."""

AnyEffort = Union[Effort, AnyBudget]  # noqa: UP007 as for `AnyBudget`
"""What a call takes for a budget: an `Effort`, the text of one, or a budget of tokens alone."""


def effort_of_call(budget: AnyEffort | None) -> Effort:
    """Return what the `budget` of a call means; a text is read by `parse_effort`, anything else is for the tokens.

    Raises:
        ValueError: a text cannot be read.
    """
    if isinstance(budget, Effort):
        return budget
    return parse_effort(budget) if isinstance(budget, str) else Effort(tokens=budget)


def parse_effort(text: str) -> Effort:
    """Return the effort that a command line names.

    Args:
        text: a budget as `parse_budget` reads it, `decoder:2` for two decoder layers, `queries:100` for 100 queries, or
            several of them with a plus: `0.3+decoder:2+queries:100`.

    Raises:
        ValueError: the text names no effort, or a part of it twice.
    """
    fields: dict[str, Any] = {}
    for part in text.split("+"):
        word, _, number = part.strip().partition(":")
        name = PARTS.get(word, "tokens")
        value = _tokens(part.strip()) if name == "tokens" else _whole(part.strip(), number)
        if name in fields:
            raise ValueError(f"{text!r} says {name} twice; give each part once")
        fields[name] = value
    return Effort(**fields)


def _tokens(part: str) -> AnyBudget:
    try:
        return parse_budget(part)
    except UnknownBudgetError as error:
        raise ValueError(f"{error}; decoder:2 and queries:100 set layers and queries") from error


def _whole(part: str, number: str) -> int:
    if not number.isdecimal():
        raise ValueError(f"{part!r} has no whole number; give one above 0, like decoder:2 or queries:100")
    return int(number)


def first_iteration() -> int:
    """Return 0, the number of steps before a training."""
    return 0


@dataclass(frozen=True, kw_only=True)
class ElasticEffort:
    """What a training step runs of the decoder, drawn anew in every step; see `deal` for what is drawn how often.

    Decoder layers are drawn for the step: all images have the same number. The draw depends on the iteration alone, so
    all processes draw the same, and a resumed training draws what it would have drawn. Layers after the drawn one have
    no loss and no gradient in that step.

    Queries are drawn for every image, from PyTorch's global CPU generator.

    Args:
        layer_range: smallest and largest number of decoder layers; None for all layers.
        query_range: smallest and largest number of queries; None for all queries.
        iteration: returns the number of optimiser steps that the training has taken.

    Raises:
        ValueError: a range has no two whole numbers, does not start above 0, or falls.
    """

    layer_range: Sequence[int] | None = None
    query_range: Sequence[int] | None = None
    iteration: Callable[[], int] = first_iteration

    def __post_init__(self) -> None:
        for name in ("layer_range", "query_range"):
            ends = getattr(self, name)
            if ends is None:
                continue
            object.__setattr__(self, name, tuple(ends))
            whole = all(isinstance(end, Integral) for end in ends)
            if not whole or len(ends) != 2 or not 1 <= ends[0] <= ends[1]:
                raise ValueError(f"{name} is {list(ends)}; give two whole numbers above 0, the smaller first")

    @property
    def largest(self) -> Effort:
        """The largest effort that can be drawn."""
        return Effort(
            decoder_layers=None if self.layer_range is None else self.layer_range[-1],
            num_queries=None if self.query_range is None else self.query_range[-1],
        )

    def draw(self, batch_size: int) -> Effort:
        """Draw what a step of so many images runs."""
        return Effort(decoder_layers=self._draw_layers(), num_queries=self._draw_queries(batch_size))

    def _draw_layers(self) -> int | None:
        if self.layer_range is None:
            return None
        generator = torch.Generator().manual_seed(self.iteration())
        return _deal_whole(self.layer_range, 1, generator)[0]

    def _draw_queries(self, batch_size: int) -> list[int] | None:
        return None if self.query_range is None else _deal_whole(self.query_range, batch_size)


def _deal_whole(ends: Sequence[int], number: int, generator: torch.Generator | None = None) -> list[int]:
    smallest, largest = ends
    return deal(
        smallest,
        largest,
        lambda: int(torch.randint(smallest, largest + 1, (), generator=generator)),
        number,
        generator,
    )
