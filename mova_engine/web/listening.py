"""The socket that a server listens on, and serving an application on it."""

import socket
from typing import TYPE_CHECKING

from mova_engine.errors import MovaError

if TYPE_CHECKING:
    from fastapi import FastAPI


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that is bound; port 0 takes any free one. MovaError where the address cannot be had."""
    try:
        found = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MovaError(f"cannot listen on {host} port {port}: {reason}; give another --port or --host") from None
    found.set_inheritable(True)
    return found


def serve_app(app: "FastAPI", listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; requests that have begun are answered first."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=5, lifespan="off"
    )
    uvicorn.Server(config).run(sockets=[listener])
