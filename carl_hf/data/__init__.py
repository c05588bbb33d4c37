"""Labelled texts in: files, Hub data sets, public corpora and streams, checked, normalised and mixed.

Imports `utils` only. A user's first call is [`load_va_dataset`].
"""

from carl_hf.utils.lazy import lazy_names

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "loading": ["NoSplitError", "Normalization", "find_bad_rows", "load_va_dataset"],
        "agreement": ["agreement_weights"],
        "corpora": ["CORPORA"],
        "feeling": ["read_emoji_pairs", "read_feeling_triplets"],
        "labelled": ["ClassCorpus", "read_emotion"],
        "label_spaces": ["LabelSpace", "read_label_space"],
        "mixing": ["class_names", "mix_datasets", "rows_with_va", "va_from_class_labels", "remove_overlap"],
        "streaming": ["stream_va_dataset"],
    },
)
