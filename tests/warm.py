"""Processes of Python that begin with torch imported, which otherwise is most of what a short one does.

They are forked from a process that has imported the numerical libraries and nothing that reads settings of
its own when it is imported: nothing of Hugging Face, and nothing of ours. So each still finds its own
environment, caches and `sys.meta_path`.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

# A job a line: each of `environments` is that of a process, whose code, arguments and folder are the same.
_TEMPLATE = """
import json, os, sys
import cv2, numpy, PIL.Image, scipy.stats, sympy
import torch, torch._dynamo, torch.distributed, torch.fx.experimental.symbolic_shapes, torch.utils.data

assert not {"diffusers", "huggingface_hub", "transformers", "accelerate", "magicedit"} & set(sys.modules)

write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC

def begin(job, number, environment):
    for descriptor, name, flags in ((0, os.devnull, os.O_RDONLY), (1, "out", write), (2, "err", write)):
        file = os.open(name if name == os.devnull else f"{job['output']}/{number}.{name}", flags, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(job["cwd"])
    sys.argv[:] = job["argv"]
    sys.path[0] = os.path.dirname(job["argv"][0]) if job["argv"][0] != "-c" else ""

def next_job():
    for line in sys.stdin:
        job, processes = json.loads(line), []
        for number, environment in enumerate(job["environments"]):
            processes.append(os.fork())
            if not processes[-1]:
                begin(job, number, environment)
                return job["code"]
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        print(json.dumps(codes), flush=True)
    os._exit(0)

exec(compile(next_job(), "<string>", "exec"), {"__name__": "__main__"})
"""
_SCRIPT = "import runpy, sys\nrunpy.run_path(sys.argv[0], run_name='__main__')"

_template: subprocess.Popen | None = None


def run_warm(
    command: Sequence[str | Path],
    env: Mapping[str, str],
    cwd: str | Path | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess:
    """Like `subprocess.run([sys.executable, *command])` with captured text; `command` is a script's path, or
    "-c" and code, and arguments.

    Raises:
        subprocess.TimeoutExpired: after `timeout` seconds; the process is killed.
    """
    return _run(command, [env], cwd, timeout)[0]


def run_ranks(
    count: int, command: Sequence[str | Path], env: Mapping[str, str], timeout: float = 300
) -> list[subprocess.CompletedProcess]:
    """The same in `count` processes that find each other, as `torchrun` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    ranks = [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(count)]
    return _run(command, [{**env, **{k: str(v) for k, v in rank.items()}} for rank in ranks], None, timeout)


def _run(command, environments, cwd, timeout) -> list[subprocess.CompletedProcess]:
    global _template
    words = [str(word) for word in command]
    code, argv = (words[1], ["-c", *words[2:]]) if words[0] == "-c" else (_SCRIPT, words)
    if _template is None or _template.poll() is not None:
        _template = subprocess.Popen(
            [sys.executable, "-c", _TEMPLATE],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    template = _template
    with tempfile.TemporaryDirectory() as output:
        job = {
            **{"code": code, "argv": argv, "cwd": str(cwd or Path.cwd()), "output": output},
            "environments": [dict(environment) for environment in environments],
        }
        template.stdin.write(json.dumps(job) + "\n")
        template.stdin.flush()
        late = threading.Event()

        def end() -> None:
            late.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(template.pid, signal.SIGKILL)

        timer = threading.Timer(timeout, end)
        timer.start()
        answer = template.stdout.readline()
        timer.cancel()
        if not answer:
            template.wait()
            raise subprocess.TimeoutExpired(words, timeout) if late.is_set() else OSError("no template")
        return [
            subprocess.CompletedProcess(
                words,
                code,
                *(Path(output, f"{number}.{name}").read_text(errors="replace") for name in ("out", "err")),
            )
            for number, code in enumerate(json.loads(answer))
        ]
