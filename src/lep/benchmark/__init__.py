"""Benchmark tasks in lm-evaluation-harness, and records of what was asked and answered."""
