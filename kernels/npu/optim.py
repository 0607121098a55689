"""AdamW by torch_npu's NpuFusedAdamW, which moves all weights and gradients into blocks of memory.

Not the first choice: torch's own fused step runs on the device too, reads every tensor once, and has none of the traps
that are guarded against here.
"""

from collections.abc import Iterable

import torch

# Weights and gradients point into the optimizer's blocks without owning them, and outlive it: the blocks stay.
_BLOCKS: list[torch.Tensor] = []
_REMEDY = "torch.optim.AdamW(fused=True) takes it"


def fused_adamw(
    params: Iterable, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An NpuFusedAdamW. TypeError for DTensor parameters (FSDP2): their shards cannot be put into one block."""
    import torch_npu
    from torch.distributed.tensor import DTensor

    groups = list(params)
    if any(
        isinstance(p, DTensor) for group in groups for p in (group["params"] if isinstance(group, dict) else [group])
    ):
        raise TypeError(f"NpuFusedAdamW does not take DTensor parameters (FSDP2); {_REMEDY}")
    return _guarded(torch_npu.optim.NpuFusedAdamW)(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def _guarded(base: type) -> type:
    """NpuFusedAdamW for trainers that let go of gradients between steps.

    Its first step puts the gradients into one block and reads that block ever after. A gradient that is a new tensor
    would not be seen, and weights without one would be decayed all the same: here new gradients are copied into the
    block, and another set of weights with gradients is refused.
    """

    class GuardedNpuFusedAdamW(base):
        def _trained(self) -> list[torch.Tensor]:
            return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

        def _collect(self) -> None:
            trained = self._trained()
            if not self.is_params_grads_combined:
                self._maybe_init_combined_params_and_grads()
                # After it every gradient is a view of the block.
                self._slots = {id(p): p.grad for p in trained}
                blocks = (*self.params_all_group_combined, *self.grads_all_group_combined)
                _BLOCKS.extend(block for block in blocks if block is not None)
                return
            if {id(p) for p in trained} != self._slots.keys():
                raise RuntimeError(f"NpuFusedAdamW wants gradients of the same weights in every step; {_REMEDY}")
            for p in trained:
                slot = self._slots[id(p)]
                if p.grad is not slot:
                    slot.copy_(p.grad)
                    p.grad = slot

        @torch.no_grad()
        def step(self, closure=None):
            self._collect()
            return super().step(closure)

        @torch.no_grad()
        def clip_grad_norm_fused_(self, max_norm: float, norm_type: float = 2):
            self._collect()
            return super().clip_grad_norm_fused_(max_norm, norm_type)

        def _init_param_state(self, p, amsgrad):
            super()._init_param_state(p, amsgrad)
            # As torch's optimizers keep it, so that one kind of checkpoint serves all.
            self.state[p]["step"] = torch.as_tensor(self.state[p]["step"], dtype=torch.float32, device="cpu")

        def _combine_group_param_states(self, group_index):
            super()._combine_group_param_states(group_index)
            for state in self.combined_param_states_indexed_by_group[group_index]:
                state["step"] = int(state["step"])

    return GuardedNpuFusedAdamW
