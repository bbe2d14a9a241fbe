"""Running the simulator: in this process until a signal, or as a child process for as long as a `with` block lasts."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from workbench.child import die_with_parent
from workbench.errors import EnvironmentFault, WorkbenchError
from workbench.simulator.settings import Simulator

#: Seconds that requests in flight get when the server is told to stop.
GRACE = 2


def serve(settings: Simulator, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, from the main thread.

    Args:
        port: 0 picks a free one.
        ready: called with the base URL (it ends in /v1) once connections are accepted.

    Raises:
        WorkbenchError: what `make_app` raises.
        EnvironmentFault: the address cannot be used, or a package is missing.
    """
    try:
        import uvicorn
        from uvicorn.protocols.http.h11_impl import H11Protocol

        from workbench.simulator.app import make_app
    except ImportError as error:
        fix = "pip install 'workbench[simulate]'"
        raise EnvironmentFault(f"the simulator needs the package {error.name}", fix=fix) from error

    class Protocol(H11Protocol):
        """Hands the connection to the application, which has to be able to break it."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            # asyncio does so for the sockets that it opens itself; without it every answer waits 40 ms for a delayed ACK.
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.app_state = {**self.app_state, "transport": transport}

    app = make_app(settings)
    with _listening(host, port) as listener:
        bound = listener.getsockname()
        config = uvicorn.Config(
            app, http=Protocol, ws="none", lifespan="off", log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE
        )
        ready(f"http://{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}/v1")
        with _ending_on_sigterm():
            uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Exit with code 0 on SIGTERM. uvicorn raises the signal again when it is done; by default that would kill whoever still logs."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _listening(host: str, port: int) -> socket.socket:
    """A socket that queues connections already."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise EnvironmentFault(f"cannot listen: {error}", where=f"{host}:{port}", fix="choose another --host or --port") from error


@contextmanager
def running(settings: Simulator) -> Iterator[str]:
    """Run the simulator on a free loopback port in a child process, which ends with the block, or with this process.

    Yields:
        The base URL, which ends in /v1.

    Raises:
        WorkbenchError: what `serve` raises.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench.simulator"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, which takes no lock
    )
    try:
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):  # it died at once; what it printed says why
            process.stdin.write(settings.model_dump_json())
            process.stdin.close()
        said = process.stdout.readline()
        if not said:
            raise EnvironmentFault(f"the simulator ended with exit code {process.wait()}", fix="see what it said on standard error")
        first = json.loads(said)
        if "url" not in first:
            kind = EnvironmentFault if first["exit_code"] == EnvironmentFault.exit_code else WorkbenchError
            raise kind(first["what"], where=first["where"], fix=first["fix"])
        yield first["url"]
    finally:
        process.terminate()
        try:
            process.wait(GRACE + 3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
