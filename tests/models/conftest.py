"""No test sees what another one has left in MMEngine's message hub."""

import pytest
from mmengine.logging import MessageHub


@pytest.fixture(autouse=True)
def hub():
    hub = MessageHub.get_current_instance()
    hub.runtime_info.clear()
    return hub
