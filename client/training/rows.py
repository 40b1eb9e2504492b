"""Gradients of a few patients in one pass, one row each: what makes the loop engine fast.

One pass per patient costs some 5 ms of launching small operations (11 to 17 ms on a GPU), whatever her films. Here a
group of patients with *equally many films* goes through the model together. The trained layers' weights are taken out
of the graph, so that autograd computes the gradients of the layers' outputs only; each weight's gradient is then
formed patient by patient from the layer's input and that output gradient. A layer sees either one row a patient or
one row a film, the films of a patient next to each other; anything else is refused, and a group of each round is
checked against autograd.

Letters: B patients of a group, N rows of a layer, L cells, C channels, P trained parameters.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.dropout import _DropoutNd

from client.training.norm import group_norm
from shared_model.errors import PrivacyError

Columns = dict[nn.Parameter, slice]  # where a trained parameter's numbers lie in a row


def unknown_layers(model: nn.Module) -> list[str]:
    """Trained layers that have no rule here, and random ones; a model with any is trained one patient at a time."""
    return [
        name for name, module in model.named_modules()
        if (_trained(module) and not _known(module)) or (isinstance(module, _DropoutNd) and module.p > 0)
    ]  # fmt: skip


def _trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters(recurse=False))


def _known(module: nn.Module) -> bool:
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros" \
            and not isinstance(module.padding, str)  # fmt: skip
    if type(module) is nn.Embedding:
        return module.padding_idx is None and module.max_norm is None and not module.scale_grad_by_freq
    return type(module) in (nn.Linear, nn.GroupNorm, nn.LayerNorm)


class RowGradients:
    """A model prepared for :meth:`rows`; made by :func:`row_gradients`. Threads may share it."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.columns: Columns = {}
        self.width = 0
        for parameter in parameters:
            self.columns[parameter] = slice(self.width, self.width + parameter.numel())
            self.width += parameter.numel()
        self._thread, self._like = threading.local(), parameters[0].detach()

    @property
    def tape(self) -> _Tape:
        """What the calling thread's current pass writes down."""
        tape: _Tape = self._thread.tape
        return tape

    def rows(self, patients: int, films: int, loss: Callable[[], Tensor]) -> Tensor:
        """[B, P], in the parameters' type: gradients of `loss()`, the sum over `patients` with `films` films each.

        Raises:
            PrivacyError: a layer saw rows that are neither patients nor films.
        """
        tape = self._thread.tape = _Tape(patients, films, self._like.new_zeros(patients, self.width))
        try:
            value = loss()
            if value.requires_grad and tape.beginnings:
                torch.autograd.grad(value, tape.beginnings, allow_unused=True)  # each layer writes as its turn comes
        finally:
            tape.beginnings.clear()  # they hold the graph, and its hooks the tape: the circle would hold the memory
        return tape.rows_BP

    def write(self, module: nn.Module, given: Tensor, gradient: Tensor, tape: _Tape) -> None:
        weight = self._target(module.weight, tape)
        bias = self._target(getattr(module, "bias", None), tape)
        if isinstance(module, nn.Conv2d):
            _conv(module, tape.rows(given), tape.rows(gradient), weight, bias)
        elif isinstance(module, nn.Linear):
            _linear(tape.rows(given), tape.rows(gradient), weight, bias)
        elif isinstance(module, nn.LayerNorm):
            normal = functional.layer_norm(given, module.normalized_shape, None, None, module.eps)
            _scale(tape.rows(normal * gradient), tape.rows(gradient), module.normalized_shape, weight, bias)
        else:
            assert isinstance(module, nn.Embedding)
            chosen = functional.one_hot(given, module.num_embeddings).to(gradient.dtype)
            _linear(tape.rows(gradient), tape.rows(chosen), weight, None)

    def _target(self, parameter: Any, tape: _Tape) -> Tensor | None:
        """The parameter's columns as [B, *shape], or None where it is absent or not trained."""
        columns = self.columns.get(parameter) if parameter is not None else None
        return None if columns is None else tape.rows_BP[:, columns].view(-1, *parameter.shape)

    def norm_sink(self, module: nn.GroupNorm) -> Callable[[Tensor, Tensor, _Tape], None]:
        """Takes a GroupNorm's gradients per row [N, C] from its own backward pass."""

        def sink(scale_NC: Tensor, shift_NC: Tensor, tape: _Tape) -> None:
            for parameter, rows_NC in ((module.weight, scale_NC), (module.bias, shift_NC)):
                target = self._target(parameter, tape)
                if target is not None:
                    target += tape.rows(rows_NC).sum(1)

        return sink


class _Tape:
    """One pass: the rows that come of it, and the tensors that its graph begins with."""

    def __init__(self, patients: int, films: int, rows_BP: Tensor) -> None:
        self.patients, self.films, self.rows_BP = patients, films, rows_BP
        self.beginnings: list[Tensor] = []

    def rows(self, tensor: Tensor) -> Tensor:
        """[N, ...] -> [B, N/B, ...], the rows of a patient together.

        Raises:
            PrivacyError: the rows are not hers.
        """
        per_patient, rest = divmod(tensor.shape[0], self.patients)
        if rest or per_patient not in (1, self.films):
            raise PrivacyError("a layer saw rows that are neither patients nor films", found=tensor.shape[0],
                               expected=f"{self.patients} or {self.patients} x {self.films}",
                               remedy="use training.engine=opacus")  # fmt: skip
        return tensor.view(self.patients, per_patient, *tensor.shape[1:])


def _conv(module: nn.Conv2d, given: Tensor, gradient: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    if bias is not None:
        bias += gradient.sum((1, 3, 4))
    if weight is None:
        return
    if module.kernel_size == (1, 1) and module.stride == (1, 1) and module.padding == (0, 0):
        _linear(given.movedim(2, -1), gradient.movedim(2, -1), weight.flatten(2), None)
        return
    if given.device.type == "cuda":
        _conv_at_once(module, given, gradient, weight)
        return
    for target, x, g in zip(weight, given, gradient, strict=True):
        target += _conv_weight(module, x, g, module.weight, groups=1)


def _conv_at_once(module: nn.Conv2d, given: Tensor, gradient: Tensor, weight: Tensor) -> None:
    """All patients as groups of one convolution: one start of a kernel, where the loop above would have B."""
    B, out = gradient.shape[0], module.weight.shape[0]
    x, g = (t.transpose(0, 1).flatten(1, 2) for t in (given, gradient))  # [B, V, C, H, W] -> [V, B*C, H, W]
    like = module.weight.repeat(B, 1, 1, 1)  # of which the shape is asked, no number
    weight += _conv_weight(module, x, g, like, groups=B).view(B, out, *module.weight.shape[1:])


def _conv_weight(module: nn.Conv2d, x: Tensor, gradient: Tensor, weight: Tensor, *, groups: int) -> Tensor:
    """The weight's gradient of a convolution."""
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, list(module.stride), list(module.padding), [1, 1], False, [0, 0], groups,
        [False, True, False],
    )[1]  # fmt: skip
    return found


def _linear(given: Tensor, gradient: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    out_BLO = gradient.flatten(1, -2)
    if bias is not None:
        bias += out_BLO.sum(1)
    if weight is None:
        return
    into_BLI = given.flatten(1, -2)
    if out_BLO.shape[1] == 1:
        weight.addcmul_(out_BLO.transpose(1, 2), into_BLI)  # an outer product for each patient, all in one operation
    else:
        weight += torch.bmm(out_BLO.transpose(1, 2), into_BLI)


def _scale(product: Tensor, gradient: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None) -> None:
    for target, value in ((weight, product), (bias, gradient)):
        if target is not None:
            target += value.reshape(value.shape[0], -1, *shape).sum(1)


@contextmanager
def row_gradients(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[RowGradients]:
    """Exchange the trained layers' forward passes for ones that write down, and put the model back afterwards."""
    recorder = RowGradients(parameters)
    changed = [module for module in model.modules() if _trained(module)]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        for module in changed:
            make = _norm_forward if isinstance(module, nn.GroupNorm) else _forward
            module.__dict__["forward"] = make(module, recorder)
        yield recorder
    finally:
        for module in changed:
            module.__dict__.pop("forward", None)
        for parameter in parameters:
            parameter.requires_grad_(True)


def _forward(module: nn.Module, recorder: RowGradients) -> Callable[[Tensor], Tensor]:
    plain = type(module).forward

    def forward(x: Tensor) -> Tensor:
        output: Tensor = plain(module, x)
        tape, given = recorder.tape, [x.detach()]
        if not output.requires_grad:  # the first trained layer of a branch: the graph begins here
            output.requires_grad_()
            tape.beginnings.append(output)

        def write(gradient: Tensor) -> None:
            recorder.write(module, given.pop(), gradient, tape)

        # While the pass goes on, not after it: what a layer was given, and its output's gradient, are let go at once.
        output.register_hook(write)  # type: ignore[no-untyped-call]
        return output

    return forward


def _norm_forward(module: nn.Module, recorder: RowGradients) -> Callable[[Tensor], Tensor]:
    assert isinstance(module, nn.GroupNorm)
    sink = recorder.norm_sink(module)

    def forward(x: Tensor) -> Tensor:
        tape = recorder.tape
        if not x.requires_grad:  # no trained layer before: its backward pass must be asked for
            x = x.detach().requires_grad_()
            tape.beginnings.append(x)
        return group_norm(x, module, lambda scale, shift: sink(scale, shift, tape))

    return forward
