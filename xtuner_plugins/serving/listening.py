"""The address that a server listens on."""

import socket


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; from then on the port is taken, and who asks early waits.

    Args:
        port: 0 takes a free one.

    Raises:
        ValueError: it can't be taken.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        raise ValueError(f"can't listen on {host}:{port} ({error}); choose another port or host") from None
    return listener
