"""The book-keeping engine: one forward, one backward, no gradient of any unit (privacy 2).

Hooks note each trained layer's input and the gradient of its output. The trained parameters ask for no gradient
during the pass, so autograd carries the activations' gradients only and never forms that of a weight. From the
notes come every unit's norm and, once the clip factors are known, the weighted sum: one product a layer
(:mod:`clients.training.engines.layers`).

Source: Bu et al. 2023, "Differentially Private Optimization on Large Model at Small Cost", section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from clients.training.clipping import Clip, ClippedSum, Loss, trained_parameters
from clients.training.engines.fold import Fold, fold_of
from clients.training.engines.layers import RULES, Part, Reuse, supports
from shared.tasks.text import Prepared


def knows(layer: nn.Module) -> bool:
    """Return whether a trainable layer, with the options that it has, is in the table."""
    return supports(layer)


@contextmanager
def attach(model: nn.Module) -> Iterator[ClippedSum]:
    """Attach the book-keeping hooks for the time of a training round and leave the model clean.

    Raises:
        ValueError: when a trainable layer is not in the table; see :func:`knows`.
    """
    trained = [layer for layer in model.modules() if any(p.requires_grad for p in layer.parameters(recurse=False))]
    if not all(knows(layer) for layer in trained):
        raise ValueError("a trainable layer is not in the table")
    books = Books(model)
    handles = [layer.register_forward_hook(books.note) for layer in trained]
    try:
        yield books.clipped_sum
    finally:
        for handle in handles:
            handle.remove()


@dataclass(eq=False)
class Call:
    """One use of a layer: its input, and the gradient of its output once the backward pass was there."""

    inputs: Tensor
    gradient: Tensor | None = None

    def keep(self, gradient: Tensor) -> None:
        """Take the gradient of the layer's output."""
        self.gradient = gradient


@dataclass(eq=False)
class Books:
    """The notes of one micro-batch at a time."""

    model: nn.Module
    _calls: dict[nn.Module, list[Call]] = field(default_factory=dict)

    def note(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Note a layer's input and ask for the gradient of its output; a forward hook."""
        if len(inputs) != 1:
            raise RuntimeError("a trained layer takes one positional input")
        call = Call(inputs[0].detach())
        self._calls.setdefault(layer, []).append(call)
        if output.requires_grad:
            _tell(output, call)
            return output
        # Nothing before this layer asks for a gradient, so the pass ends here. The copy may be changed in place.
        start = output.detach().requires_grad_()
        _tell(start, call)
        return start.clone()

    def clipped_sum(self, batch: Prepared, loss: Loss, clip: Clip) -> Tensor:
        """Return the clipped sum of a micro-batch; see :class:`clients.training.clipping.ClippedSum`."""
        parameters = trained_parameters(self.model)
        try:
            for parameter in parameters:
                parameter.requires_grad = False
            loss(self.model, batch).sum().backward()  # type: ignore[no-untyped-call]  # not annotated by torch
        except BaseException:
            self._calls.clear()
            raise
        finally:
            for parameter in parameters:
                parameter.requires_grad = True
        parts = self._parts(fold_of(batch))
        if not parts:
            raise RuntimeError("a trained parameter has no gradient for each unit")
        factors = clip.factors(torch.stack([part.squares for part in parts]).sum(0))
        if not bool(factors.all()):
            for part in parts:
                part.drop(factors == 0)
        pairs = [pair for part in parts for pair in part.weighted(factors)]
        sums = dict(pairs)
        # A parameter that two layers share would have two parts, whose norms do not simply add.
        if not len(pairs) == len(sums) == len(parameters):
            raise RuntimeError("a trained parameter has no gradient for each unit")
        return _in_layout_order(sums, parameters)

    def _parts(self, fold: Fold) -> list[Part]:
        """Return what each trained layer adds to norms and sums, and close the books."""
        calls, self._calls = self._calls, {}
        reuse = Reuse()
        return [part for layer, uses in calls.items() for part in _layer_parts(layer, uses, fold, reuse)]


def _in_layout_order(sums: dict[Tensor, Tensor], parameters: list[nn.Parameter]) -> Tensor:
    """Round each parameter's sum to integers and write it to its place; shape (num_parameters,), int64."""
    sizes = [parameter.numel() for parameter in parameters]
    total = torch.empty(sum(sizes), dtype=torch.int64, device=parameters[0].device)
    for place, parameter in zip(torch.split(total, sizes), parameters, strict=True):
        place.copy_(sums[parameter].flatten().round_())
    return total


def _tell(output: Tensor, call: Call) -> None:
    """Have the backward pass hand an output's gradient to its call."""
    output.register_hook(call.keep)  # type: ignore[no-untyped-call]  # torch does not annotate it


def _layer_parts(layer: nn.Module, uses: list[Call], fold: Fold, reuse: Reuse) -> list[Part]:
    """Return the parts of one layer; one that is used several times has its uses side by side."""
    inputs, gradients = [], []
    for call in uses:
        if call.gradient is None:
            continue  # this use did not reach the loss
        inputs.append(call.inputs)
        gradients.append(call.gradient)
    return list(RULES[type(layer)](layer, inputs, gradients, fold, reuse)) if inputs else []
