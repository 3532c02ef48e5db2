"""As much of Ray as `fk_reward.benchmarks.ray_workers` asks for, in this process: actors answer at once.

One that ends (`Killed`) loses what it has loaded, and is started again with what it was begun with. What goes to an
actor and comes from it is pickled, as between processes.
"""

from __future__ import annotations

import pickle
from types import ModuleType, SimpleNamespace


class Killed(BaseException):
    """The process of an actor ends; nothing but the actor's own caller may catch it."""


class RayActorError(Exception):
    pass


class Reference:
    def __init__(self, value=None, error=None):
        self.value, self.error = value, error


class Call:
    def __init__(self, actor, name, max_task_retries=0):
        self.actor, self.name, self.retries = actor, name, max_task_retries

    def options(self, *, max_task_retries):
        return Call(self.actor, self.name, max_task_retries)

    def remote(self, *arguments):
        for _ in range(self.retries + 1):
            try:
                return Reference(copied(getattr(self.actor.worker, self.name)(*copied(arguments))))
            except Killed:
                self.actor.start()
            except Exception as error:  # noqa: BLE001 (it is raised where the answer is asked for)
                return Reference(error=error)
        return Reference(error=RayActorError(f"{self.name} has ended with its actor"))


class Actor:
    def __init__(self, kind, arguments):
        self.kind, self.arguments, self.num_starts = kind, pickle.dumps(arguments), 0
        self.start()

    def start(self):
        self.worker = self.kind(*pickle.loads(self.arguments))  # noqa: S301
        self.num_starts += 1

    def __getattr__(self, name):
        return Call(self, name)


def copied(value):
    return pickle.loads(pickle.dumps(value))  # noqa: S301


def ray_in_process():
    """A module in place of `ray`; `actors` are those that were begun, `killed` those that were ended."""
    made = ModuleType("ray")
    made.actors, made.killed, made.asked = [], [], []

    def remote(**resources):
        made.asked.append(resources)

        def begin(kind, arguments):
            made.actors.append(Actor(kind, arguments))
            return made.actors[-1]

        return lambda kind: SimpleNamespace(remote=lambda *arguments: begin(kind, arguments))

    def get(reference):
        if reference.error is not None:
            raise reference.error
        return reference.value

    made.remote, made.get, made.kill = remote, get, made.killed.append
    made.wait = lambda references: (references[:1], references[1:])
    made.is_initialized = lambda: True
    made.exceptions = SimpleNamespace(RayActorError=RayActorError)
    return made
