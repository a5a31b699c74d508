"""From files to samples to tokens: sources, formats, load; render, tokens."""
