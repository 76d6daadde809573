"""Benchmarks: every performance figure the documents state, measured against a named rival.

``python -m tests.bench`` runs all of them, prints one table and writes ``bench.json``.
"""
