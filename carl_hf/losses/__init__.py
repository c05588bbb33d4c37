"""The training losses as pure functions on tensors.

Shape suffixes: B texts (of this process for `mccl_loss` and `focal_detection_loss`, else those that are passed),
G texts of the global batch, L tokens, D embedding or projection width, P proxies (one a class), C classes,
2 (valence, arousal).

Several processes: `mccl_loss` and `focal_detection_loss` are means over this process's rows. Their average over
processes with equal batches is the value and gradient of one process on the global batch (the columns of other
processes enter without gradient). The other losses depend on the whole batch at once: pass them the global batch,
gathered with gradient ([`carl_hf.training.distributed.gather_with_gradient`]).

A missing label is marked, and the loss leaves it out: NaN for valence, arousal or an angle, -1 for a class. A text may
have one of valence and arousal. A batch without any labelled row has loss 0.

Losses on labels take weights of texts, `weight_B`, > 0 and by default 1. A mean over texts is weighted, and the mean
over pairs of `circular_loss` by the products. In a contrast the row has its weight, not the columns. A text of weight
2 is the same as two texts in `class_cross_entropy`, `proxy_anchor_loss` and `va_regression_loss`.

Source, where nothing else is named: Son, Saurez, Har, "Continuous Adversarial Text Representation Learning for
Affective Recognition", arXiv 2502.20613. Equation numbers are the paper's.
"""

from carl_hf.utils.lazy import lazy_names

_NAMES = {
    "common": ("NO_CLASS",),
    "carl": (
        "LabelKernel", "focal_detection_loss", "label_distance", "label_similarity", "mccl_loss",
        "symmetric_cross_entropy", "va_regression_loss",
    ),
    "classes": ("class_cross_entropy", "proxy_anchor_loss", "supervised_contrastive_loss"),
    "others": ("circular_loss", "rank_n_contrast_loss", "simcse_loss"),
}  # fmt: skip
__getattr__, __all__ = lazy_names(__name__, _NAMES)
