"""The lines of the cards run as they stand, those for a server against one on loopback."""

import contextlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from transformers import pipeline

sentence_transformers = pytest.importorskip("sentence_transformers")


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """To loopback only; the models are folders."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def answerer(folder, kind):
    """inputs, parameters -> what a server of that task answers."""
    if kind == "encoder":
        model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")

        def answer(inputs, parameters):
            if isinstance(inputs, dict):
                vectors = model.encode([inputs["source_sentence"], *inputs["sentences"]])
                return (vectors[1:] @ vectors[0]).tolist()
            return model.encode([inputs] if isinstance(inputs, str) else inputs).tolist()

        return answer
    classify = pipeline("text-classification", model=str(folder), truncation=True)
    return lambda inputs, parameters: classify([inputs], top_k=parameters.get("top_k"))


@contextlib.contextmanager
def served(answer):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_POST(self):
            wish = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(answer(wish["inputs"], wish.get("parameters") or {})).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("kind", ["encoder", "va", "emotion"])
def test_the_lines_of_the_card_run(kind, exports, monkeypatch):
    folder, _ = exports
    card = (folder / kind / "README.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)\n```\n", card, re.S)
    assert len(snippets) == {"encoder": 4, "va": 3, "emotion": 3}[kind]
    monkeypatch.chdir(folder)  # a card that was not pushed yet names the folder
    with served(answerer(folder / kind, kind)) as url:
        for snippet in snippets:
            names: dict = {}
            exec(snippet.replace("http://localhost:8080", url), names)
            shapes = {"embedding": (16,), "embeddings": (2, 16), "probabilities": (2, 6)}
            for name, shape in shapes.items():
                if name in names:
                    assert np.shape(torch.as_tensor(names[name]).detach()) == shape
            if "valence" in names:
                assert np.shape(names["arousal"]) in ((), (2,))
