"""Bytes between ranks, by hand on the small shape."""

from dataclasses import replace

import pytest

from xtuner_plugins.planning.communication import gathered_weights, traffic_of
from xtuner_plugins.planning.job import Strategy
from xtuner_plugins.planning.strategies import plain


def test_one_process_sends_nothing(warm_up):
    assert traffic_of(warm_up, plain(1)).total == 0


@pytest.mark.parametrize("accumulation", [1, 16])
def test_each_strategy_by_hand(warm_up, accumulation):
    job, trained = replace(warm_up, accumulation=accumulation), warm_up.trained
    share = 3 / 4
    ddp = traffic_of(job, plain(4))
    assert (ddp.gradients, ddp.weights, ddp.gathered) == (int(share * 8 * trained), 0, 0)
    one, two, three = (traffic_of(job, Strategy("x", 4, stage)) for stage in (1, 2, 3))
    assert one.gradients == ddp.gradients and one.weights == two.weights == int(share * 2 * trained)
    assert two.gradients == three.gradients == int(share * accumulation * 2 * trained)
    assert three.gathered == int(share * accumulation * 2 * gathered_weights(job)) and one.gathered == 0


def test_a_frozen_encoder_is_gathered_once(warm_up):
    shape = warm_up.shape
    assert gathered_weights(warm_up) == shape.encoder.parameters + 2 * shape.projector + 2 * shape.llm.parameters
    trains = replace(warm_up, last_layers=1)
    assert gathered_weights(trains) - gathered_weights(warm_up) == shape.encoder.parameters
