"""A module of the tests run in two processes on the CPU that find each other as those of `accelerate launch` do.

They are forked from a server, which has imported what takes seconds: a run with `accelerate launch` imports it three
times. The server has a single thread and no process group, and its children begin as a fresh process of Python does.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback

from tests.repository.layout import ROOT


def launch(module, *arguments, timeout):
    """What the module prints in its two processes, the first one's first; fails where one of them does."""
    codes, printed, errors = start_both(module, *arguments, timeout=timeout)
    assert codes == [0, 0], "\n".join(text[-3000:] for text in errors)
    return "".join(printed)


def start_both(module, *arguments, timeout):
    """Exit codes, outputs and errors of two processes, neither of which is ended when the other fails."""
    server = _server()
    job = {"module": module, "arguments": [str(argument) for argument in arguments], "port": _free_port()}
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    ready, _, _ = select.select([server.stdout], [], [], timeout)
    answer = server.stdout.readline() if ready else ""
    if not answer:
        _end(server)
        _server.cache_clear()
        raise TimeoutError(f"{module} in two processes has not ended after {timeout} seconds, or their server has.")
    return json.loads(answer)


@functools.cache
def _server():
    """The server of this process. The path is this process's own: an installed package may be another checkout."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    server = subprocess.Popen([sys.executable, "-m", __name__], env=environment, cwd=ROOT, **pipes)
    atexit.register(_end, server)
    return server


def _end(server):
    """End the server and all that it has started."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _serve():
    """Answer each line, a job, with a line: exit codes, outputs and errors of its two processes."""
    import fk_reward.pipelines.fk_steering_pipeline  # noqa: F401, PLC0415 (what takes seconds)
    import tests.tiny  # noqa: F401, PLC0415

    gc.freeze()  # a collection of a child would copy the pages of all that has been imported
    for line in sys.stdin:
        files = [[tempfile.TemporaryFile() for _ in ("output", "errors")] for _ in range(2)]
        children = [_fork(rank, json.loads(line), *files[rank]) for rank in range(2)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        texts = [[_content(own[kind]) for own in files] for kind in range(2)]
        sys.stdout.write(json.dumps([codes, *texts]) + "\n")
        sys.stdout.flush()


def _content(file):
    with file:
        file.seek(0)
        return file.read().decode(errors="replace")


def _fork(rank, job, output, errors):
    """The process id of a child that runs the module of the job as its main module."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": job["port"]}
        os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
        sys.argv = [job["module"], *job["arguments"]]
        runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 (as an interpreter does at its end)
        traceback.print_exc()
    finally:
        _leave(code)


def _leave(code):
    """End a child without what its parent has registered for its own end, but with its process group closed."""
    try:
        torch = sys.modules["torch"]
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
