"""The fixture of the room below."""

from tests.weights.conftest import refused  # noqa: F401
