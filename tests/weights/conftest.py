"""Fixtures of this room."""

import pytest

from xtuner_plugins.weights.errors import CheckpointError


@pytest.fixture(scope="session")
def refused():
    """refused(words, function, *arguments): the call is refused by one error type, in one line with these words."""

    def refused(words, function, *args, error=CheckpointError, **options):
        with pytest.raises(error, match=words) as told:
            function(*args, **options)
        assert "\n" not in str(told.value), told.value

    return refused
