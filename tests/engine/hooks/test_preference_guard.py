"""Preference tuning that goes wrong while its loss falls is told, once."""

from types import SimpleNamespace

import pytest

from xtuner_plugins.engine.hooks import preference_guard
from xtuner_plugins.engine.hooks.preference_guard import PreferenceGuardHook


@pytest.fixture
def said(monkeypatch):
    found = []
    monkeypatch.setattr(preference_guard, "print_log", lambda text, *_: found.append(text))
    return found


def train(steps, **settings):
    hook = PreferenceGuardHook(window=5, **settings)
    hook.before_train(None)
    for number, outputs in enumerate(steps):
        hook.after_train_iter(SimpleNamespace(iter=number), number, [], outputs)


def step(per_token=-1.0, correlation=0.0):
    return {"pairs": 8.0, "log_prob_chosen": 20 * per_token, "tokens_chosen": 20.0, "length_correlation": correlation}


def test_a_healthy_run_is_quiet(said):
    train([step(-1.0 - 0.01 * number, 0.5) for number in range(50)] + [{}])
    assert said == []


def test_chosen_answers_that_get_improbable(said):
    train([step()] * 5 + [step(-1.0 - 0.1 * number) for number in range(40)])
    assert len(said) == 1
    assert (
        said[0].startswith("step 18: the chosen answers get improbable: -2.00 nats") or "-1.00 in the first" in said[0]
    )
    assert "Add sft to objectives" in said[0]


@pytest.mark.parametrize(("correlation", "way"), [(0.9, "longer"), (-0.9, "shorter")])
def test_rewards_that_follow_the_length(said, correlation, way):
    train([step(correlation=correlation)] * 4 + [step()] + [step(correlation=correlation)] * 20)
    assert len(said) == 1 and said[0].startswith("step 10: the reward follows the length") and way in said[0]


def test_switched_off(said):
    bad = [step()] * 5 + [step(-9.0, 0.99)] * 20
    train(bad, fall=None, correlation=None)
    assert said == []


@pytest.mark.parametrize("settings", [{"fall": 0}, {"correlation": 1.5}, {"window": 0}])
def test_unfit_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        PreferenceGuardHook(**settings)
