"""Benchmarks: `gaussian` (is the sampler right?), `overhead` (what does it cost?), `shapes` (what does it bring?)."""
