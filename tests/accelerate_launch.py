"""A module of the tests run in two processes on the CPU, as `accelerate launch` starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from tests.repository.layout import ROOT

LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
"""accelerate's way to start several processes, which then find themselves on the CPU."""


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(module, *arguments, timeout):
    """What the module prints. The path is this process's own: an installed package may be another checkout."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    options = (*LAUNCH, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(_free_port()))
    command = [sys.executable, *options, "-m", module, *map(str, arguments)]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
