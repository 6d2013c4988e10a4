"""Check of a server's address before a model is loaded."""

import socket

from ghosttrace.errors import UserError


def check_address(host: str, port: int) -> None:
    """Check that the server can listen on an address.

    Raises:
        UserError: the port is in use, or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise UserError(
            f"cannot listen on --host {host} --port {port} ({error.strerror}): choose another host or port"
        ) from error
