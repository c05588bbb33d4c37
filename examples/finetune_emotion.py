"""Emotion recognition on texts with labels: does metric learning beat a linear classifier?

    python examples/finetune_emotion.py                                        # the bundled corpus, minutes on a CPU
    python examples/finetune_emotion.py --corpus my.csv --text_column sentence --label_column emotion
    python examples/finetune_emotion.py --corpus emolit12 --data_dir DIR --objectives proxy_anchor
    python examples/finetune_emotion.py --encoder runs/carl-minilm/encoder --frozen true --corpus my.csv

Trains an encoder (a plain one, or an export of CARL) by the named objectives: cross_entropy fine-tunes it with a
linear classifier; proxy_anchor, supcon and circular shape the embedding; with --frozen nothing but the linear head is
fitted. Then a linear head on the frozen embeddings is compared with the same head on the encoder as it was. What is
not named comes from examples/configs/emotion.yaml.

Leaves in the output folder: emotion/ (a classifier, for AutoModelForSequenceClassification), encoder/ where it was
trained, results.json and figures/confusion.png; checkpoint-*/ of training.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import EarlyStoppingCallback, set_seed

from carl_hf import CarlModel, CarlTrainer, export_emotion_classifier, export_encoder
from carl_hf.commands.arguments import parse_arguments
from carl_hf.commands.environment import leave_at_once, start_measuring_script, use_all_cores
from carl_hf.commands.finetune import FinetuneArguments, print_results, run_record, training_splits
from carl_hf.commands.heads import print_heads
from carl_hf.commands.outputs import DRAWN, claim_output, errors_in_one_line, figures_in, prepare_output
from carl_hf.data.mixing import class_names
from carl_hf.data.splits import split_rows
from carl_hf.encoders import embed_poolings, load_encoder, load_tokenizer
from carl_hf.evaluation.comparison import class_gain
from carl_hf.evaluation.finetuning import measure_linear_head, measure_trained_head, validation_accuracy, verdict
from carl_hf.export.folder import read_record
from carl_hf.objectives import describe_objectives
from carl_hf.report.pictures import draw
from carl_hf.report.plots import plot_confusion
from carl_hf.utils.atomic_files import write_json
from carl_hf.utils.progress import show_progress


@errors_in_one_line("--resume_from_checkpoint auto goes on from the last checkpoint, if there is one")
def main(argv: Sequence[str] | None = None) -> None:
    script, args = parse_arguments(
        FinetuneArguments, argv, description=__doc__,
        default_config=Path(__file__).parent / "configs" / "emotion.yaml",
    )  # fmt: skip
    start_measuring_script(main_process=args.process_index == 0)
    use_all_cores(script.num_threads)
    script.settle(args)
    head_training = script.head_training(args, "emotion")
    resume = prepare_output(args, overwrite=script.overwrite_output_dir, encoder=script.encoder)
    corpus = script.read_corpus()
    emoji = script.emoji and not script.frozen
    tokenizer, plain_tokenizer = load_tokenizer(script.encoder, emoji=emoji), load_tokenizer(script.encoder)
    plain = load_encoder(script.encoder).to(args.device)
    if script.frozen:
        trainer, provenance = None, script.provenance(None, corpus)
        model = CarlModel.from_encoder(plain, pooling=script.pooling).to(args.device)
    else:
        train, dev = training_splits(corpus)
        set_seed(args.seed)
        model = CarlModel.from_encoder(
            script.encoder, pooling=script.pooling, dropout=script.dropout, heads=args.heads,
            classes=class_names(train), emoji=emoji,
        )  # fmt: skip
        stops_early = args.load_best_model_at_end and script.patience
        trainer = CarlTrainer(
            model=model, args=args, train_dataset=train, eval_dataset=dev, processing_class=tokenizer,
            provenance=script.provenance(describe_objectives(args.weights), corpus),
            callbacks=[EarlyStoppingCallback(script.patience)] if stops_early else None,
        )  # fmt: skip
        provenance = trainer.provenance

    output, main_process = Path(args.output_dir), args.process_index == 0
    if main_process:
        claim_output(output, resume=resume or args.resume_from_checkpoint, overwrite=script.overwrite_output_dir)
    if trainer is not None:
        show_progress(trainer)
        if main_process:
            print(f"Training {script.encoder} on {len(train)} texts: {', '.join(args.weights)} ...")
        trainer.train(resume_from_checkpoint=resume)
    if not main_process:
        leave_at_once()

    linear = {"seed": args.seed, "class_weights": args.class_weights, "label_space": args.label_space}
    embedded = embed_poolings(
        plain, corpus.texts, plain_tokenizer, poolings=("cls", "mean"), max_length=args.max_length
    )
    frozen = {f"frozen encoder, {pooling}": vectors.numpy() for pooling, vectors in embedded.items()}
    measured = {name: measure_linear_head(vectors, corpus, **linear) for name, vectors in frozen.items()}
    results: dict[str, Any] = {"corpus": script.corpus, "classes": list(corpus.classes)}
    if trainer is not None:
        better = max(frozen, key=lambda name: validation_accuracy(frozen[name], corpus, seed=args.seed))
        results["better_frozen"] = better
        vectors = model.embed(corpus.texts, tokenizer, max_length=args.max_length).numpy()
        measured["trained encoder, linear head"] = trained = measure_linear_head(vectors, corpus, **linear)
        own_head = measure_trained_head(model, vectors, corpus, seed=args.seed)
        if own_head is not None:
            measured["trained encoder, its own head"] = own_head
        results["gain"] = class_gain(measured[better][1], trained[1], args.seed, len(corpus.classes))
        _, validation, test = split_rows(corpus)
        results["verdict"] = verdict(results["gain"], better, len(test), len(validation))
    results["models"] = {name: report for name, (report, _) in measured.items()}
    results["run"] = run_record(script, args, argv, corpus, trainer)
    results["files"] = [] if corpus.multi_label else [DRAWN]
    write_json(output / "results.json", results)  # kept whatever comes

    plots = []
    if not corpus.multi_label:
        panels = {name: (np.array(r["confusion"]), corpus.classes) for name, r in results["models"].items()}
        plots = draw(output / "figures" / "confusion.png", plot_confusion, panels)
        results["files"] = figures_in(output)
        write_json(output / "results.json", results)
    common = {"max_length": args.max_length, "provenance": provenance}
    if trainer is not None:
        export_encoder(model, tokenizer, output / "encoder", **common)
    export_emotion_classifier(
        model, tokenizer, output / "emotion", corpus=corpus, corpus_name=script.corpus, figures=plots, seed=args.seed,
        class_weights=args.class_weights, training=head_training, **common,
    )  # fmt: skip
    exported = read_record(output / "emotion")["results"]
    results["exported_classifier"] = {
        row["metric"]: {key: row[key] for key in ("name", "value", "interval")} for row in exported
    }
    write_json(output / "results.json", results)
    print_results(results)
    print_heads(output)
    print(f"Classifier: {output / 'emotion'}   results: {output / 'results.json'}")


if __name__ == "__main__":
    main()
