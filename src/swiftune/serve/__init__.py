"""A server that speaks OpenAI's protocol, over any engine, and its chat page."""

from __future__ import annotations

from swiftune.serve.app import create_app
from swiftune.serve.run import serve
from swiftune.serve.service import Limits, Model, Service

__all__ = ["Limits", "Model", "Service", "create_app", "serve"]
