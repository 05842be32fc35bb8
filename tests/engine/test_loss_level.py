"""The rule that tells an exploding loss from a noisy one."""

import json
import math
import random

import pytest

from xtuner_plugins.engine.loss_level import NUM_GUESSES, LossLevel

GUESSING = math.log(151_674)


def most_in_a_row(losses, guessing=GUESSING):
    """The most high steps in a row that a run of these losses has."""
    level = LossLevel(guessing)
    most = 0
    for loss in losses:
        level.add(loss)
        most = max(most, level.num_high)
    return most


def noisy(kind, step):
    """Losses of healthy runs, noisier than any that was seen."""
    draw = random.gauss
    return {
        # A new projector: from the loss of guessing down to 2, with batches that differ by half.
        "warm-up": (2 + 10 * math.exp(-step / 50)) * math.exp(draw(0, 0.5)),
        # A single sample per step, with answers of one word: mostly known, one in four plainly wrong.
        "one word": random.choice([0.01, 0.05, 0.2, random.uniform(3, 12)]),
        # Samples that are learned by heart.
        "by heart": 3 * math.exp(-step / 100) * math.exp(draw(0, 1.5)),
    }[kind]


@pytest.mark.parametrize("kind", ["warm-up", "one word", "by heart"])
def test_noise_is_no_explosion(kind):
    random.seed(0)
    assert most_in_a_row(noisy(kind, step) for step in range(5000)) < 10


@pytest.mark.parametrize("before, after", [(0.01, 3), (1.0, 4), (2.0, 11.9), (5.0, 11.9), (8.0, 40)])
def test_an_explosion_is_high_from_its_first_step_on(before, after):
    level = LossLevel(GUESSING)
    for _ in range(NUM_GUESSES + 1):
        assert not level.add(before)
    assert [level.add(after) for _ in range(20)] == [True] * 20 and level.num_high == 20
    assert level.level == before  # what is high is no part of it
    assert not level.add(before) and level.num_high == 0


def test_a_loss_that_climbs_from_step_to_step_is_found():
    """By two percent per step: the median is 50 steps behind."""
    assert most_in_a_row(1.0 * 1.02 ** max(0, step - 200) for step in range(400)) >= 20


def test_the_first_steps_are_judged_by_the_loss_of_guessing():
    """One easy batch at the start isn't the level of a run."""
    assert most_in_a_row([0.1, *[3.0] * 50]) == 0
    assert most_in_a_row([3.0, *[2.1 * GUESSING] * 50]) == 50


def test_a_level_that_is_restored_judges_the_same():
    whole, first, second = LossLevel(5.0), LossLevel(5.0), LossLevel(7.0)
    losses = [1.0, 2.0, 1.5] * 10 + [9.0] * 3 + [1.0, 5.0]
    for loss in losses[:32]:
        whole.add(loss)
        first.add(loss)
    second.restore(json.loads(json.dumps(first.state())))
    assert second.num_high == 2
    assert (
        [second.add(loss) for loss in losses[32:]] == [whole.add(loss) for loss in losses[32:]] == [True, False, True]
    )
    assert second.state() == whole.state()
