"""Engines that write answers, behind one Protocol, and what measures their texts."""
