"""Loads exports as somebody without carl_hf does, with any version of transformers; prints one line of JSON.

python load_exports.py '{"encoder": FOLDER_OR_ID, "va": FOLDER_OR_ID, "emotion": FOLDER_OR_ID}' '["a text", ...]'
"""

import json
import sys
import warnings

sys.modules["carl_hf"] = None  # any import of it fails
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline  # noqa: E402


def load(sources: dict[str, str], texts: list[str]) -> dict:
    result = {"versions": {"transformers": transformers.__version__}, "odd": {}}
    for kind, source in sources.items():
        loader = AutoModel if kind == "encoder" else AutoModelForSequenceClassification
        model, info = loader.from_pretrained(source, output_loading_info=True)
        result["odd"] |= {f"{kind} {key}": sorted(map(str, value)) for key, value in info.items() if value}
        if kind != "encoder":
            result[kind] = pipeline("text-classification", source, top_k=None)(texts, truncation=True)
            continue
        tokenizer = AutoTokenizer.from_pretrained(source)
        with torch.no_grad():
            states = model.eval()(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt"))
        result["embeddings"] = states.last_hidden_state[:, 0].tolist()
        result["max_length"] = tokenizer.model_max_length
    if "encoder" in sources:
        warnings.simplefilter("ignore")  # sentence-transformers' own imports
        import sentence_transformers

        result["versions"]["sentence_transformers"] = sentence_transformers.__version__
        encoder = sentence_transformers.SentenceTransformer(sources["encoder"], device="cpu")
        result["unit_embeddings"] = encoder.encode(texts).tolist()
    return result


if __name__ == "__main__":
    print("RESULT " + json.dumps(load(*map(json.loads, sys.argv[1:]))))
