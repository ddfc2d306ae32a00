"""The worker processes of a service with several workers."""

import logging
import sys

from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

logger = logging.getLogger(__name__)


class Workers(Multiprocess):
    """Starts the workers and replaces those that end.

    uvicorn's own supervisor also kills a worker that does not answer within 5 s. A worker answers only after it has
    loaded its modules, so on a slow or busy machine that supervisor kills every worker again and again before it
    serves, and while it waits for an answer it handles no signal.
    """

    def run(self) -> None:
        """Run the workers until a signal. If one of them could not start, exit with its status."""
        super().run()
        if any(worker.exitcode == STARTUP_FAILURE for worker in self.processes):
            sys.exit(STARTUP_FAILURE)

    def init_processes(self) -> None:
        self.processes = [self._start() for _ in range(self.processes_num)]

    def keep_subprocess_alive(self) -> None:
        for index, worker in enumerate(self.processes):
            if self.should_exit.is_set() or worker.process.is_alive():
                continue
            worker.join()
            if worker.exitcode == STARTUP_FAILURE:  # the next one would fail in the same way
                logger.error("A worker could not start; the service ends.")
                self.should_exit.set()
            else:
                logger.warning("A worker ended with %s and is replaced.", worker.exitcode)
                self.processes[index] = self._start()

    def _start(self) -> Process:
        worker = Process(self.config, self.sockets)
        worker.start()
        return worker
