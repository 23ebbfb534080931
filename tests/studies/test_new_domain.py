"""The study of L14's black cats: real rows, and rows made up for each verdict."""

import json
from dataclasses import replace

import pytest
import torch

from batchnorm.studies import new_domain as study
from batchnorm.studies._domains import DOMAINS, seen_in
from batchnorm.studies._recovery import ALONE, ANEW, AS_TRAINED, CLEAN, SIZES, SKEWED, WITH_PRIOR
from batchnorm.studies._trial import Setup
from studies.forced import rows_of

SHIELDED = "loss avoided in a new domain"


def small(trial):
    return replace(trial, data="digits8x8", steps=60, every=60)


def real(seeds=3):
    trials = [t for t in study.trials(Setup()) if t.activation == "relu" and t.seed < seeds]
    return rows_of(list(map(small, trials)))


def made(trained=0.4, anew=0.8, plain=0.3, skewed=0.8, few=0.9, seeds=3, guessing=0.1, **about):
    about = {"guessing": guessing, "test_examples": 1000, "images": 512} | about
    for seed in range(seeds):
        for batch_norm in (False, True):
            row = {"activation": "relu", "seed": seed, "batch_norm": batch_norm, **about}
            yield row | {"domain": CLEAN, "way": AS_TRAINED, "accuracy": 0.9}
            for domain in DOMAINS:
                row |= {"domain": domain}
                as_trained = trained if batch_norm else plain
                yield row | {"way": AS_TRAINED, "accuracy": as_trained}
                for size in SIZES if batch_norm else ():
                    new = row | {"way": ANEW, "size": size, "accuracy": anew}
                    yield new | {"old": ALONE}
                    yield new | {"old": WITH_PRIOR}
            if batch_norm:
                row |= {"domain": CLEAN, "size": 32, "old": ALONE}
                yield row | {"way": SKEWED, "accuracy": skewed}
                yield row | {"way": ANEW, "accuracy": few}


def words(rows):
    return {v.metric.rpartition(",")[0]: v.verdict for v in study.measure(list(rows))}


def test_trials_are_both_arms_over_paired_seeds():
    trials = study.trials(Setup())
    normed = {t for t in trials if t.batch_norm}
    assert {replace(t, batch_norm=False) for t in normed} == set(trials) - normed
    assert len(normed) == 5 * len({t.activation for t in trials})


def test_data_that_are_no_images_are_refused_with_the_reason():
    reason = study.trials(Setup(data="breast_cancer"))
    assert reason.startswith("data 'breast_cancer' has examples of shape (30,): images")


def test_real_rows_repeat_and_fit():
    trial = small(study.trials(Setup())[-1])
    assert rows_of([trial]) == rows_of([trial])
    rows = real()
    json.dumps(rows, allow_nan=False)
    found = words(rows)
    assert found["recovered, brightened"] == "supported"
    alone = [r for r in rows if r.get("size") == 1 and r["old"] == ALONE]
    assert {r["accuracy"] for r in alone} == {None}, "one example has no variance"
    for chart in study.charts(rows).values():
        chart.to_dict()


def test_domains():
    x = torch.rand(4, 1, 8, 8)
    for domain in DOMAINS:
        new = seen_in(domain, x, (0.0, 1.0), 3)
        assert new.shape == x.shape
        assert not torch.allclose(new, x)
        assert torch.equal(new, seen_in(domain, x, (0.0, 1.0), 3))
    flat = torch.full((1, 2, 5, 5), 0.7)
    torch.testing.assert_close(seen_in("blurred", flat, (0.0, 1.0), 0), flat)
    with pytest.raises(ValueError, match="no domain 'rotated': expected one of inverted, dimmed"):
        seen_in("rotated", x, (0.0, 1.0), 0)


@pytest.mark.parametrize(
    ("values", "metric", "word"),
    [
        ({}, "recovered, 512 images", "supported"),
        ({"anew": 0.6}, "recovered, 512 images", "not supported"),
        ({"anew": 0.2}, "recovered, 512 images", "contradicted"),
        ({"anew": None}, "recovered, 512 images", "inconclusive"),
        ({"trained": 0.9}, "recovered, inverted", "inconclusive"),
        ({}, SHIELDED, "supported"),
        ({"plain": 0.39}, SHIELDED, "not supported"),
        ({"plain": 0.6}, SHIELDED, "contradicted"),
        ({}, "statistics of two classes", "contradicted"),
        ({"skewed": 0.9}, "statistics of two classes", "supported"),
        ({"few": 0.89}, "statistics of few images", "not supported"),
        ({"guessing": 0.85}, "recovered, 512 images", "inconclusive"),
        ({"guessing": 0.85}, "statistics of few images", "inconclusive"),
        ({"guessing": 0.85}, SHIELDED, "inconclusive"),
    ],
)
def test_each_verdict_can_come_out(values, metric, word):
    assert words(made(**values))[metric] == word


def test_seeds_that_disagree_and_one_that_is_lost():
    rows = [r for seed in range(3) for r in made(anew=0.8 - 0.3 * (seed == 0)) if r["seed"] == seed]
    assert words(rows)["recovered, 512 images"] == "inconclusive"
    rows = [r | ({"accuracy": None} if r["seed"] == 0 else {}) for r in made()]
    headline = study.measure(rows)[0]
    assert (headline.metric, headline.verdict) == (f"{SHIELDED}, ReLU", "supported")
    assert headline.caution == "1 of 3 seeds gave no number, and are left out."


def test_the_headline_is_the_lectures_claim_of_the_network_that_learns_without_batch_norm():
    rows = [r | {"activation": network} for network in ("sigmoid", "relu") for r in made(plain=0.6)]
    metrics = [v.metric for v in study.measure(rows)]
    assert metrics[:: len(metrics) // 2] == [f"{SHIELDED}, ReLU", f"{SHIELDED}, sigmoid"]
    assert metrics[1] == "recovered, 512 images, ReLU"


def test_a_network_that_has_learned_nothing_has_nothing_to_lose():
    rows = [r | ({} if r["batch_norm"] else {"accuracy": 0.1}) for r in made()]
    shielded = next(v for v in study.measure(rows) if v.metric.startswith(SHIELDED))
    assert shielded.verdict == "inconclusive"
    why = "In 3 of 3 seeds the network is right on less than 10 points more than by guessing"
    assert shielded.caution.startswith(why), "without batch norm, and that counts too"


def test_an_arm_that_has_learned_less_has_less_to_lose_and_that_is_said():
    def shielded(arm, clean):
        less = {"accuracy": clean}
        rows = [
            r | (less if r["batch_norm"] is arm and r["domain"] == study.CLEAN else {})
            for r in made()
        ]
        return next(v for v in study.measure(rows) if v.metric.startswith(SHIELDED))

    assert shielded(False, 0.6).caution == (
        "Before any shift the network without batch norm is right on 60.0 %, the one with it on "
        "90.0 % (medians): what has learned less has less to lose."
    )
    assert "the network with batch norm is right on 70.0 %, the one without it on" in (
        shielded(True, 0.7).caution
    )
    assert shielded(False, 0.89).caution == ""


def test_what_weakens_a_verdict_is_said():
    found = {v.metric.rpartition(",")[0]: v for v in study.measure(list(made(images=60)))}
    assert found["recovered, 512 images"].caution == "There were only 60 new images."
    assert not found[SHIELDED].caution
    few = {v.metric.rpartition(",")[0]: v for v in study.measure(list(made(test_examples=100)))}
    assert few["statistics of few images"].caution == (
        "Judged on only 100 test examples, of which one is 1 points, more than the 0.5 that count."
    )
    assert not few["recovered, 512 images"].caution, "there 2 points count"
    untaught = study.measure(list(made(guessing=0.85)))[0]
    assert untaught.caution.startswith(
        "In 3 of 3 seeds the network is right on less than 10 points"
    )


def two_kinds():
    y = torch.arange(300) % 2
    return torch.rand(300, 1, 8, 8) * 0.5 + 0.5 * y[:, None, None, None], y


def test_two_classes_of_two_are_all_of_them():
    trials = study.trials(Setup(data=f"{__name__}:two_kinds"))
    mine = [t for t in trials if t.activation == "relu"]
    rows = rows_of([replace(t, steps=60, every=60) for t in mine])
    assert words(rows)["statistics of two classes"] == "inconclusive"
    learned = [r for r in rows if r["way"] == AS_TRAINED and r["domain"] == CLEAN]
    assert min(r["accuracy"] for r in learned) > 0.9
