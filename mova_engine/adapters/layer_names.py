"""Names of the model's layers and parameters, and their names in other tools.

A full name is `component.layer`, as `video_dit.blocks.0.self_attn.q`. Most tools write one file per tower, with keys
that do not name the tower. Such names begin with `UNSAID` until the user or the file's metadata states the part.
"""

import re

from mova_engine.config.adapter_spec import PARTS
from mova_engine.config.model import COMPONENTS
from mova_engine.errors import MovaError, suggest

# The component of a name whose file does not state one.
UNSAID = "unsaid"
PART_OF = {components[0]: part for part, components in PARTS.items() if len(components) == 1}
_BRIDGE = "dual_tower_bridge"

_TOWER_LAYER = re.compile(
    r"blocks\.\d+\.((self_attn|cross_attn)\.[qkvo]|ffn\.[02])|patch_embedding|text_embedding\.[02]"
    r"|time_embedding\.[02]|time_projection\.1|head\.head"
)
_TOWER_MORE = re.compile(
    r"blocks\.\d+\.((self_attn|cross_attn)\.norm_[qk]\.weight|norm3\.(weight|bias)|modulation)|head\.modulation"
)
_DIRECTION = r"(audio_to_video|video_to_audio)_conditioners\.\d+\."
_BRIDGE_LAYER = re.compile(_DIRECTION + r"(inner\.[qkvo]|adaln\.linear|per_frame_pooling\.attention\.out_proj)")
_BRIDGE_MORE = re.compile(
    _DIRECTION + r"(inner\.norm_[qk]\.weight|y_norm\.(weight|bias)|per_frame_pooling\.(probe|layernorm\.(weight|bias)"
    r"|attention\.in_proj_(weight|bias)))|condition_scale"
)
# What a key without a layer in MOVA is, by a part of its name.
_FOREIGN = (
    (("k_img", "v_img", "img_emb", "add_k_proj", "add_v_proj", "image_embedder"), "image conditioning of Wan 2.1"),
    (("hada_", "lokr_", "oft_", "glora", "boft"), "LoHa, LoKr or OFT, which are no low-rank pairs"),
    (("lora_mid",), "a Tucker core"),
    (("lora_te", "text_encoder", "text_model"), "a text encoder's"),
)
# Parts of names that have an underscore of their own; where dots became underscores, it must stay.
_WORDS = (
    *("audio_to_video_conditioners", "video_to_audio_conditioners", "per_frame_pooling", "dual_tower_bridge"),
    *("self_attn", "cross_attn", "text_embedding", "time_embedding", "time_projection", "patch_embedding"),
    *("norm_q", "norm_k", "y_norm", "out_proj"),
)
_FLAT = re.compile(rf"({'|'.join(_WORDS)}|[A-Za-z0-9]+)(?:_|$)")
_DIFFUSERS = {
    "self_attn": "attn1",
    "cross_attn": "attn2",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
}
_DIFFUSERS_WHOLE = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "patch_embedding": "patch_embedding",
}
_FROM_DIFFUSERS = {theirs: ours for ours, theirs in _DIFFUSERS_WHOLE.items()}
_DIFFUSERS_BLOCK = re.compile(r"blocks\.(\d+)\.(?:attn([12])\.to_(q|k|v|out\.0)|ffn\.net\.(0\.proj|2))")


def full_name(layer: str, component: str = UNSAID) -> str | None:
    """`component.layer` of a layer with a weight and a bias; None if MOVA has no such layer. A layer of the bridge is
    recognised by its name alone.
    """
    if _BRIDGE_LAYER.fullmatch(layer) and component in (UNSAID, _BRIDGE):
        return f"{_BRIDGE}.{layer}"
    return f"{component}.{layer}" if component != _BRIDGE and _TOWER_LAYER.fullmatch(layer) else None


def full_parameter(parameter: str, component: str = UNSAID) -> str | None:
    """As `full_name`, for any parameter: `blocks.0.modulation`, or a layer's weight or bias."""
    layer, _, last = parameter.rpartition(".")
    if last in ("weight", "bias") and (name := full_name(layer, component)) is not None:
        return f"{name}.{last}"
    if _BRIDGE_MORE.fullmatch(parameter) and component in (UNSAID, _BRIDGE):
        return f"{_BRIDGE}.{parameter}"
    return f"{component}.{parameter}" if component != _BRIDGE and _TOWER_MORE.fullmatch(parameter) else None


def component_of(name: str) -> str:
    """The first part of a full name: one of COMPONENTS, or UNSAID."""
    return name.partition(".")[0]


def layer_of(name: str) -> str:
    """A full name without its component."""
    return name.partition(".")[2]


def split_component(name: str) -> tuple[str, str]:
    """(component, the rest) of a key that begins with one of the model's components; (UNSAID, all of it) otherwise."""
    component, _, rest = name.partition(".")
    return (component, rest) if component in COMPONENTS else (UNSAID, name)


def why_foreign(key: str) -> str:
    """What a key without a layer in MOVA probably is, by its name, as text; "" if that is not known."""
    return next((reason for words, reason in _FOREIGN if any(word in key for word in words)), "")


def unflattened(name: str) -> str:
    """`blocks_0_self_attn_q` -> `blocks.0.self_attn.q`: the inverse of `.replace(".", "_")` on a layer's name."""
    parts = [match[1] for match in _FLAT.finditer(name)]
    return ".".join(parts)


def to_diffusers(layer: str) -> str | None:
    """diffusers' name of a tower's layer."""
    if layer in _DIFFUSERS_WHOLE:
        return _DIFFUSERS_WHOLE[layer]
    if not (layer.startswith("blocks.") and _TOWER_LAYER.fullmatch(layer)):
        return None
    if layer.endswith((".ffn.0", ".ffn.2")):
        return layer.replace(".ffn.0", ".ffn.net.0.proj").replace(".ffn.2", ".ffn.net.2")
    return ".".join(_DIFFUSERS.get(part, part) for part in layer.split("."))


def from_diffusers(name: str) -> str | None:
    """A tower's layer by diffusers' name; None where MOVA has no such layer."""
    if name in _FROM_DIFFUSERS:
        return _FROM_DIFFUSERS[name]
    match = _DIFFUSERS_BLOCK.fullmatch(name)
    if match is None:
        return None
    block, attention, projection, feed_forward = match.groups()
    if feed_forward is not None:
        return f"blocks.{block}.ffn.{feed_forward[0]}"
    return f"blocks.{block}.{'self_attn' if attention == '1' else 'cross_attn'}.{projection[0]}"


def components_of_part(part: str) -> tuple[str, ...]:
    """The components that a part (as users name it) means. Raises MovaError for an unknown part."""
    if part not in PARTS:
        raise MovaError(f"unknown part '{part}'.{suggest(part, PARTS)} Known: {', '.join(PARTS)}")
    return PARTS[part]
