"""CarlConfig: the architecture of a CARL model. CarlTrainingArguments holds how it is trained."""

import importlib
from typing import Any, Literal, get_args

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from carl_hf.encoders.layout import Pooling

ContrastLayers = Literal[
    "prediction", "projection", "none", "none+prediction", "none+projection", "projection+prediction"
]
HEADS = ("classifier", "proxies", "regressor")


class CarlConfig(PreTrainedConfig):
    """Architecture of a [`CarlModel`].

    Args:
        encoder (`PreTrainedConfig` or `dict`): configuration of the encoder, of any type that `AutoModel` builds;
            BERT by default.
        pooling (`str`, defaults to `"cls"`): `"cls"`, the first token's last hidden state (the paper), or `"mean"`,
            the mean of the last hidden states over all tokens but padding.
        encoder_has_pooler (`bool`, defaults to `True`): whether the encoder has a pooler, whose dense layer both
            branches then use. Without one each branch has a dense layer of its own.
        projection_dim (`int`, defaults to 256): width D of the contrastive space; the layers before it have width H.
        contrast_layers (`str`, defaults to `"prediction"`): layers between embedding and contrastive loss:
            `"prediction"`, pooler dense layer and projection in both branches and the online branch's prediction (the
            paper); `"projection"`, the same without prediction; `"none"`: the embeddings are compared (D = H). Two
            of them, as in `"none+prediction"`: the mean of two contrastive losses.
        heads (`list[str]`, defaults to none): task heads on the embedding: `"proxies"` (a vector for each class),
            `"classifier"` (a linear layer to the classes), `"regressor"` (a linear layer to valence and arousal).
        classes (`list[str]`, defaults to none): class names of proxies and classifier, in the order of their indices.
        dominance (`bool`, defaults to `False`): whether labels have dominance as a third dimension, and the regressor
            a third output.
    """

    model_type = "carl"
    sub_configs_defaults = {"encoder": SubConfigSpec(config_class=AutoConfig, model_type="bert")}

    encoder: PreTrainedConfig | dict | None = None
    pooling: Pooling = "cls"
    encoder_has_pooler: bool = True
    projection_dim: int = 256
    contrast_layers: ContrastLayers = "prediction"
    heads: list[str] | None = None
    classes: list[str] | None = None
    dominance: bool = False

    def __new__(cls, *args: Any, **kwargs: Any) -> "CarlConfig":
        # Makes the model known to AutoModel. Here, because `import carl_hf` need not wait for it.
        importlib.import_module("carl_hf.modeling_carl")
        return super().__new__(cls)

    def __post_init__(self, **kwargs):
        if self.pooling not in get_args(Pooling):
            raise ValueError(f"Unknown pooling {self.pooling!r}: choose 'cls' or 'mean'.")
        if not isinstance(self.projection_dim, int) or self.projection_dim < 1:
            raise ValueError(f"projection_dim must be a positive whole number, got {self.projection_dim!r}.")
        if self.contrast_layers not in get_args(ContrastLayers):
            raise ValueError(
                f"Unknown contrast_layers {self.contrast_layers!r}: choose {', '.join(get_args(ContrastLayers))}."
            )
        for name in ("heads", "classes"):
            names = getattr(self, name)
            if names is not None and not (isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names)):
                raise ValueError(f"{name} must be a list of names, got {names!r}.")
        self.heads, self.classes = sorted(set(self.heads or ())), list(self.classes or ())
        unknown = [name for name in self.heads if name not in HEADS]
        if unknown:
            raise ValueError(f"Unknown head {unknown[0]!r}: choose from {', '.join(HEADS)}.")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"A class is named twice in {self.classes}.")
        if not set(self.heads) <= {"regressor"} and len(self.classes) < 2:
            raise ValueError(f"Proxies and classifier need at least two classes, got {self.classes}.")
        super().__post_init__(**kwargs)

    @property
    def contrasts(self) -> list[str]:
        """The vectors that the contrastive loss compares: one or two of `"none"`, `"projection"`, `"prediction"`."""
        return self.contrast_layers.split("+")

    @property
    def contrast_widths(self) -> list[int]:
        """Widths of these vectors."""
        return [self.encoder.hidden_size if name == "none" else self.projection_dim for name in self.contrasts]
