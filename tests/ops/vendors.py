"""Stand-ins for packages that need a GPU: modules with the published signatures, computing by the references.

They show that the adapters speak to those packages as they document it: names, order and layout of arguments, what is
returned, what is written in place. They say nothing about the packages themselves.
"""

import types

import torch

from mova_engine.ops import reference


def _scaled(q, softmax_scale):
    assert softmax_scale in (None, q.shape[-1] ** -0.5)


def flash2() -> dict[str, types.ModuleType]:
    """flash-attn 2.8: `flash_attn` with `flash_attn.flash_attn_interface`."""

    def flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
        deterministic=False, return_attn_probs=False,
    ):  # fmt: skip
        _scaled(q, softmax_scale)
        out, lse = reference.attention_lse_reference(q, k, v)
        return (out, lse, None) if return_attn_probs else reference.attention_reference(q, k, v)

    def _flash_attn_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal, window_size_left,
        window_size_right, softcap, alibi_slopes, deterministic, rng_state=None,
    ):  # fmt: skip
        assert (dropout_p, causal, window_size_left, window_size_right, softcap) == (0.0, False, -1, -1, 0.0)
        _scaled(q, softmax_scale)
        for place, grad in zip(
            (dq, dk, dv), reference.attention_backward_reference(dout, q, k, v, out, softmax_lse), strict=True
        ):
            place.copy_(grad)

    interface = types.ModuleType("flash_attn.flash_attn_interface")
    interface.flash_attn_func, interface._flash_attn_backward = flash_attn_func, _flash_attn_backward
    return {"flash_attn": types.ModuleType("flash_attn"), interface.__name__: interface}


def flash3() -> dict[str, types.ModuleType]:
    """flash-attn 3: `flash_attn_interface`."""

    def flash_attn_func(
        q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0, return_attn_probs=False,
    ):  # fmt: skip
        _scaled(q, softmax_scale)
        if q.dtype == torch.float8_e4m3fn:
            scales = (q_descale, k_descale, v_descale)
            assert all(x.shape == (q.shape[0], q.shape[2]) and x.dtype == torch.float32 for x in scales)
            whole = [x.float() * scale[:, None, :, None] for x, scale in zip((q, k, v), scales, strict=True)]
            return reference.attention_reference(*whole).to(torch.bfloat16)
        if return_attn_probs:
            return reference.attention_lse_reference(q, k, v)
        return reference.attention_reference(q, k, v)

    def _flash_attn_backward(
        dout, q, k, v, out, softmax_lse, cu_seqlens_q=None, cu_seqlens_k=None, sequed_q=None, sequed_k=None,
        max_seqlen_q=None, max_seqlen_k=None, dq=None, dk=None, dv=None, softmax_scale=None, is_causal=False,
        window_size_left=-1, window_size_right=-1, softcap=0.0, deterministic=False, sm_margin=0,
    ):  # fmt: skip
        _scaled(q, softmax_scale)
        for place, grad in zip(
            (dq, dk, dv), reference.attention_backward_reference(dout, q, k, v, out, softmax_lse), strict=True
        ):
            place.copy_(grad)

    interface = types.ModuleType("flash_attn_interface")
    interface.flash_attn_func, interface._flash_attn_backward = flash_attn_func, _flash_attn_backward
    return {interface.__name__: interface}


def flash4() -> dict[str, types.ModuleType]:
    """flash-attn 4: a namespace `flash_attn` that holds only `flash_attn.cute`."""

    def flash_attn_func(q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, return_lse=False):
        _scaled(q, softmax_scale)
        # The log-sum-exp comes along whether it was asked for or not, but is then not filled in.
        out = reference.attention_reference(q, k, v)
        return out, reference.attention_lse_reference(q, k, v)[1] if return_lse else None

    def _flash_attn_bwd(q, k, v, out, dout, lse, softmax_scale=None, causal=False, softcap=0.0):
        _scaled(q, softmax_scale)
        return (*reference.attention_backward_reference(dout, q, k, v, out, lse), None)

    interface = types.ModuleType("flash_attn.cute.interface")
    interface.flash_attn_func, interface._flash_attn_bwd = flash_attn_func, _flash_attn_bwd
    parents = {name: types.ModuleType(name) for name in ("flash_attn", "flash_attn.cute")}
    return parents | {interface.__name__: interface}


def sageattention() -> dict[str, types.ModuleType]:
    """sageattention 2: q and k rounded to int8, keys smoothed, with a scale for each token."""

    def sageattn(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, return_lse=False, **kwargs):
        assert q.dtype in (torch.float16, torch.bfloat16) and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        assert not (is_causal or return_lse or kwargs)
        _scaled(q, sm_scale)
        if tensor_layout == "HND":
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))

        def rounded(x):
            scale = x.float().abs().amax(-1, keepdim=True).clamp(min=1e-9) / 127
            return (x.float() / scale).round() * scale

        whole = rounded(q), rounded(k.float() - k.float().mean(1, keepdim=True)), v.float()
        out = reference.attention_reference(*whole).to(q.dtype)
        return out.transpose(1, 2) if tensor_layout == "HND" else out

    module = types.ModuleType("sageattention")
    module.sageattn = sageattn
    return {"sageattention": module}


def mindiesd() -> dict[str, types.ModuleType]:
    """MindIE-SD 3.1: `mindiesd.layers.flash_attn.sparse_attention`, which chooses blocks by a batch's first clip alone.
    Here it keeps all blocks.
    """

    def sparse_attention(
        q, k, v, attn_mask=None, scale=None, is_causal=False, head_num=1, input_layout="BNSD", inner_precise=0,
        sparse_type=None, txt_len=0, block_size=128, latent_shape_q=None, latent_shape_k=None, video_spans=None,
        keep_sink=True, keep_recent=True, cdf_threshold=1.0, sparsity=0.0, precision="bf16", **kwargs,
    ):  # fmt: skip
        assert (input_layout, sparse_type, txt_len, block_size, attn_mask) == ("BSND", "rf_v2", 0, 128, None)
        assert not (is_causal or kwargs) and 0 < sparsity < 1
        assert len(q) == 1 and q.shape[2] == head_num and all(x.is_contiguous() for x in (q, k, v))
        t, h, w = latent_shape_q
        assert latent_shape_q == latent_shape_k and t * h * w == q.shape[1]
        _scaled(q, scale)
        return reference.attention_reference(q, k, v)

    names = ("mindiesd", "mindiesd.layers", "mindiesd.layers.flash_attn")
    modules = {name: types.ModuleType(name) for name in names}
    modules[names[-1]].sparse_attention = sparse_attention
    return modules


FLASH = {2: flash2, 3: flash3, 4: flash4}


def apex() -> dict[str, types.ModuleType]:
    """NVIDIA apex: `amp_C`, `fused_layer_norm_cuda` and the parts of `apex` in front of them."""

    def multi_tensor_adam(
        chunk, overflow, lists, lr, beta1, beta2, eps, step, mode, bias_correction, weight_decay
    ):  # fmt: skip
        assert overflow.dtype == torch.int32 and type(step) is int and (mode, bias_correction) == (1, 1)
        for g, p, m, v in zip(*lists, strict=True):
            m.mul_(beta1).add_(g, alpha=1 - beta1)
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            update = m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + eps) + weight_decay * p
            p.sub_(lr * update)

    def multi_tensor_l2norm(chunk, overflow, lists, per_tensor):
        return torch.stack([g.norm() for g in lists[0]]).norm().reshape(1), None

    def fused_layer_norm_affine(input, weight, bias, normalized_shape, eps=1e-6, memory_efficient=False):
        assert normalized_shape == [input.shape[-1]] and weight.dtype == bias.dtype == input.dtype
        return reference.layer_norm_reference(input, weight, bias, eps=eps)

    def fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6, memory_efficient=False):
        assert normalized_shape == [input.shape[-1]] and weight.dtype == input.dtype
        return reference.rms_norm_reference(input, weight, eps=eps)

    names = ("amp_C", "fused_layer_norm_cuda", "apex", "apex.multi_tensor_apply", "apex.normalization")
    modules = {name: types.ModuleType(name) for name in (*names, "apex.normalization.fused_layer_norm")}
    modules["amp_C"].multi_tensor_adam, modules["amp_C"].multi_tensor_l2norm = multi_tensor_adam, multi_tensor_l2norm
    modules["apex.multi_tensor_apply"].multi_tensor_applier = lambda kernel, overflow, lists, *arguments: kernel(
        2048 * 32, overflow, lists, *arguments
    )
    norms = modules["apex.normalization.fused_layer_norm"]
    norms.fused_layer_norm_affine, norms.fused_rms_norm_affine = fused_layer_norm_affine, fused_rms_norm_affine
    return modules


def importable(modules: dict[str, types.ModuleType]) -> dict[str, types.ModuleType]:
    """The modules with what `importlib.util.find_spec` looks at."""
    for name, module in modules.items():
        module.__spec__ = types.SimpleNamespace(name=name, submodule_search_locations=[])
        module.__path__ = []
    return modules
