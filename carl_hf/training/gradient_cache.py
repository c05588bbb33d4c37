"""Gradients of losses over a whole batch whose texts are encoded in chunks, in the memory of one chunk.

Gao et al., arXiv 2101.06983 (GradCache): embed all texts without a graph, take the losses' gradient with respect to
the embeddings, then encode every chunk again, with the same random numbers, and backpropagate through it. A batch of
one chunk keeps its graph instead. Exact to rounding.

Shape suffixes: B texts, T tokens of all texts, E width of the word embeddings, H width of the encoder.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from carl_hf.encoders.packing import TokenLayout
from carl_hf.utils.devices import kept_random_state

Encode = Callable[[Tensor, TokenLayout], Tensor]


class _RandomState:
    """The random state of the CPU and of a device, to be restored for a second encoding."""

    def __init__(self, device: torch.device):
        self.device = device if device.type != "cpu" else None
        self.of_cpu = torch.get_rng_state()
        self.of_device = None if self.device is None else torch.get_device_module(device).get_rng_state(device)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        with kept_random_state(self.device or torch.device("cpu")):
            torch.set_rng_state(self.of_cpu)
            if self.device is not None:
                torch.get_device_module(self.device).set_rng_state(self.of_device, self.device)
            yield


class CachedPass:
    """Gradient caching for one encoding of a batch: a forward pass, and a backward pass chunk by chunk.

    Args:
        encode: word embeddings (T, E) and layout of a chunk -> embeddings (texts of the chunk, H).
        embeds_TE: word embeddings of the batch. backward_follows: whether `backward` will be called.

    Attributes:
        pooled_BH: the embeddings, a leaf with gradient.
    """

    def __init__(self, encode: Encode, embeds_TE: Tensor, layout: TokenLayout, *, backward_follows: bool):
        self.encode, self.embeds_TE, self.chunks = encode, embeds_TE.detach(), layout.chunks
        self._graph: tuple[Tensor, Tensor] | None = None  # of a single chunk
        self._states: list[_RandomState] = []
        if backward_follows and len(self.chunks) == 1:
            leaf_TE = self.embeds_TE.requires_grad_()
            self._graph = leaf_TE, encode(leaf_TE, self.chunks[0])
            pooled_BH = self._graph[1]
        else:
            pooled = []
            for chunk in self.chunks:
                if backward_follows:
                    self._states.append(_RandomState(embeds_TE.device))
                with torch.no_grad():
                    pooled.append(encode(self.embeds_TE[chunk.tokens], chunk))
            torch.clear_autocast_cache()  # no cast made without a graph may serve where there is one
            pooled_BH = torch.cat(pooled)
        self.pooled_BH = pooled_BH.detach().requires_grad_()

    def backward(self, gradient_BH: Tensor, gradients: "Gradients") -> None:
        """Backpropagates the gradient of the embeddings; adds those of word embeddings and parameters."""
        if self._graph is not None:
            (leaf_TE, pooled_BH), self._graph = self._graph, None
            gradients.add(pooled_BH, leaf_TE, self.chunks[0], gradient_BH)
            return
        for chunk, state in zip(self.chunks, self._states, strict=True):
            with state.restored():
                leaf_TE = self.embeds_TE[chunk.tokens].requires_grad_()
                pooled_BH = self.encode(leaf_TE, chunk)
            gradients.add(pooled_BH, leaf_TE, chunk, gradient_BH[chunk.texts])


@dataclass
class Gradients:
    """Sums of gradients with respect to the word embeddings of a batch and to parameters.

    Args:
        of_embeds_TE: (T, E). parameters: the parameters. of_parameters: one gradient for each; None where no loss has
            reached it, so that weight decay does not move it.
    """

    of_embeds_TE: Tensor
    parameters: Sequence[Tensor]
    of_parameters: list[Tensor | None]

    @classmethod
    def zero(cls, embeds_TE: Tensor, parameters: Sequence[Tensor]) -> "Gradients":
        return cls(torch.zeros_like(embeds_TE, requires_grad=False), parameters, [None] * len(parameters))

    def add(self, output: Tensor, leaf_TE: Tensor, chunk: TokenLayout, gradient: Tensor | None = None) -> None:
        """Backpropagates `output`, a scalar or a tensor with its own `gradient`, and adds the gradients."""
        of_leaf_TE, *found = torch.autograd.grad(
            output, [leaf_TE, *self.parameters], gradient, allow_unused=True, materialize_grads=False
        )
        if of_leaf_TE is not None:
            self.of_embeds_TE[chunk.tokens] += of_leaf_TE
        self.add_of_parameters(found)

    def add_of_parameters(self, found: Sequence[Tensor | None]) -> None:
        """Adds one gradient for each parameter, in place; the first of a parameter is taken over without a copy."""
        totals, news, kept = [], [], set()
        for number, (total, new) in enumerate(zip(self.of_parameters, found, strict=True)):
            if new is None:
                continue
            if total is not None:
                totals.append(total)
                news.append(new)
                continue
            # two parameters may share one gradient tensor, or one may be an expanded scalar (stride 0)
            alone = new.is_contiguous() and new.data_ptr() not in kept
            kept.add(new.data_ptr())
            self.of_parameters[number] = new if alone else new.clone(memory_format=torch.contiguous_format)
        if totals:
            torch._foreach_add_(totals, news)

    def scaled(self, factor: float) -> "Gradients":
        """Multiplies all by a number, in place."""
        if factor != 1.0:
            torch._foreach_mul_([self.of_embeds_TE, *(g for g in self.of_parameters if g is not None)], factor)
        return self


def cached_backward(loss: Tensor, views: Sequence[CachedPass], gradients: Gradients) -> None:
    """Adds the gradients of a scalar loss over the embeddings of one or more encodings of the same texts (SimCSE has
    two), and frees all graphs."""
    of_pooled_and_parameters = torch.autograd.grad(
        loss, [*(view.pooled_BH for view in views), *gradients.parameters], allow_unused=True, materialize_grads=False
    )
    gradients.add_of_parameters(of_pooled_and_parameters[len(views) :])
    for view, of_pooled_BH in zip(views, of_pooled_and_parameters[: len(views)], strict=True):
        if of_pooled_BH is not None:
            view.backward(of_pooled_BH, gradients)


class _PrecomputedGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, count, *gradients_and_parameters):
        ctx.gradients = gradients_and_parameters[:count]
        return value.clone()

    @staticmethod
    def backward(ctx, grad_output):
        gradients, ctx.gradients = ctx.gradients, None  # handed over, so scaled in place, and only once
        torch._foreach_mul_(gradients, grad_output.to(gradients[0].dtype))
        return None, None, *([None] * len(gradients)), *gradients


def with_gradients(value: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """`value` as a function of `parameters` whose gradients are already known: its backward costs no pass.

    The gradients are handed over: the backward pass scales them in place. `value` does not depend on a parameter whose
    gradient is None.
    """
    known = [(parameter, g) for parameter, g in zip(parameters, gradients, strict=True) if g is not None]
    if not known:
        return value
    parameters, gradients = zip(*known, strict=True)
    return _PrecomputedGradients.apply(value, len(gradients), *gradients, *parameters)
