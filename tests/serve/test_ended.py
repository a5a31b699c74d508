"""What is answered when the engine has ended."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient

from swiftune.data.render import Renderer
from swiftune.generate.engine import Sampling
from swiftune.generate.transformers_engine import TransformersEngine
from swiftune.models.load import load_model
from swiftune.serve import Limits, Model, Service, create_app
from tests import tiny


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/health", None),
        ("/metrics", None),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "stream": True}),
        ("/v1/unload_lora_adapter", {"lora_name": "code"}),
    ],
)
def test_a_server_whose_engine_has_ended_says_so(
    tiny_qwen2: Path, tmp_path: Path, path: str, body: dict[str, object] | None
) -> None:
    tokenizer = tiny.make_tokenizer()
    engine = TransformersEngine(load_model(tiny_qwen2, dtype=torch.float32), tokenizer)
    models = [Model(name, adapter, Renderer(tokenizer), "") for name, adapter in (("tiny", None), ("code", "code"))]
    service = Service(engine, models, tokenizer, limits=Limits(), default=Sampling(), vocabulary=len(tokenizer))
    app = create_app(
        service, api_key=None, hosts={"testserver"}, open_adapter=lambda *_: models[0], adapter_dirs=[tmp_path]
    )
    client = TestClient(app)
    assert client.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}
    engine.close()
    answer = client.get(path) if body is None else client.post(path, json=body)
    assert answer.status_code == 503
    assert answer.json()["error"] == {
        "message": "The engine is closed.",
        "type": "service_unavailable_error",
        "param": None,
        "code": None,
    }
    service.close()
