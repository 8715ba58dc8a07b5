"""Benchmarks: ratios, printed; nothing asserts a time."""
