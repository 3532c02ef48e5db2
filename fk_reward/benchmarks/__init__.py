"""Benchmarks: tasks, the methods that answer them, stores, judges and reports; GenEval and MJ-Bench."""
