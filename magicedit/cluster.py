"""Applies a function to many items on Ray: on the cores of this machine, or on a cluster.

Ray Data streams blocks of items through a pool of actors, each of which makes the function once. Blocks
whose actor dies, for instance from lack of memory, are retried, finally item by item; an item whose actor
dies every time fails. Ray sends no usage statistics. A cluster that is started here stops when the loop over
the results ends, also by an error.

The nodes of a cluster read and write the same paths as this process, so the folders are on a shared disk.
"""

import contextlib
import logging
import os
import pickle
import re
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from magicedit.errors import LONGEST_REASON, MagicEditError, needs_extra, reason_of
from magicedit.workers import Item, Result, Start, cores, limit_threads

if TYPE_CHECKING:
    import pyarrow as pa

ENGINES = ("local", "ray")
ANSWER_SECONDS = 20  # within which a cluster tells that it is one; to connect it has a quarter of them
_BLOCK = 16  # items of a block at most
_DIED = "the process that worked on it ended every time, perhaps for lack of memory"


def check_engine(engine: str, address: str | None) -> None:
    """Raises MagicEditError where an engine is unknown or not installed, or an address is of no use."""
    if engine not in ENGINES:
        raise MagicEditError(f"the engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if address is not None and engine != "ray":
        raise MagicEditError("--address is that of a Ray cluster; add --engine ray, or leave it out")
    if engine == "ray":
        _set_environment()
        with needs_extra("scale", "--engine ray needs Ray Data"):
            import ray.data  # noqa: F401


def each(
    start: Start[Item, Result],
    items: Sequence[Item],
    workers: int | None,
    failed: Callable[[Item, str], Result],
    begin: Callable[[Item], None] = lambda item: None,
    address: str | None = None,
    gpu: bool | None = False,
) -> Iterator[tuple[Item, Result]]:
    """Yields items with their results, in the order of completion, as `workers.each` does.

    Args:
        start: makes the function, once in each actor; both it and the items must be picklable.
        workers: number of actors; None: as many as the cluster has cores, or GPUs.
        failed: the result of an item whose process dies every time, from the reason.
        begin: called with every item before the work on the first begins.
        address: of a running cluster, HOST:PORT or "auto" for one of this machine; None: an own one, on the
            cores of this machine.
        gpu: whether every actor has a GPU of its own, else a core; None: where the cluster has any. Ray hides
            no GPU from actors that have none of their own.

    Raises:
        MagicEditError: where no cluster answers or takes part.
        Exception: errors of `start` and of its function.
    """
    with _connected(address, workers) as resources:
        gpu = bool(resources.get("GPU")) if gpu is None else gpu
        has = int(resources.get("GPU" if gpu else "CPU", 0))
        if not has:
            raise MagicEditError(f"the Ray cluster has no {'GPUs' if gpu else 'cores'}; add nodes to it")
        workers = min(workers or has, has, len(items))
        for item in items:
            begin(item)
        left = set(range(len(items)))

        def done(numbers: list[int], size: int = 1) -> Iterator[tuple[Item, Result]]:
            for number, result in _streamed(start, items, numbers, size, min(workers, len(numbers)), gpu):
                left.discard(number)
                yield items[number], result

        yield from done(sorted(left), max(1, min(_BLOCK, len(items) // (4 * workers))))
        if left:
            yield from done(sorted(left))
        for number in sorted(left):  # with an actor, what waits for it is lost too
            yield from done([number])
        yield from ((items[number], failed(items[number], _DIED)) for number in sorted(left))


def _set_environment() -> None:
    """Sets what Ray reads when it is imported, where nobody else has."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of its C++ part; errors come as exceptions
    # `ray start` asks for a token where there is one, but programs that connect do not send it by themselves.
    # Once Ray is imported, only the processes that it starts would read this, and refuse ours.
    if "ray" in sys.modules:
        return
    token = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    if "RAY_AUTH_TOKEN" in os.environ or os.path.isfile(token):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


@contextlib.contextmanager
def _connected(address: str | None, workers: int | None) -> Iterator[dict[str, float]]:
    """Connects to a cluster, or starts one, for the block; yields its resources. A connection that the
    program has already is used, whatever the address."""
    _set_environment()
    import ray

    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        quiet |= {"address": "local", "num_cpus": workers or cores(), "include_dashboard": False}
    else:
        _check_answers(address)
        quiet |= {"address": address}
    try:
        with _silenced():
            ray.init(**quiet)
    except Exception as error:  # it raises anything, such as on other versions of Ray and Python
        where = "on this machine" if address is None else f"at {address}"
        raise MagicEditError(
            f"Ray cannot be used {where} ({reason_of(error)}); see --address, or leave --engine out"
        ) from error
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Drops what is written to standard error, by C++ too, which announces its log level there."""
    sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _check_answers(address: str) -> None:
    """Raises MagicEditError where no Ray cluster answers at an address; Ray itself waits for minutes."""
    if address == "auto":
        return
    parts = re.fullmatch(r"\[?([\w.:-]+?)\]?:(\d{1,5})", address)
    if parts is None or int(parts[2]) > 65535:
        raise MagicEditError(
            f"--address must be HOST:PORT, such as 10.0.0.5:6379, or auto for a cluster of this machine; got "
            f"{address!r}"
        )
    check = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        socket.create_connection((parts[1], int(parts[2])), ANSWER_SECONDS / 4).close()
        subprocess.run(check, timeout=ANSWER_SECONDS, check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1]
        raise MagicEditError(
            f"the Ray cluster at {address} refuses ({said[:300] or error.returncode}); use its versions of "
            "Ray and Python, and its token (RAY_AUTH_TOKEN)"
        ) from error
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:  # ValueError: a host of no such name
        reason = getattr(error, "strerror", None) or "what answers is no Ray cluster, or too slow"
        raise MagicEditError(
            f"no Ray cluster answers at {address} ({reason}); check --address, start one with "
            "`ray start --head`, or leave it out to use the cores of this machine"
        ) from error


class _Actor:
    """Applies the function to blocks of pickled items. An error is returned as the result of its block, with
    number -1; an error of `start` as that of every block."""

    def __init__(self, start: Start):
        warnings.simplefilter("ignore")
        self._function, self._error = None, None
        try:
            limit_threads(1)  # an actor has one core
            self._function = start()
        except MagicEditError as error:
            self._error = error
        except Exception:
            self._error = RuntimeError(f"a worker could not start:\n{traceback.format_exc()}")

    def __call__(self, block: "pa.Table") -> "pa.Table":
        import pyarrow as pa

        if self._error is not None:
            return pa.table({"number": [-1], "result": [pickle.dumps(self._error)]})
        try:
            results = [pickle.dumps(self._function(pickle.loads(item.as_py()))) for item in block["item"]]
        except Exception as error:  # of ours, as errors of items are results
            told = error if isinstance(error, MagicEditError) else RuntimeError(traceback.format_exc())
            return pa.table({"number": [-1], "result": [pickle.dumps(told)]})
        return pa.table({"number": block["number"], "result": pa.array(results, pa.large_binary())})


def _streamed(
    start: Start[Item, Result],
    items: Sequence[Item],
    numbers: list[int],
    size: int,
    workers: int,
    gpu: bool,
) -> Iterator[tuple[int, Result]]:
    """Yields numbers of items with their results; blocks of `size` items whose actor dies are absent."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    table = [{"number": number, "item": pickle.dumps(items[number])} for number in numbers]
    with warnings.catch_warnings():
        # Retries have no named parameter yet; by default, an item that kills its process is retried for ever
        warnings.filterwarnings("ignore", message=".*ray_remote_args", category=DeprecationWarning)
        outcomes = ray.data.from_items(table, override_num_blocks=-(-len(table) // size)).map_batches(
            _Actor,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=workers),
            fn_constructor_args=(start,),
            **({"num_gpus": 1} if gpu else {"num_cpus": 1}),
            max_task_retries=0,
        )
    del table
    try:
        for block in outcomes.iter_batches(batch_size=None, batch_format="pyarrow"):
            for number, result in zip(block["number"].to_pylist(), block["result"], strict=True):
                found = pickle.loads(result.as_py())
                if number < 0:
                    raise found
                yield number, found
    except ray.exceptions.RayError as error:  # actors cannot be placed, or do not start
        said = re.sub(r"\x1b\[\d+m", "", str(error)).strip().rsplit("\n", 1)[-1]  # the rest is a traceback
        raise MagicEditError(f"Ray's workers cannot be used: {said[:LONGEST_REASON]}") from error
