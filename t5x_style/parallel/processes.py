"""Joining the processes of a job, and making the death of one the end of all."""

import dataclasses
import faulthandler

import jax

_SETTING = "processes.Processes"


@dataclasses.dataclass(frozen=True)
class Processes:
    """Where the processes of a job find each other.

    With no coordinator, what started the job says it: a TPU pod, Slurm, Open MPI, Kubernetes, or
    JAX_COORDINATOR_ADDRESS.

    Attributes:
      coordinator: "HOST:PORT" that process 0 listens on.
      num_processes: of the whole job.
      process_id: this process's number, from 0.
      heartbeat_timeout_secs: a process that is not heard of for so long is dead, and ends the
        others. JAX's own limit is 100.
      join_timeout_secs: longest wait for all processes to have joined.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    heartbeat_timeout_secs: int = 10
    join_timeout_secs: int = 300

    def __post_init__(self) -> None:
        given = (self.coordinator, self.num_processes, self.process_id)
        if any(x is None for x in given) and any(x is not None for x in given):
            raise ValueError(
                f"{_SETTING}: set all of coordinator = {self.coordinator!r}, num_processes = "
                f"{self.num_processes} and process_id = {self.process_id}, or none of them"
            )
        if (
            self.num_processes is not None
            and self.process_id is not None
            and not 0 <= self.process_id < self.num_processes
        ):
            raise ValueError(
                f"{_SETTING}.process_id = {self.process_id} is not one of the "
                f"{self.num_processes} processes, numbered from 0"
            )

    def join(self) -> None:
        """Waits for the other processes; to be called before any device is asked for.

        Should one of them die, this one is ended within the heartbeat's limit, its stacks printed.

        Raises:
          ValueError: nothing says where the other processes are, or they did not come.
        """
        # The coordination service ends a process by SIGABRT.
        faulthandler.enable()
        if self.coordinator is not None:
            print(
                f"process {self.process_id} of {self.num_processes} joins the job at "
                f"{self.coordinator} ({_SETTING}), within {self.join_timeout_secs} s",
                flush=True,
            )
        try:
            jax.distributed.initialize(
                self.coordinator,
                self.num_processes,
                self.process_id,
                heartbeat_timeout_seconds=self.heartbeat_timeout_secs,
                initialization_timeout=self.join_timeout_secs,
            )
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"the processes of the job did not join ({error}): set {_SETTING}.coordinator, "
                "num_processes and process_id, and start every process with its own process_id"
            ) from error
