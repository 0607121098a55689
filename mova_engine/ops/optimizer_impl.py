"""The optimizer step and gradient clipping as operators: references, and what PyTorch brings.

`adamw` is a factory of a torch Optimizer, because that is the form in which every vendor ships its fused step:
`(param_groups, *, lr, betas, eps, weight_decay) -> torch.optim.Optimizer`.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mova_engine.ops.reference import up


class WithoutCompiler(torch.optim.Optimizer):
    """An optimizer without torch's compiler: what torch wraps for `torch.compile` imports that, for seconds, when
    called. The wrappers keep the compiler from following into the function; outside of it they change nothing.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _unwrapped(super().add_param_group)(self, param_group)


class AdamWReference(WithoutCompiler):
    """AdamW (Loshchilov & Hutter, 2019) as its formula, one parameter after the other.

    m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, p = p (1 - lr wd) - lr * m/(1-b1^t) / (sqrt(v/(1-b2^t)) + eps).
    In float32 at least; p, m and v are rounded to p's dtype once a step.
    """

    def __init__(
        self, params: Iterable, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                t = state["step"].item()
                weight, g, m, v = (up(x) for x in (p, p.grad, state["exp_avg"], state["exp_avg_sq"]))
                m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g.square()
                step = group["lr"] * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + group["eps"])
                p.copy_(weight * (1 - group["lr"] * group["weight_decay"]) - step)
                state["exp_avg"].copy_(m)
                state["exp_avg_sq"].copy_(v)


class _AdamW(WithoutCompiler, torch.optim.AdamW):
    """torch's AdamW.

    skips_on_device: whether `step` obeys `found_inf`, a float32 scalar beside the weights: where it is 1, weights,
    moments and step counts keep their values, and the host need not know.
    """

    skips_on_device = False
    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return _unwrapped(super().step)(self, closure)


class _FusedAdamW(_AdamW):
    """torch's AdamW with one kernel for many tensors, which reads `found_inf` itself."""

    skips_on_device = True


def _unwrapped(method: Callable[..., Any]) -> Callable[..., Any]:
    """The function beneath a method's decorators; itself where it has none."""
    return inspect.unwrap(method.__func__)


def adamw_fused(
    params: Iterable, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.Optimizer:
    """torch's AdamW with its fused step; also for DTensor parameters."""
    return _FusedAdamW(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)


def adamw_foreach(
    params: Iterable, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.Optimizer:
    """torch's AdamW with multi-tensor steps."""
    return _AdamW(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=True)


def clip_grad_norm_reference(grads: list[Tensor], max_norm: float) -> Tensor:
    """Scale gradients in place so that their joint 2-norm is at most `max_norm`; returns the norm before, float32
    (float64 for float64).

    `norm = sqrt(sum g^2)`, `g <- g * min(1, max_norm / (norm + 1e-6))` (Pascanu et al., 2013). A non-finite norm
    leaves the gradients as they are: the caller must skip the step.
    """
    if not grads:
        return torch.zeros(())
    norm = torch.stack([up(g).norm() for g in grads]).norm()
    if torch.isfinite(norm):
        for g in grads:
            # Rounded to half precision the factor would be wrong for all gradients alike, by up to 0.4%.
            g.copy_(up(g) * (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def clip_grad_norm_foreach(grads: list[Tensor], max_norm: float) -> Tensor:
    """`clip_grad_norm` with one multi-tensor norm and one multi-tensor scaling."""
    if not grads:
        return torch.zeros(())
    norm = torch.stack([n.float() for n in torch._foreach_norm(grads, dtype=torch.float32)]).norm()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    # Without a sync: a non-finite norm scales by one.
    torch._foreach_mul_(grads, torch.where(torch.isfinite(norm), scale, torch.ones_like(scale)))
    return norm
