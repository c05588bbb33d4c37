"""CarlModel: an encoder, and the layers around it that CARL trains.

Shape suffixes: B texts, L tokens, T tokens of all texts (packed, see encoders/packing.py), E width of the word
embeddings, H width of the encoder, D projection width, P proxies.

Source: Son, Saurez, Har, arXiv 2502.20613, section 3: online branch (encoder, pooler without its tanh, projection,
prediction), momentum target branch (the same without prediction, no gradient), per-token detector.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase, initialization
from transformers.utils import ModelOutput

from carl_hf.configuration_carl import CarlConfig, ContrastLayers
from carl_hf.encoders.checks import (
    check_loaded,
    check_weights_file,
    check_word_embeddings,
    damaged_weights_named,
    say_if_padding_is_read,
)
from carl_hf.encoders.dropouts import set_dropout
from carl_hf.encoders.embedding import embed_texts
from carl_hf.encoders.loading import check_no_adapters, named_or_loaded, without_weights_bar
from carl_hf.encoders.packing import Pooling, TokenLayout, embed_packed, encode_tokens, pool, use_packed_attention


@dataclass
class CarlOutput(ModelOutput):
    """What [`CarlModel`] returns.

    Args:
        loss (`Tensor`): of a training objective.
        last_hidden_state (`Tensor` (B, L, H)): of the online encoder.
        embedding (`Tensor` (B, H)): the pooled last hidden state, as the exported encoder gives it.
        prediction (`Tensor` (B, D)): of the online branch, compared with the target branch by the contrastive loss.
    """

    loss: Tensor | None = None
    last_hidden_state: Tensor | None = None
    embedding: Tensor | None = None
    prediction: Tensor | None = None


def _mlp(width: int, output_width: int) -> nn.Sequential:
    """Two layers with LayerNorm and GELU between. BatchNorm would make a text's result depend on its batch."""
    return nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, output_width))


class CarlBranch(nn.Module):
    """Encoder, pooler dense layer (its own where it has one) and projection; with contrast_layers "none" it alone."""

    def __init__(self, config: CarlConfig, encoder: PreTrainedModel):
        super().__init__()
        width, projects = config.encoder.hidden_size, config.contrast_layers != "none"
        self.encoder = encoder
        self.dense = nn.Linear(width, width) if projects and not config.encoder_has_pooler else None
        self.projection = _mlp(width, config.projection_dim) if projects else None

    def project(self, pooled_BH: Tensor) -> Tensor:
        """Pooled states (B, H) -> pooler dense layer without tanh -> projection (B, D); as they are without these."""
        if self.projection is None:
            return pooled_BH
        dense = self.encoder.pooler.dense if self.dense is None else self.dense
        return self.projection(dense(pooled_BH))


class TargetBranch(CarlBranch):
    """Moving average of the online branch: gets no gradient and stays in eval mode."""

    def __init__(self, config: CarlConfig, encoder: PreTrainedModel):
        super().__init__(config, encoder)
        self.train(False)

    def train(self, mode: bool = True) -> "TargetBranch":
        return super().train(False)


class ClassProxies(nn.Module):
    """A learned vector for every class, used by its direction alone (Kim et al., arXiv 2003.13911)."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.weight_PH = nn.Parameter(torch.empty(classes, width))


class CarlPreTrainedModel(PreTrainedModel):
    config_class = CarlConfig
    base_model_prefix = "carl"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _keep_in_fp32_modules_strict = ["target"]  # the paper's 1 - m = 4e-4 is below the resolution of bfloat16

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ClassProxies):
            initialization.normal_(module.weight_PH, std=(2 / len(module.weight_PH)) ** 0.5)  # Kaiming, by fan-out


class CarlModel(CarlPreTrainedModel):
    """CARL's model for training: online and target branch of an encoder, detector, optional task heads.

    `online` and `target` are [`CarlBranch`]es of the same shape; `prediction` belongs to the online branch alone;
    `detector` is one linear layer from a token's last hidden state to the logit of "perturbed". `proxies`,
    `classifier` and `regressor` stand on the embedding where the configuration's `heads` name them, else are None.
    """

    def __init__(self, config: CarlConfig):
        check_weights_file(config.to_dict())
        super().__init__(config)
        for kind, name in ((CarlBranch, "online"), (TargetBranch, "target")):
            setattr(self, name, kind(config, AutoModel.from_config(config.encoder, trust_remote_code=False)))
        predicts = "prediction" in config.contrasts
        self.prediction = _mlp(config.projection_dim, config.projection_dim) if predicts else nn.Identity()
        self.detector = nn.Linear(config.encoder.hidden_size, 1)
        width, classes = config.encoder.hidden_size, len(config.classes)
        self.proxies = ClassProxies(classes, width) if "proxies" in config.heads else None
        self.classifier = nn.Linear(width, classes) if "classifier" in config.heads else None
        self.regressor = nn.Linear(width, 3 if config.dominance else 2) if "regressor" in config.heads else None
        self.post_init()
        self.reset_target()

    @classmethod
    def from_encoder(
        cls, encoder: str | Path | PreTrainedModel, *, pooling: Pooling = "cls", projection_dim: int = 256,
        contrast_layers: ContrastLayers = "none", heads: Sequence[str] = ("regressor",), classes: Sequence[str] = (),
        dropout: float | None = None, emoji: bool = False, dominance: bool = False,
    ) -> "CarlModel":  # fmt: skip
        """A model around a pretrained encoder; its other layers are initialised at random by torch's generator.

        Args:
            encoder: a Hub id, a local folder, `"minilm-l6"` or `"mpnet-base"` (extras `[demo]`, `[base]`), or a loaded
                encoder, which is used as it is, not copied, but for a head on it.
            pooling, projection_dim, contrast_layers, heads, classes, dominance: see [`CarlConfig`];
                `CarlTrainingArguments.heads` are those that its objectives need, by default the regressor.
            dropout: probability in [0, 1) for the online encoder's dropout layers, in place of their own. It is saved
                neither in a checkpoint nor in an export.
            emoji: give an encoder that is named tokens for emoji, as [`carl_hf.encoders.with_emoji`] does for a loaded
                one. Its tokenizer is then `load_tokenizer(encoder, emoji=True)`; one without them is refused.

        Raises:
            ValueError: if the encoder cannot be loaded, is no bidirectional text encoder, or carries PEFT adapters
                (which `save_pretrained` would write without the rest); for `emoji` with a loaded encoder.
        """
        encoder = named_or_loaded(encoder, pooling=pooling, emoji=emoji)
        encoder.float()  # training in bf16 or fp16 is autocast's; the weights, and the target, stay float32
        check_word_embeddings(encoder)
        say_if_padding_is_read(encoder)
        pooler = getattr(encoder, "pooler", None)  # no config field says whether a pooler exists
        tokens = ("pad_token_id", "bos_token_id", "eos_token_id")  # the Trainer compares them with the tokenizer's
        config = CarlConfig(
            encoder=encoder.config, pooling=pooling, projection_dim=projection_dim, contrast_layers=contrast_layers,
            encoder_has_pooler=isinstance(getattr(pooler, "dense", None), nn.Linear), heads=heads, classes=classes,
            dominance=dominance, **{name: getattr(encoder.config, name, None) for name in tokens},
        )  # fmt: skip
        model = cls(config)
        model.online.encoder = encoder
        if dropout is not None:
            set_dropout(encoder, dropout)
        model.reset_target()
        return model.train(encoder.training)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As `PreTrainedModel.from_pretrained`, from safetensors; the target comes back as it was saved, frozen."""
        with_info = kwargs.pop("output_loading_info", False)
        settings = {"use_safetensors": True, **kwargs, "output_loading_info": True}
        with damaged_weights_named(*args[:1]), without_weights_bar():
            model, info = super().from_pretrained(*args, **settings)
        check_loaded(model.name_or_path, info)
        model.target.requires_grad_(False)
        return (model, info) if with_info else model

    def add_adapter(self, *args, **kwargs):
        """Refused: see [`carl_hf.encoders.loading.check_no_adapters`]."""
        raise ValueError(
            "A CarlModel takes no PEFT adapters (LoRA), which would not be saved with it: all its weights are trained."
        )

    load_adapter = add_adapter

    def save_pretrained(self, *args, **kwargs):
        check_no_adapters(self)
        return super().save_pretrained(*args, **kwargs)

    @property
    def encoder(self) -> PreTrainedModel:
        """The trained (online) encoder, which is exported."""
        return self.online.encoder

    def online_parameters(self) -> Iterator[nn.Parameter]:
        """All trained parameters: those outside the target branch."""
        return (parameter for name, parameter in self.named_parameters() if not name.startswith("target."))

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.set_input_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As `PreTrainedModel.resize_token_embeddings`, of both branches, with the same new rows."""
        old = self.get_input_embeddings().num_embeddings
        resized = self.encoder.resize_token_embeddings(*args, **kwargs)
        copied = self.target.encoder.resize_token_embeddings(*args, **kwargs)
        copied.weight.data[old:] = resized.weight.data[old:]
        self.target.requires_grad_(False)
        self.config.encoder.vocab_size = self.encoder.config.vocab_size
        return resized

    def reset_target(self) -> None:
        """Makes the target a frozen copy of the online branch."""
        self.target.encoder = copy.deepcopy(self.online.encoder)
        self.target.load_state_dict(self.online.state_dict())
        self.target.requires_grad_(False)
        self.target.eval()

    # The methods of a training step, on packed texts (encoders/packing.py).

    def use_packed_attention(self) -> None:
        """Lets both encoders run on packed tokens where they can; else on padded slices, to the same result."""
        for branch in (self.online, self.target):
            use_packed_attention(branch.encoder)

    def word_embeddings(self, input_ids: Tensor) -> Tensor:
        """Looks up word embeddings (..., E) of the online encoder (before positions and normalisation)."""
        return self.encoder.get_input_embeddings()(input_ids)

    def encode(self, embeds_TE: Tensor, layout: TokenLayout) -> Tensor:
        """Last hidden states (T, H) of the online encoder over word embeddings."""
        return encode_tokens(self.encoder, embeds_TE, layout)

    def embed_packed(self, embeds_TE: Tensor, layout: TokenLayout) -> Tensor:
        """Pooled embeddings (B, H) of packed texts from their word embeddings."""
        return embed_packed(self.encoder, embeds_TE, layout, self.config.pooling)

    def predict(self, pooled_BH: Tensor) -> Tensor:
        """The vectors (B, D) that `contrast_layers` names, of the online branch from embeddings; two side by side."""
        projected_BD = self.online.project(pooled_BH)
        vectors = {"none": pooled_BH, "projection": projected_BD, "prediction": self.prediction(projected_BD)}
        return torch.cat([vectors[name] for name in self.config.contrasts], dim=-1)

    @torch.no_grad()
    def project_target(self, input_ids_T: Tensor, layout: TokenLayout) -> Tensor:
        """What predictions are compared with: (B, D) of the target branch, chunk by chunk, without gradient."""
        encoder, projections = self.target.encoder, []
        for chunk in layout.chunks:
            embeds_TE = encoder.get_input_embeddings()(input_ids_T[chunk.tokens])
            pooled_BH = embed_packed(encoder, embeds_TE, chunk, self.config.pooling)
            vectors = [pooled_BH if n == "none" else self.target.project(pooled_BH) for n in self.config.contrasts]
            projections.append(torch.cat(vectors, dim=-1))
        return torch.cat(projections)

    def proxy_similarity(self, embedding_BH: Tensor) -> Tensor:
        """Cosine (B, P) of embeddings with every class's proxy; the nearest proxy is the predicted class."""
        return F.normalize(embedding_BH, dim=-1) @ F.normalize(self.proxies.weight_PH, dim=-1).T

    @torch.no_grad()
    def classify(self, embedding_BH: Tensor) -> Tensor | None:
        """Predicted class indices (B,) by the classifier, else by the nearest proxy; None if the model has neither."""
        if self.classifier is not None:
            return self.classifier(embedding_BH).argmax(-1)
        return None if self.proxies is None else self.proxy_similarity(embedding_BH).argmax(-1)

    def detect(self, hidden: Tensor) -> Tensor:
        """Detector logits of hidden states (..., H): positive means "this token was perturbed"."""
        return self.detector(hidden).squeeze(-1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        step_fn: Callable[["CarlModel"], CarlOutput] | None = None,
        token_type_ids: Tensor | None = None,
    ) -> CarlOutput:
        """Embeds texts, or runs a training step.

        Args:
            input_ids (`Tensor` (B, L)): right-padded token ids. attention_mask (`Tensor` (B, L)): 0 on padding.
            step_fn (`Callable`, *optional*): called with this model in place of the plain forward pass: the trainer's
                whole step, inside the one call in which autocast and distributed data parallelism are in force.
            token_type_ids: as tokenizers of BERT return them, all 0 of a single text; not read.

        Raises:
            ValueError: for left-padded texts.
        """
        if step_fn is not None:
            return step_fn(self)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        elif not attention_mask[:, 0].all():
            raise ValueError("The texts are padded on the left: tokenizer.padding_side = 'right'.")
        hidden_BLH = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        embedding_BH = pool(hidden_BLH, attention_mask, self.config.pooling)
        return CarlOutput(last_hidden_state=hidden_BLH, embedding=embedding_BH, prediction=self.predict(embedding_BH))

    def embed(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase,
        *, batch_size: int = 64, max_length: int = 128, normalize: bool = False,
    ) -> Tensor:  # fmt: skip
        """Embeddings of texts by the online encoder under the model's pooling, dropout off.

        Args:
            texts: any number of texts. batch_size: texts of 32 tokens that are encoded together; of shorter ones more.
            max_length: tokens kept of a text, at most those of the tokenizer. normalize: scale every vector to length
                1.

        Returns:
            float32 `Tensor` (number of texts, H) on the CPU, in the order of the texts.
        """
        return embed_texts(
            self.encoder, texts, tokenizer, pooling=self.config.pooling, batch_size=batch_size, max_length=max_length,
            normalize=normalize,
        )  # fmt: skip


AutoModel.register(CarlConfig, CarlModel, exist_ok=True)
