"""Swiftune: fine-tuning of large language models, from an idea to a served model."""

__version__ = "0.1.0"
