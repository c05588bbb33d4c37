"""Before the first step: classes, angles and weights of labels, and checks that the training can work."""

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn

from carl_hf.collator import CarlDataCollator
from carl_hf.data.label_spaces import read_label_space
from carl_hf.data.mixing import VA, class_names, rows_with_va, warn_of_similar_names
from carl_hf.encoders.checks import check_positions, check_tokenizer, kept_length
from carl_hf.encoders.loading import check_no_adapters
from carl_hf.modeling_carl import CarlModel
from carl_hf.objectives import OBJECTIVES
from carl_hf.training.dev_probe import DevProbe
from carl_hf.training.streams import is_stream
from carl_hf.training_args import CarlTrainingArguments

logger = logging.getLogger(__name__)

FEWEST_STEPS = 50
"""Of a training without `max_steps`: with fewer, 200 texts left the space as it was."""


def check_model_and_arguments(model: Any, args: Any, **others: Any) -> None:
    """Raises a ValueError unless they are a [`CarlModel`] and [`CarlTrainingArguments`] for one device a process, and
    of the Trainer's other arguments none is given that would not be used."""
    for name, instead in (("model_init", "model=CarlModel.from_encoder(...)"), ("compute_loss_func", "objectives")):
        if others.get(name) is not None:
            raise ValueError(f"CarlTrainer does not use {name}: {instead}.")
    if not isinstance(args, CarlTrainingArguments):
        raise ValueError(f"CarlTrainer needs CarlTrainingArguments, got {type(args).__name__}.")
    if not isinstance(model, CarlModel):
        raise ValueError(f"CarlTrainer trains a CarlModel, got {type(model).__name__}: CarlModel.from_encoder(...).")
    check_no_adapters(model)
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process would split the contrastive batch: start one process each with "
            "accelerate launch or torchrun, or choose one GPU with CUDA_VISIBLE_DEVICES=0."
        )


@contextlib.contextmanager
def as_value_error() -> Iterator[None]:
    """Makes a ValueError of what the Trainer raises where a package is missing, or the Hub cannot be reached."""
    try:
        yield
    except (ImportError, RuntimeError, OSError) as error:
        if isinstance(error, RuntimeError) and "to be installed" not in str(error):
            raise
        raise ValueError(str(error)) from error


def evaluation_sets(dataset: Any) -> dict[str, Any]:
    """Name -> evaluation set, of a dictionary of them or of one, whose name is ""; none of None."""
    if isinstance(dataset, Mapping):
        if missing := [name for name, rows in dataset.items() if rows is None]:
            raise ValueError(f"eval_dataset[{missing[0]!r}] is None: leave it out.")
        return dict(dataset)
    return {} if dataset is None else {"": dataset}


def rows_of(dataset: Any, name: str, *, any_rows: bool = False) -> Any:
    """The `datasets.Dataset` of rows that come as a list, a pandas table or a map-style torch data set; one of these,
    a stream or None as it is. Numbers of a `ClassLabel` become names.

    Args:
        name: for messages. any_rows: whether a custom collator reads the rows, which may be anything then.

    Raises:
        ValueError: for anything else; it says what was expected.
    """
    if dataset is None or is_stream(dataset):
        plain = isinstance(dataset, datasets.IterableDataset) and not any_rows
        return dataset.with_format(None) if plain else dataset
    if isinstance(dataset, pd.DataFrame):
        dataset = datasets.Dataset.from_pandas(dataset, preserve_index=False)
    elif isinstance(dataset, (list, tuple, torch.utils.data.Dataset)) and not isinstance(dataset, datasets.Dataset):
        if not isinstance(dataset, (list, tuple)):
            if any_rows:
                return dataset
            logger.warning("%s is read once, before the first step: what it draws at random stays as it is.", name)
        rows = [dataset[index] for index in range(len(dataset))]
        if rows and all(isinstance(row, Mapping) for row in rows):
            columns = dict.fromkeys(column for row in rows for column in row)
            try:
                dataset = datasets.Dataset.from_dict({c: [row.get(c) for row in rows] for c in columns})
            except (pa.ArrowException, TypeError, OverflowError) as error:
                raise ValueError(f"{name}: a column holds values of several types ({error}).") from error
    if not isinstance(dataset, datasets.Dataset):
        parts = f" with the parts {', '.join(map(str, dataset))}: pass one" if isinstance(dataset, Mapping) else ""
        raise ValueError(
            f"{name} is a {type(dataset).__name__}{parts}. It must be a datasets.Dataset, an IterableDataset, or a "
            "list of rows such as {'text': ..., 'valence': 0.5, 'arousal': -0.2} or {'text': ..., 'label': 'joy'}."
        )
    if not any_rows:
        if dataset.format["type"] == "custom":
            raise ValueError(f"{name} has a transform, which training would not run: apply it by dataset.map(...).")
        dataset = dataset.with_format(None)
    feature = dataset.features.get("label")
    if isinstance(feature, datasets.ClassLabel):
        numbers = dataset.with_format(None)["label"]
        names = [None if i is None or i < 0 else feature.names[i].strip() for i in numbers]
        dataset = dataset.remove_columns("label").add_column("label", names)
    return dataset


def leaves_parameters_unused(model: CarlModel, args: CarlTrainingArguments) -> bool:
    """Whether some trained parameters get no gradient, which data parallelism has to be told."""
    uses_all = {"mccl", "ptd"} <= set(args.weights) and model.config.heads == args.heads
    return not uses_all or model.config.contrast_layers == "none"  # without a projection the pooler stays idle


def classes_of(model: CarlModel, args: CarlTrainingArguments, train: Any) -> list[str] | None:
    """The class names for objectives that use classes, else None: the model's own, else those of the training texts.
    Warns of heads that no objective trains, and of classes whose names look like slips of one.

    Raises:
        ValueError: if the model lacks a head or dropout that an objective needs, or a training text has a class that
            the model does not have.
    """
    missing = sorted(set(args.heads) - set(model.config.heads))
    if missing:
        raise ValueError(
            f"The objectives need a model with {' and '.join(missing)}: CarlModel.from_encoder(..., "
            "heads=args.heads, classes=class_names(train)), with class_names from carl_hf.data."
            + " Or train without: objectives=['mccl', 'rank_n_contrast']."
            * (missing == ["regressor"] and args.objectives is None)
        )
    if "simcse" in args.weights and not any(m.p > 0 for m in model.modules() if isinstance(m, nn.Dropout)):
        raise ValueError("simcse contrasts two dropout masks, and the encoder's dropout is 0: dropout=0.1.")
    untrained = sorted(set(model.config.heads) - set(args.heads))
    if untrained and train is not None:
        logger.warning(
            "No objective trains the model's %s: in predict and compute_metrics its answers are those it began with. "
            "CarlModel.from_encoder(..., heads=args.heads) leaves it out.", " and ".join(untrained),
        )  # fmt: skip
    if args.preset == "paper" and "mccl" in args.weights and model.config.contrast_layers == "none":
        logger.warning("The paper contrasts predictions, this model the exported vectors: for preset='paper' "
                       "CarlModel.from_encoder(..., contrast_layers='prediction').")  # fmt: skip
    if "class" not in args.label_kinds:
        return None
    found = class_names(train) if isinstance(train, datasets.Dataset) else []
    classes = list(model.config.classes) or found
    if not classes:
        raise ValueError("The objectives need names of classes: CarlModel.from_encoder(..., classes=[...]).")
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise ValueError(
            f"The training texts have the label {unknown[0]!r}, which is none of the model's classes "
            f"{', '.join(classes)}: CarlModel.from_encoder(..., classes=class_names(train))."
        )
    warn_of_similar_names(found, "The training texts")
    return classes


def check_collator(
    model: CarlModel, args: CarlTrainingArguments, collator: CarlDataCollator, classes: Sequence[str] | None,
    angles: Mapping[str, float],
) -> None:  # fmt: skip
    """Raises a ValueError unless a collator makes batches for this training: with the model's classes in their order,
    its dimensions, tokens and positions that it has, and what the arguments and the labels ask for."""
    wanted = {
        "max_length": (collator.max_length, kept_length(args.max_length, collator.tokenizer)),
        "chunks": (collator.chunks, args.gradient_cache_parts),
        "angles": ({name: collator.angles.get(name) for name in angles}, dict(angles)),
    }
    for name, (own, needed) in wanted.items():
        if own != needed:
            raise ValueError(f"The collator has {name}={own}, and would need {needed} by the arguments: "
                             f"CarlDataCollator(..., {name}=...), or leave data_collator out.")  # fmt: skip
    if classes is not None and list(collator.class_indices) != list(classes):
        raise ValueError(
            f"The collator numbers the classes {', '.join(collator.class_indices) or '(none)'}, the model "
            f"{', '.join(classes)}: CarlDataCollator(..., classes=model.config.classes)."
        )
    if (len(collator.dimensions) > 2) != model.config.dominance:
        raise ValueError(f"The model needs a collator with dominance={model.config.dominance}.")
    check_positions(model.encoder, collator.max_length)
    check_tokenizer(model, collator.tokenizer)


def label_angles(args: CarlTrainingArguments, train: Any) -> dict[str, float]:
    """Class name -> radians for the circular loss: the classes of training texts that lack valence or arousal.

    Raises:
        ValueError: if the label space lacks a class, or there is neither a label space nor a text with both numbers.
    """
    if "angle" not in args.label_kinds:
        return {}
    space = None if args.label_space is None else read_label_space(args.label_space)
    if not isinstance(train, datasets.Dataset):
        return {} if space is None else space.radians_of(space.angles)
    if space is None:
        if len(rows_with_va(train)) == 0:
            raise ValueError("The circular loss needs the angles of the labels: name a label_space, such as circle12.")
        return {}
    if "label" not in train.column_names:
        return {}
    columns = train.select_columns([c for c in ("label", *VA) if c in train.column_names]).with_format(None)[:]
    rated = [pd.Series(columns.get(name), range(len(train)), float) for name in VA]
    unrated = rated[0].isna() | rated[1].isna()
    needed = {name for name, missing in zip(columns["label"], unrated, strict=True) if missing and name is not None}
    # an evaluation may lack numbers that training has
    return space.radians_of(needed | {*space.known_angles({*columns["label"]} - {None})})


def class_weights(args: CarlTrainingArguments, classes: Sequence[str] | None, train: Any) -> Tensor | None:
    """Class weights (C,) for class_weights="balanced": number of labelled training texts / (C * texts of the class).

    Raises:
        ValueError: if the training texts cannot be counted.
    """
    if args.class_weights == "equal" or "cross_entropy" not in args.weights:
        return None
    if not isinstance(train, datasets.Dataset) or classes is None:
        raise ValueError("class_weights='balanced' counts training texts: pass train_dataset as a datasets.Dataset.")
    counts = Counter(train["label"])
    counts_C = torch.tensor([float(counts[name]) for name in classes], device=args.device)
    return counts_C.sum() / (len(classes) * counts_C.clamp_min(1))


def check_batches(args: CarlTrainingArguments, train: Any, dev: Any) -> None:
    """Raises a ValueError unless the texts fill a contrastive batch and the encoder trains for at least one step.
    Warns of a training that ends before it has learnt much."""
    global_batch = args.train_batch_size * args.world_size
    if global_batch < 2:
        raise ValueError("A contrastive batch needs at least 2 texts: raise per_device_train_batch_size.")
    if args.dataloader_prefetch_factor is not None and args.dataloader_prefetch_factor < 1:
        raise ValueError(f"dataloader_prefetch_factor must be at least 1, got {args.dataloader_prefetch_factor}.")
    compares = any(not OBJECTIVES[name].by_itself for name in args.weights)
    if dev is not None and args.eval_batch_size * args.world_size < 2 and compares:
        raise ValueError("A batch of an evaluation needs at least 2 texts too: raise per_device_eval_batch_size.")
    if train is None:  # nothing is to be trained
        return
    if args.train_sampling_strategy == "group_by_length" and (
        not isinstance(train, datasets.Dataset) or args.length_column_name not in train.column_names
    ):
        raise ValueError(
            f"group_by_length needs the texts' lengths in a column {args.length_column_name!r}. It saves nothing "
            "here: texts are packed without padding."
        )
    if not is_stream(train) and len(train) < global_batch:
        raise ValueError(
            f"{len(train)} training texts do not fill one batch of {global_batch} (a partial batch is never trained "
            "on): lower --per_device_train_batch_size or bring more texts."
        )
    if is_stream(train) and args.dataloader_num_workers > 1:
        raise ValueError(
            "A stream is read by at most one worker of each process, or its rows would be dealt out twice: "
            "--dataloader_num_workers 0 or 1."
        )
    if is_stream(train) and args.max_steps <= 0:
        raise ValueError("A stream has no known end: say by --max_steps how long to train.")
    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        raise ValueError(f"num_train_epochs {args.num_train_epochs:g} trains nothing: it must be positive.")
    epochs = args.max_steps / steps_per_epoch(args, train) if args.max_steps > 0 else args.num_train_epochs
    if args.warmup_epochs_of_heads >= epochs:
        span = "a stream is one epoch" if is_stream(train) else f"training is {epochs:g} epochs"
        raise ValueError(
            f"The encoder would learn nothing: {span}, and in the first {args.warmup_epochs_of_heads:g} only heads "
            f"learn. Train longer, or pass --head_warmup_epochs {0.1 if is_stream(train) else 0}."
        )
    steps = math.ceil(epochs * steps_per_epoch(args, train))
    if args.max_steps <= 0 and steps < FEWEST_STEPS:
        smaller = "smaller batches (--per_device_train_batch_size 16) and " if args.train_batch_size > 16 else ""
        logger.warning(
            "%d training texts make %d steps, in which an encoder learns little: take %smore epochs "
            "(--num_train_epochs 10).", len(train), steps, smaller,
        )  # fmt: skip


def steps_per_epoch(args: CarlTrainingArguments, train: Any) -> int:
    """Optimizer steps of an epoch; a whole training on a stream counts as one epoch."""
    if is_stream(train):
        return args.max_steps
    batches = len(train) // (args.train_batch_size * args.world_size)
    return max(1, math.ceil(batches / args.gradient_accumulation_steps))


def check_metric(args: CarlTrainingArguments, probe: DevProbe | None, dev: Any, *, own_metrics: bool) -> None:
    """Raises a ValueError if the best checkpoint is to be chosen by a metric that no evaluation will have.

    Args:
        own_metrics: whether the user's compute_metrics, callbacks or subclass may add others.
    """
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    if metric in OBJECTIVES and metric not in args.weights:
        raise ValueError(f"The best checkpoint is to be chosen by {metric}, which is none of the objectives.")
    dimensions = ("valence", "arousal", "dominance", "va")
    of_probe = metric.endswith((*(f"{name}_pearson" for name in dimensions), "label_accuracy"))
    if not metric or dev is None or (own_metrics and not of_probe):
        return
    sets = evaluation_sets(dev).items()
    probed = [f"{name}_{m}".lstrip("_") for name, part in sets if probe is not None for m in probe.metrics_for(part)]
    of_detector = ("detector_auc", "changed_coordinates") if "ptd" in args.weights else ()
    others = ("loss", *args.weights, "zero_label_fraction", *of_detector)
    if metric in {*probed, *(f"{name}_{m}".lstrip("_") for name, _ in sets for m in others)}:
        return
    losses = [f"{name}_loss".lstrip("_") for name, _ in sets]
    remedy = f"Name another --metric_for_best_model ({', '.join([*sorted(probed), *losses])})."
    if not of_probe:
        raise ValueError(f"The best checkpoint is to be chosen by {metric}, which no evaluation has. {remedy}")
    if probe is None:
        raise ValueError(
            f"The best checkpoint is to be chosen by {args.metric_for_best_model}, but there is no probe: it needs "
            "--probe_texts, scikit-learn (pip install 'carl_hf[eval]'), a tokenizer as processing_class, and "
            "train_dataset and eval_dataset as datasets.Dataset. Or name another --metric_for_best_model."
        )
    raise ValueError(
        f"The best checkpoint is to be chosen by {args.metric_for_best_model}, but training and validation texts do "
        f"not both carry the labels for it. {remedy}"
    )
