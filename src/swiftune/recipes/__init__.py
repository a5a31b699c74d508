"""One file a command: all of its wiring on one screen."""
