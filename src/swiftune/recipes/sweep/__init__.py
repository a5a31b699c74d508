"""``swift sweep``: one training with many combinations of values, each in a process of its own, then compared.

rows      what became of each run, read from the run's own log
report    the table as files, and the command of the best run
picture   the figures against the values
jobs      a run as a process
search    which run is next: the grid, or optuna
recipe    all of it together
"""
