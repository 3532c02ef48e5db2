"""Benchmarks whose judge answers questions about images: GenEval 2, DPG-Bench, ..., and files of one's own."""
