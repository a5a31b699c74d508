"""The command line: reads the arguments, calls the recipe, shows what went wrong."""
