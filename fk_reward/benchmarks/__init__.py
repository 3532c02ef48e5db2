"""Benchmarks: the sampler's correctness (`gaussian`), cost (`overhead`), use (`shapes`); LLaVA-Reward's speed."""
