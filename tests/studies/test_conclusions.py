"""Every study agrees where the paper's finding holds in its numbers, and does not where it is broken."""

import pytest

from sparse_detr.studies import complexity, criteria, depth, other_rho, referred, teacher

DENSE = {"scorer": "all tokens", "rho": 1.0, "AP": 46.0, "AP50": 60.0}


def of_referred(*ratios, density=4.1, images=60):
    return {
        f"model seed {seed}": {
            "name": "model",
            "seed": str(seed),
            "ratios": [ratio] * images,
            "ratio": ratio,
            "bilinear": 0.6,
            "most": 0.2,
            "levels": [0.4, 0.8],
            "density": density,
        }
        for seed, ratio in enumerate(ratios)
    }


def of_other_rho(aps, own=0.3, seeds=3):
    return {
        f"m seed {seed} at {rho}": {
            "name": "m",
            "seed": str(seed),
            "own": own,
            "rho": rho,
            "images": 5000,
            "encoder_gigaflops": 1.0,
            "total_gigaflops": 2.0,
            "AP": ap,
            "AP50": ap,
        }
        for seed in range(seeds)
        for rho, ap in aps.items()
    }


def of_criteria(aps, seeds=3):
    """Return results of {rho: (attention map, objectness, random)} and the dense model."""
    results = {f"dense {seed}": {**DENSE, "seed": seed} for seed in range(seeds)}
    for rho, values in aps.items():
        for scorer, ap in zip(criteria.SCORERS, values, strict=True):
            for seed in range(seeds):
                results[f"{scorer} {rho} {seed}"] = {"scorer": scorer, "rho": rho, "seed": seed, "AP": ap, "AP50": ap}
    return results


def of_depth(with_loss, without_loss, seeds=3):
    return {
        f"{layers} {supervised} {seed}": {"depth": layers, "supervised": supervised, "seed": seed, "AP": ap, "AP50": ap}
        for supervised, aps in ((True, with_loss), (False, without_loss))
        for layers, ap in aps.items()
        for seed in range(seeds)
    }


def of_teacher(aps, seeds=3):
    return {
        f"{rho} {seed}": {"rho": rho, "seed": seed, "AP": ap, "AP50": ap}
        for rho, ap in aps.items()
        for seed in range(seeds)
    }


def of_complexity(total, published, rho=1.0):
    cost = {"encoder_gigaflops": 80.0, "decoder_gigaflops": 20.0, "selection_gigaflops": 0.0, "total_gigaflops": total}
    return {"m": {"name": "m", "rho": rho, "weights": 40_000_000, **cost, "published_gigaflops": published}}


CASES = [
    (referred, of_referred(0.43, 0.49), True),
    (referred, of_referred(0.89, 0.91), False),
    (other_rho, of_other_rho({0: 50.0, 0.1: 44.0, 0.3: 50.0, 0.5: 49.6, 1.0: 51.0}), True),
    (other_rho, of_other_rho({0: 50.0, 0.1: 44.0, 0.3: 50.0, 0.5: 45.0}), False),
    (other_rho, of_other_rho({0: 50.0, 0.1: 44.0}), None),
    (other_rho, of_other_rho({0: 50.0, 0.5: 50.2, 1.0: 40.0}), True),
    (criteria, of_criteria({0.1: (45.0, 44.0, 41.0), 0.5: (46.0, 46.3, 45.0)}), True),
    (criteria, of_criteria({0.1: (45.0, 44.0, 44.5), 0.5: (46.0, 46.0, 45.0)}), False),
    (criteria, of_criteria({0.1: (43.0, 44.0, 41.0)}), False),
    (depth, of_depth({3: 44.0, 12: 46.0}, {3: 43.5, 12: 5.0}), True),
    (depth, of_depth({3: 44.0, 12: 46.0}, {3: 41.0, 12: 45.0}), False),
    (depth, of_depth({3: 44.0, 12: 43.0}, {3: 44.0, 12: 5.0}), False),
    (teacher, of_teacher({1.0: 46.0, 0.1: 43.0, 0.45: 45.9}), True),
    (teacher, of_teacher({1.0: 46.0, 0.1: 43.0, 0.45: 44.0}), False),
    (complexity, of_complexity(178.0, 177.3), True),
    (complexity, of_complexity(182.0, 177.3), False),
    (complexity, of_complexity(110.0, 105.4, rho=0.1), True),
    (complexity, of_complexity(110.0, None), None),
]


@pytest.mark.parametrize(("study", "results", "agrees"), CASES)
def test_the_rule_of_a_study_holds_or_not(study, results, agrees):
    conclusion = study.conclude(results)
    assert conclusion.agrees is agrees
    assert not conclusion.cautions
    assert "rule:" in conclusion.sentence


@pytest.mark.parametrize(("study", "results", "agrees"), CASES)
def test_every_study_has_a_table_and_a_picture(study, results, agrees, tmp_path):
    head, rows = study.table(results)
    assert rows
    assert all(len(row) == len(head) for row in rows)
    study.draw(results, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("study", "results", "caution"),
    [
        (referred, of_referred(0.45, density=8.0), "8.0 sampling points here and 4.1 in the paper"),
        (referred, of_referred(0.45, images=10), "10 images are few"),
        (other_rho, of_other_rho({0: 50.0, 0.5: 50.0}, seeds=1), "1 seed cannot tell the spread"),
        (criteria, of_criteria({0.1: (45.0, 44.0, 41.0)}, seeds=2), "2 seeds cannot tell the spread"),
        (depth, of_depth({3: 2.0, 12: 2.0}, {3: 1.0, 12: 0.0}), "the best model has 2.0 AP: all have hardly learned"),
        (teacher, of_teacher({1.0: 46.0, 0.1: 46.0}), "the rho nearest to 45 % is 10 %"),
    ],
)
def test_a_study_that_is_too_small_warns(study, results, caution):
    assert any(caution in text for text in study.conclude(results).cautions)


def test_models_that_have_hardly_learned_neither_agree_nor_disagree():
    assert criteria.conclude(of_criteria({0.1: (2.0, 1.0, 0.5)}, seeds=3)).agrees is not None  # the dense model has
    assert depth.conclude(of_depth({3: 1.0, 12: 2.0}, {3: 1.0, 12: 0.0})).agrees is None
    assert teacher.conclude(of_teacher({1.0: 0.1, 0.45: 0.1})).agrees is None


def test_what_is_lost_far_from_the_rho_of_the_training_is_said_but_does_not_decide():
    conclusion = other_rho.conclude(of_other_rho({0: 50.0, 0.5: 50.2, 1.0: 40.0}))
    assert "+0.2 AP, of m at 50 %; further away the lowest change is -10.0 AP, of m at 100 %" in (conclusion.sentence)
    alone = other_rho.conclude(of_other_rho({0: 50.0, 1.0: 40.0}))
    assert alone.agrees is None
    assert "-10.0 AP" in alone.sentence


def test_dense_models_have_no_row_at_other_rho():
    results = of_other_rho({0: 50.0, 0.5: 50.0})
    results["dense at 0.5"] = {"name": "dense", "seed": "0", "own": 1.0, "rho": 0.5, "AP": None}
    _, rows = other_rho.table(results)
    assert {row[0] for row in rows} == {"m"}
