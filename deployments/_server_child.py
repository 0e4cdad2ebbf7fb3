"""The engine's own server, as the process that ``deployments.server`` starts: ``python _server_child.py SOCKET_FD``.

It serves API, UI and all services on the socket it inherits, and exits when its standard input ends.
Only its parent holds the other end of that pipe, so a killed parent takes the server with it.
"""

import gc
import os
import signal
import socket
import sys
import threading
import time

from a0backup.limits import keep_memory_private

GRACE = 4.0
"""Seconds that the server gets to end by itself once its parent is gone."""


def main() -> None:
    os.umask(0o077)
    keep_memory_private()
    # Ctrl-C, or a stop of the whole service, reaches this process together with its parent. The parent still needs the
    # server to record how the run ended, so only the pipe ends it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent_gone = threading.Event()

    def watch_the_parent() -> None:
        while os.read(0, 1024):
            pass
        parent_gone.set()
        time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=watch_the_parent, daemon=True).start()

    # The start creates millions of permanent objects. Looking for garbage among them would take a quarter of its time.
    gc.disable()
    # Imported late: the import takes seconds, and the parent may be killed meanwhile.
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    from a0backup.limits import raise_limits
    from deployments.connections import Connections, bound_log, protocol, watching_websockets

    raise_limits()
    connections = Connections()

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: object) -> None:
            """Ignore the signal, as above."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            gc.freeze()
            gc.enable()

        async def on_tick(self, counter: int) -> bool:
            if counter % 10 == 0:  # once a second
                connections.close_old()
                bound_log(sys.stderr.fileno())
            return parent_gone.is_set() or await super().on_tick(counter)

    # What `prefect server start` does in the foreground, on a socket that is already bound.
    api = get_current_settings().server.api
    config = uvicorn.Config(
        watching_websockets(create_app(final=True), connections),
        http=protocol(connections, os.environ["PREFECT_SERVER_API_AUTH_STRING"]),
        log_level="warning",
        access_log=False,
        timeout_keep_alive=api.keepalive_timeout,
        ws_ping_interval=api.websocket_ping_interval,
        ws_ping_timeout=api.websocket_ping_timeout,
        timeout_graceful_shutdown=2,
    )
    server = Server(config)
    server.run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
    # Threads of the database driver may still be waiting and would keep the interpreter from exiting.
    os._exit(0 if server.started else 1)


if __name__ == "__main__":
    main()
