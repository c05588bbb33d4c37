"""Run by test_hub.py in fresh processes: HF_ENDPOINT is read at import. Prints one line of JSON."""

import hashlib
import json
import sys
import warnings
from pathlib import Path


def pull(repo_id: str, kind: str, revision: str = "main") -> dict:
    """What a user without carl_hf gets."""
    sys.modules["carl_hf"] = None  # any import of it fails
    warnings.simplefilter("error")
    import torch
    from huggingface_hub import snapshot_download
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

    folder = Path(snapshot_download(repo_id, revision=revision))
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip
    texts = ["joywow joywow", "woezzz"]
    loader = AutoModel if kind == "encoder" else AutoModelForSequenceClassification
    model, info = loader.from_pretrained(repo_id, revision=revision, output_loading_info=True)
    odd = {key: sorted(value) for key, value in info.items() if value}
    result = {"files": files, "odd": odd, "class": type(model).__name__}
    tokenizer = AutoTokenizer.from_pretrained(repo_id, revision=revision)
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    if kind == "encoder":
        warnings.simplefilter("ignore")  # sentence-transformers' own imports
        from sentence_transformers import SentenceTransformer

        with torch.no_grad():
            result["embeddings"] = model(**batch).last_hidden_state[:, 0].tolist()
        sentences = SentenceTransformer(repo_id, revision=revision, device="cpu")
        result["sentence_embeddings"] = sentences.encode(texts).tolist()
    else:
        classify = pipeline("text-classification", repo_id, revision=revision, top_k=None)
        result["answers"] = classify(texts)
    return result


def push(folder: str, repo_id: str, settings: str = "{}") -> dict:
    from carl_hf import push_export

    try:
        done = push_export(folder, repo_id, **json.loads(settings))
    except ValueError as error:
        return {"error": str(error)}
    return {"url": done.url, "changed": done.changed, "removed": done.removed, "files": done.files}


def train(folder: str, repo_id: str, strategy: str) -> dict:
    """A Trainer that pushes by its own means; strategy "call" is trainer.push_to_hub()."""
    from conftest import tiny_encoder, toy_dataset
    from transformers import AutoTokenizer

    from carl_hf import CarlModel, CarlTrainer, CarlTrainingArguments, Provenance

    own = {} if strategy == "call" else {"push_to_hub": True, "hub_strategy": strategy, "hub_always_push": True}
    args = CarlTrainingArguments(
        f"{folder}/out-{strategy}", max_steps=4, save_steps=2, save_strategy="steps", per_device_train_batch_size=8,
        hub_model_id=repo_id, use_cpu=True, report_to="none", disable_tqdm=True, **own,
    )  # fmt: skip
    trainer = CarlTrainer(
        model=CarlModel.from_encoder(tiny_encoder(), projection_dim=8), args=args, train_dataset=toy_dataset(64),
        processing_class=AutoTokenizer.from_pretrained(f"{folder}/tokenizer"),
        provenance=Provenance(base_model="org/base", corpora=["demo"]),
    )  # fmt: skip
    trainer.train()
    if strategy == "call":
        trainer.push_to_hub()
    elif strategy == "end":
        trainer.save_model()  # under this strategy a Trainer pushes when its model is saved
    else:
        trainer._finish_current_push()
    vectors = trainer.model.embed(["joywow joywow", "woezzz"], trainer.processing_class)
    return {"embeddings": vectors.tolist()}


if __name__ == "__main__":
    print("RESULT " + json.dumps({"pull": pull, "push": push, "train": train}[sys.argv[1]](*sys.argv[2:])))
