"""Devices, dtypes, seeds, the console: what every floor may use."""
