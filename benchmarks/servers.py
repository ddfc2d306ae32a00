"""Server processes for serve.py (Linux): start them on a core, measure them through /proc, stop all their processes."""

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Server:
    port: int
    pid: int

    def cpu_seconds(self) -> float:
        """Return the processor time used so far by the process and its descendants. Other load hardly changes it."""
        return sum(ticks for _, _, ticks, _ in _family(self.pid)) / TICKS

    def memory_mb(self, field: str = "VmRSS") -> float:
        """Return the memory of the process itself: resident now (`VmRSS`), or its peak (`VmHWM`)."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def cores() -> tuple[set[int], set[int]]:
    """Return the core of the servers and the cores of the client: all others, or the same one if there is only one."""
    ours = sorted(os.sched_getaffinity(0))
    return {ours[0]}, set(ours[1:]) or {ours[0]}


@contextmanager
def running(command: list[str], env: dict[str, str], core: set[int], log: Path, ready: str) -> Iterator[Server]:
    """Run a server on `core` and yield it once the path `ready` answers with 200.

    `{port}` in the command stands for a free port.
    """
    port = _free_port()
    here = os.sched_getaffinity(0)
    os.sched_setaffinity(0, core)  # inherited by all processes of the server
    try:
        with log.open("w") as output:
            process = subprocess.Popen(
                [part.format(port=port) for part in command],
                env=os.environ | ONE_THREAD | env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only this benchmark, which then stops its servers
            )
    finally:
        os.sched_setaffinity(0, here)
    try:
        _wait_until_ready(process, port, ready, log)
        yield Server(port, process.pid)
    finally:
        end_family(process)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _wait_until_ready(process: subprocess.Popen, port: int, path: str, log: Path, patience_s: float = 90) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise SystemExit(f"A server did not become ready ({' '.join(process.args)}):\n{log.read_text()[-3000:]}")  # type: ignore[arg-type]


def end_family(process: subprocess.Popen) -> None:
    """Terminate a process, kill it after 15 seconds, and kill the descendants that it leaves behind."""
    family = {(pid, began) for pid, _, _, began in _family(process.pid)}
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid, _, _, began in _processes():
        if (pid, began) in family:  # the same process, not another one that reuses its pid
            os.kill(pid, signal.SIGKILL)


def _family(root: int) -> list[tuple[int, int, int, int]]:
    """Return a process and its descendants."""
    processes = _processes()
    family, new = [], {root}
    while new:
        here = [process for process in processes if process[0] in new]
        family += here
        new = {pid for pid, parent, _, _ in processes if parent in {process[0] for process in here}}
    return family


def _processes() -> list[tuple[int, int, int, int]]:
    """Return the pid, parent pid, processor ticks and start time of each process that is not a zombie."""
    processes = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            if fields[0] != "Z":
                processes.append((int(folder.name), int(fields[1]), int(fields[11]) + int(fields[12]), int(fields[19])))
    return processes
