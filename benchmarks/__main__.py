"""``make bench``: every benchmark, one after the other."""

from benchmarks import training

training.main()
