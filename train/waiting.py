"""Waiting for the other processes of a run, as long as their work takes."""

import datetime

import torch.distributed as dist

# For work that may take hours, such as an upload; the end of a process ends the wait
PATIENCE = datetime.timedelta(days=7)


def patient_group() -> "dist.ProcessGroup | None":
    """Returns a new group of all processes, whose collectives do not time out; None where there is only one.

    All processes must call this.
    """
    several = dist.is_available() and dist.is_initialized()
    return dist.new_group(backend="gloo", timeout=PATIENCE) if several else None
