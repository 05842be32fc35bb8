import math

import pytest

from xtuner_plugins.engine.run_length import check_length


@pytest.mark.parametrize("length", [(1, None), (None, 0.5), (10, 2)])
def test_one_of_both_is_enough(length):
    check_length(*length)


@pytest.mark.parametrize(
    "length, message",
    [
        ((None, None), "needs max_iters .* or max_epochs"),
        ((0, None), "max_iters=0 is no length"),
        ((10, -1), "max_epochs=-1"),
        ((None, math.inf), "max_epochs=inf"),
        ((None, math.nan), "max_epochs=nan"),
    ],
)
def test_a_run_has_an_end_and_a_step(length, message):
    with pytest.raises(ValueError, match=message):
        check_length(*length)
