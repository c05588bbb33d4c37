"""Trains a CARL encoder and measures it before and after.

    accelerate launch -q examples/pretrain.py                  # minilm-l6 on the bundled demo corpus, minutes on a CPU
    accelerate launch -q examples/pretrain.py --config examples/configs/carl-minilm.yaml --data_dir DIR
    accelerate launch -q examples/pretrain.py --config examples/configs/carl-roberta.yaml
    accelerate launch -q examples/pretrain.py --corpora my.csv --scale 1 9 --output_dir out/mine

Unless --config, --encoder, --corpora or --preset is given, the settings of examples/configs/demo.yaml hold.
Leaves in the output folder: checkpoint-*/ (to resume from), results.json, figures/, and for examples/push_to_hub.py
encoder/ (for AutoModel.from_pretrained), va/ (a valence-arousal regressor) and, from corpora with emotion labels,
emotion/ (a classifier).
"""

import copy
from collections.abc import Sequence
from pathlib import Path

from transformers import set_seed

from carl_hf import (
    CarlModel,
    CarlTrainer,
    export_emotion_classifier,
    export_encoder,
    export_va_regressor,
    push_export,
)
from carl_hf.commands.arguments import parse_arguments
from carl_hf.commands.before_after import draw_before_after, print_before_after, rows_for_card
from carl_hf.commands.environment import leave_at_once, start_measuring_script, use_all_cores
from carl_hf.commands.heads import print_heads
from carl_hf.commands.outputs import DRAWN, claim_output, errors_in_one_line, figures_in, prepare_output, remove_stale
from carl_hf.commands.pretrain import PretrainArguments, run_record
from carl_hf.commands.pretrain_data import PretrainData
from carl_hf.encoders import load_encoder, load_tokenizer
from carl_hf.evaluation.before_after import measure_before_after
from carl_hf.momentum import update_target
from carl_hf.objectives import describe_objectives
from carl_hf.utils.atomic_files import write_json
from carl_hf.utils.progress import show_progress


@errors_in_one_line("--resume_from_checkpoint auto goes on from the last checkpoint, if there is one")
def main(argv: Sequence[str] | None = None) -> None:
    script, args = parse_arguments(
        PretrainArguments, argv, description=__doc__,
        default_config=Path(__file__).parent / "configs" / "demo.yaml",
        default_config_unless=("preset", "encoder", "corpora"),
    )  # fmt: skip
    start_measuring_script(main_process=args.process_index == 0)
    use_all_cores(script.num_threads)
    script.settle(args)
    va_training, emotion_training = (script.head_training(args, head) for head in ("va", "emotion"))
    resume = prepare_output(args, overwrite=script.overwrite_output_dir, encoder=script.encoder)
    data = PretrainData(script, seed=args.seed)

    set_seed(args.seed)
    model = CarlModel.from_encoder(
        script.encoder, pooling=script.pooling, dropout=script.dropout, contrast_layers=script.contrast_layers,
        heads=args.heads, classes=data.class_names if args.heads else (), emoji=script.emoji,
        dominance=script.dominance,
    )  # fmt: skip
    plain_weights = copy.deepcopy(model.encoder) if script.toward_plain else None
    tokenizer = load_tokenizer(script.encoder, emoji=script.emoji)
    trainer = CarlTrainer(
        model=model, args=args, train_dataset=data.train, eval_dataset=data.dev, processing_class=tokenizer,
        provenance=data.provenance(describe_objectives(args.weights)),
    )  # fmt: skip

    show_progress(trainer)
    output, main_process = Path(args.output_dir), trainer.is_world_process_zero()
    if main_process:
        claim_output(output, resume=resume or args.resume_from_checkpoint, overwrite=script.overwrite_output_dir)
        print(f"Training {script.encoder} on {'a stream of' if data.size is None else data.size} texts ...")
    trainer.train(resume_from_checkpoint=resume)
    if not main_process:
        leave_at_once()

    trainer.export(output / "encoder", measure_bias=False)  # measured below, and kept whatever comes
    remove_stale(output)  # of a run that was resumed
    plain = load_encoder(script.encoder).to(args.device)
    if plain_weights is not None:
        update_target(model.encoder, plain_weights.to(args.device), momentum=1 - script.toward_plain)
        trainer.provenance.settings["toward_plain"] = script.toward_plain
    data.read_test_splits()  # only now that everything is trained and chosen
    print("Measuring the encoder before and after, then exporting ...")
    with trainer.accelerator.autocast():
        measured = measure_before_after(
            plain, model.encoder, tokenizer, data.measured, pooling=script.pooling, max_length=args.max_length,
            seed=args.seed, plain_tokenizer=load_tokenizer(script.encoder),
        )  # fmt: skip
    results = measured.results(trained_on_test_rows=data.measures_seen_rows())
    results["run"] = run_record(script, args, argv, texts=data.size, steps=trainer.state.global_step)
    if skipped := data.skipped_rows(args.dataloader_num_workers):
        results["run"]["skipped_rows"] = skipped
    write_json(output / "results.json", {**results, "files": [DRAWN]})
    plots = draw_before_after(
        output / "figures", measured, data.measured, encoder=script.encoder, method=results["run"]["method"]
    )
    write_json(output / "results.json", {**results, "files": figures_in(output)})

    train, dev = data.for_va_head()
    shared = va_training is None and emotion_training is not None
    emotions, kept = data.for_emotion_head(train, dev, shared=shared)
    common = {"max_length": args.max_length, "provenance": trainer.provenance}
    card = rows_for_card(measured, script.encoder)
    encoder_folder = export_encoder(model, tokenizer, output / "encoder", train=train, figures=plots, **card, **common)
    if emotions is not None:
        export_emotion_classifier(
            model, tokenizer, output / "emotion", corpus=emotions, corpus_name=script.emotion_corpus,
            seed=args.seed, training=emotion_training, keep=kept, **common,
        )  # fmt: skip
    if train is not None:
        tests = {corpus: splits["test"] for corpus, splits in data.measured.items()}
        export_va_regressor(
            model, tokenizer, output / "va", train=train, dev=dev, test=tests, figures=plots, seed=args.seed,
            corpora=list(tests) or script.corpora, training=va_training, beside=kept and output / "emotion", **common,
        )  # fmt: skip
    print_before_after(results, {corpus: len(splits["test"]) for corpus, splits in data.measured.items()})
    print_heads(output)
    if args.push_to_hub:
        push = push_export(encoder_folder, trainer.hub_model_id, branch=args.hub_revision or "main",
                           commit_message="End of training", token=args.hub_token)  # fmt: skip
        print(f"Published: {push.url}")
    print(f"Encoder: {encoder_folder}   results: {output / 'results.json'}   figures: {output / 'figures'}")
    print(f"To publish: carl-hf push --export {output} --repo_id NAME/MODEL --dry_run")


if __name__ == "__main__":
    main()
