"""What was measured, in sentences for a reader who does not know the paper."""

from __future__ import annotations

from collections.abc import Sequence

from sparse_detr.explain.compare import Difference
from sparse_detr.explain.faithfulness import Comparison, Explanation
from sparse_detr.explain.ledger import BACKGROUND, Ledger, Proposal
from sparse_detr.explain.minimal_budget import FoundFrom, by_size
from sparse_detr.explain.sanity import Sanity

MADE_FROM, MATTERS = 0.15, 0.05
"""Faithfulness numbers from which on a detection is said to be made mostly of its tokens, or to gain from them."""
STAYS = 0.97


def detection_sentences(explanation: Explanation, name: str) -> list[str]:
    """Say what one detection was made from.

    Args:
        explanation: of the detection.
        name: of its class.
    """
    target = explanation.target
    assert target.score is not None
    start = f"This detection is of class {name} and has a score of {target.score:.2f}."
    if explanation.dropped is None:
        return [
            start,
            "No token under its box is refined, so there is none to drop.",
            _forced(explanation),
        ]
    sentences = [start, _conclusion(explanation.dropped), _dropped(explanation.dropped, target.score, "under its box")]
    if explanation.alone is not None:
        sentences.append(_alone(explanation.alone))
    if explanation.points is not None:
        sentences.append(_dropped(explanation.points, target.score, "where its query looked (its sampling points)"))
    return [*sentences, _forced(explanation), _number(explanation.dropped)]


def _conclusion(found: Comparison) -> str:
    count = found.explained.counts[-1]
    tokens, s = _tokens(count), "s" if count == 1 else ""
    if found.faithfulness >= MADE_FROM:
        return f"It was made mostly from {tokens} under its box."
    if found.faithfulness >= MATTERS:
        return f"The {tokens} under its box help{s}, but the detection does not depend on {'it' if s else 'them'}."
    if found.faithfulness > -MATTERS:
        return f"The {tokens} under its box matter{s} little more than {'a random one' if s else 'random ones'}."
    return f"The {tokens} under its box matter{s} less than {'a random one' if s else 'random ones'}."


def _dropped(found: Comparison, score: float, where: str) -> str:
    count = found.explained.counts[-1]
    without = _becomes(score, found.explained.scores[-1])
    random = _becomes(score, found.random.scores[-1], start=False)
    are = "is" if count == 1 else "are"
    return (
        f"If the {_tokens(count)} {where} {are} not refined, its score {without}; "
        f"without {count} random token{'' if count == 1 else 's'} it {random}."
    )


def _becomes(before: float, after: float, *, start: bool = True) -> str:
    if after == 0:
        return "falls to 0: it is not found any more"
    if after > before / STAYS:
        return f"rises from {before:.2f} to {after:.2f}" if start else f"rises to {after:.2f}"
    if after >= STAYS * before:
        return f"stays at {after:.2f}"
    return f"falls from {before:.2f} to {after:.2f}" if start else f"falls to {after:.2f}"


def _alone(found: Comparison) -> str:
    nothing, alone = found.explained.scores[0], found.explained.scores[-1]
    return (
        f"With {_tokens(found.explained.counts[-1])} under its box refined and no others, its score is {alone:.2f}; "
        f"with no token refined at all, {nothing:.2f}."
    )


def _forced(explanation: Explanation) -> str:
    count = int(explanation.under.sum())
    tokens = "the one token under its box is" if count == 1 else f"all {count} tokens under its box are"
    return f"If {tokens} refined, its score is {explanation.forced:.2f}."


def _number(found: Comparison) -> str:
    return (
        f"Faithfulness number: {found.faithfulness:.2f} (0: these tokens matter no more than random ones; "
        "1: without them the detection is gone, without random ones it is unchanged)."
    )


def _tokens(count: int) -> str:
    return f"{count} refined token" if count == 1 else f"{count} tokens"


def found_from(row: FoundFrom) -> str:
    """Say from which budget on an object is found."""
    if row.smallest is None:
        return "not found at any budget"
    text = f"found from rho = {row.smallest:.2g} on"
    if row.smallest == row.budgets[0]:
        text += ", the smallest budget tried"
    if row.lost_again:
        text += f", but not at {', '.join(f'{budget:g}' for budget in row.lost_again)}"
    return text


def size_sentences(rows: Sequence[FoundFrom]) -> list[str]:
    """Say for every size of object from which budget on half of them are found."""
    sentences = []
    for size, facts in by_size(rows).items():
        if not facts["objects"]:
            continue
        never = f"; {facts['never_found']} never" if facts["never_found"] else ""
        half = "" if facts["median"] is None else f", half of the found ones from rho = {facts['median']:.2g} on"
        sentences.append(f"{size}: {facts['objects']} object{'' if facts['objects'] == 1 else 's'}{half}{never}")
    again = sum(bool(row.lost_again) for row in rows)
    if again:
        sentences.append(f"{again} of {len(rows)} are lost again at a larger budget: more tokens are not always better")
    return sentences


def ledger_sentences(ledger: Ledger) -> list[str]:
    """Say where the tokens of the encoder are spent."""
    kept = ledger.kept_by_size
    total = max(sum(kept.values()), 1)
    objects = ", ".join(
        f"{count / total:.0%} on {name} objects" for name, count in kept.items() if count and name != BACKGROUND
    )
    return [
        f"The encoder takes {_two_digits(ledger.gigaflops)} GFLOPs. Of the tokens that it refines, "
        f"{ledger.background_share:.0%} lie on the background{', ' + objects if objects else ''}."
    ]


def _two_digits(number: float) -> str:
    """Return two significant digits, and all digits before the point."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def proposal_sentence(proposal: Proposal) -> str:
    """Say what shares by level would save and lose on all images together."""
    tried = (
        f"--budget {proposal.text} would refine {proposal.tokens:,} instead of {proposal.tokens_now:,} tokens a layer; "
        f"of {proposal.detections} detections it loses {proposal.lost}, and scores change by "
        f"{proposal.score_change:+.3f}"
    )
    return (
        f"{tried}."
        if proposal.is_better
        else f"No shares by level are clearly better than the present budget: {tried}."
    )


def sanity_sentence(sanity: Sanity) -> str:
    """Say whether the explanation changes when the weights are random."""
    numbers = "; ".join(
        f"{name} {value:.2f}"
        for name, value in (("trained", sanity.trained), ("random weights", sanity.random))
        if value is not None
    )
    maps = "" if sanity.correlation is None else f"rank correlation of the {sanity.map_name} {sanity.correlation:.2f}, "
    score = "" if sanity.random_score is None else f", of detections with a mean score of {sanity.random_score:.2f}"
    return f"Sanity check against random weights: {maps}faithfulness numbers: {numbers or 'none'}{score}."


def difference_sentence(difference: Difference) -> str:
    """Say what the second model gains and loses."""
    neither = f", neither finds {len(difference.neither)}" if difference.neither else ""
    tokens = ""
    if difference.shared_tokens is not None:
        levels = ", ".join(f"{share:.0%}" for share in difference.shared_tokens)
        tokens = f"; the same refined tokens (intersection over union, by level): {levels}"
    return (
        f"The second model finds {len(difference.both)} of the same objects, gains {len(difference.gained)} and loses "
        f"{len(difference.lost)}{neither}{tokens}."
    )
