import socket

import pytest

from xtuner_plugins.serving.listening import listen


def test_a_free_port_and_a_taken_one():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5),
            pytest.raises(ValueError, match="choose another"),
        ):
            listen("127.0.0.1", port)
