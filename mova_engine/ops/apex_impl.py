"""NVIDIA apex: fused norms, the multi-tensor AdamW step and the multi-tensor norm of gradients.

It is recognised by its compiled modules `amp_C` and `fused_layer_norm_cuda`: PyPI's package named apex is another one.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.ops import requirements


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """`layer_norm` by apex."""
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine

    requirements.norm("layer_norm", x, weight=weight, bias=bias)
    return fused_layer_norm_affine(x, weight.to(x.dtype), bias.to(x.dtype), list(x.shape[-1:]), eps)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """`rms_norm` by apex."""
    from apex.normalization.fused_layer_norm import fused_rms_norm_affine

    requirements.norm("rms_norm", x, weight=weight)
    return fused_rms_norm_affine(x, weight.to(x.dtype), list(x.shape[-1:]), eps)


class ApexAdamW(torch.optim.Optimizer):
    """AdamW by the kernel of apex's FusedAdam, for float32 parameters.

    That class counts steps for a whole group, outside of the state that checkpoints hold, and would give an expert that
    rested the others' count. Here each parameter has its own, under the names of torch's AdamW.
    """

    def __init__(
        self, params: Iterable, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        import amp_C
        from apex.multi_tensor_apply import multi_tensor_applier

        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._apply, self._kernel = multi_tensor_applier, amp_C.multi_tensor_adam

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient, in one launch for all that took equally many steps."""
        for group in self.param_groups:
            together: dict[tuple[torch.device, int], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.dtype != torch.float32 or p.grad.dtype != torch.float32:
                    raise MovaError(f"adamw: apex's step serves float32 parameters and gradients, one is {p.dtype}")
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                together.setdefault((p.device, int(state["step"])), []).append(p)
            for (device, step), params in together.items():
                self._update(group, device, step, params)

    def _update(self, group: dict, device: torch.device, step: int, params: list[Tensor]) -> None:
        overflow = torch.zeros(1, dtype=torch.int32, device=device)
        moments = ([self.state[p][key] for p in params] for key in ("exp_avg", "exp_avg_sq"))
        # The ones: decoupled weight decay, and bias correction.
        self._apply(
            self._kernel, overflow, [[p.grad for p in params], params, *moments], group["lr"], *group["betas"],
            group["eps"], step, 1, 1, group["weight_decay"],
        )  # fmt: skip


def clip_grad_norm(grads: list[Tensor], max_norm: float) -> Tensor:
    """`clip_grad_norm` with apex's multi-tensor norm of float32 gradients."""
    import amp_C
    from apex.multi_tensor_apply import multi_tensor_applier

    if not grads:
        return torch.zeros(())
    requirements.same_device("clip_grad_norm", **{f"gradient {i}": g for i, g in enumerate(grads)})
    requirements.same_dtype("clip_grad_norm", (torch.float32,), **{f"gradient {i}": g for i, g in enumerate(grads)})
    overflow = torch.zeros(1, dtype=torch.int32, device=grads[0].device)
    norm = multi_tensor_applier(amp_C.multi_tensor_l2norm, overflow, [grads], False)[0].reshape(())
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(grads, torch.where(torch.isfinite(norm), scale, torch.ones_like(scale)))
    return norm
