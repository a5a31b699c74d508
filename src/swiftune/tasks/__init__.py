"""Benchmarks, a file each, and the parts they share: metrics, a judge, a place where programs can do no harm."""
