"""Synchformer: by how much do picture and sound disagree, as one of 21 offsets.

Iashin et al., "Synchformer: Efficient Synchronization from Sparse Cues" (arXiv 2401.16423): segments of 0.64 s are
described one by one, the picture by Motionformer with divided attention (arXiv 2106.05392, 2102.05095), the sound by
the Audio Spectrogram Transformer (arXiv 2104.01778); a transformer compares 14 segments of both. Parameters carry the
names of the official state dict `synchformer_state_dict.pth` (v-iashin/Synchformer, MIT).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 768
HEADS = 12
DEPTH = 12
# A segment of pictures: 16 of 224 x 224, in patches of 2 x 16 x 16.
FRAMES = 16
SIDE = 224
PATCH = 16
TUBE = 2
# A segment of sound: 66 columns of 128 mel bands, in patches of 16 x 16 every 10.
COLUMNS = 66
BANDS = 128
STRIDE = 10
# What the comparison reads.
SEGMENTS = 14
CLASSES = 21
COMPARE_DEPTH = 3
COMPARE_HEADS = 8
VIDEO_TOKENS = FRAMES // TUBE
AUDIO_TOKENS = (COLUMNS - PATCH) // STRIDE + 1


class Synchformer(nn.Module):
    """Features of segments, and logits of 21 offsets between 14 segments of pictures and of sound."""

    def __init__(self) -> None:
        super().__init__()
        self.vfeat_extractor = Motionformer()
        self.afeat_extractor = SoundTransformer()
        self.vproj = nn.Linear(WIDTH, WIDTH)
        self.aproj = nn.Linear(WIDTH, WIDTH)
        self.transformer = OffsetTransformer()

    def video_features(self, segments: Tensor) -> Tensor:
        """[b, s, 16, 3, 224, 224] in -1..1, red first -> [b, s, 8, 768]."""
        made = self.vfeat_extractor(segments.flatten(0, 1).transpose(1, 2))
        return made.unflatten(0, segments.shape[:2])

    def audio_features(self, segments: Tensor) -> Tensor:
        """Log mel energies [b, s, 128, 66], normalised -> [b, s, 6, 768]."""
        return self.afeat_extractor(segments.flatten(0, 1)).unflatten(0, segments.shape[:2])

    def compare(self, video: Tensor, audio: Tensor) -> Tensor:
        """Features [b, 14, 8, 768] and [b, 14, 6, 768] -> logits [b, 21]."""
        return self.transformer(self.vproj(video).flatten(1, 2), self.aproj(audio).flatten(1, 2))


class Motionformer(nn.Module):
    """Segments of pictures [n, 3, 16, 224, 224] -> one vector for each pair of pictures [n, 8, 768]."""

    def __init__(self) -> None:
        super().__init__()
        places = (SIDE // PATCH) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, places + 1, WIDTH))
        self.temp_embed = nn.Parameter(torch.zeros(1, VIDEO_TOKENS, WIDTH))
        # Of single pictures: in the official checkpoint, read by nothing.
        self.patch_embed = _Projection(nn.Conv2d(3, WIDTH, PATCH, PATCH))
        self.patch_embed_3d = _Projection(nn.Conv3d(3, WIDTH, (TUBE, PATCH, PATCH), (TUBE, PATCH, PATCH)))
        self.blocks = nn.ModuleList([DividedBlock() for _ in range(DEPTH)])
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.spatial_attn_agg = Pooling()

    def forward(self, segments: Tensor) -> Tensor:
        patches = self.patch_embed_3d(segments)
        # Of one place at all times, then of the next time: places vary fastest.
        places = (self.pos_embed[:, None, 1:] + self.temp_embed[:, :, None]).flatten(1, 2)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(patches), -1, -1)
        x = torch.cat((cls, patches + places), 1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x[:, 1:]).unflatten(1, (VIDEO_TOKENS, -1))
        return self.spatial_attn_agg(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class _Projection(nn.Module):
    """Patches of [n, c, ...] as tokens [n, patches, 768]."""

    def __init__(self, proj: nn.Module) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class DividedBlock(nn.Module):
    """Attention over time at each place, then over places at each time, then an MLP, each before a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = DividedAttention("space")
        self.timeattn = DividedAttention("time")
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.mlp = _Mlp()
        self.norm3 = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.timeattn(self.norm3(x))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DividedAttention(nn.Module):
    """Attention of [n, 1 + 8 places, 768] within each place ("time") or each time ("space").

    The first token attends to all, and all attend to it.
    """

    def __init__(self, over: Literal["time", "space"]) -> None:
        super().__init__()
        self.over = over
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)  # each [n, heads, tokens, d]
        cls = F.scaled_dot_product_attention(q[:, :, :1], k, v)
        groups = [self._grouped(t[:, :, 1:]) for t in (q, k, v)]  # [n heads, groups, tokens, d]
        keys, values = (
            torch.cat((t[:, :, :1].flatten(0, 1)[:, None].expand(-1, g.shape[1], -1, -1), g), 2)
            for t, g in zip((k, v), groups[1:], strict=True)
        )
        made = F.scaled_dot_product_attention(groups[0], keys, values)
        if self.over == "time":
            made = made.transpose(1, 2)
        made = made.flatten(1, 2).unflatten(0, (len(x), HEADS))
        return self.proj(torch.cat((cls, made), 2).transpose(1, 2).flatten(2))

    def _grouped(self, t: Tensor) -> Tensor:
        t = t.flatten(0, 1).unflatten(1, (VIDEO_TOKENS, -1))
        return t.transpose(1, 2) if self.over == "time" else t


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Pooling(nn.Module):
    """A transformer layer over tokens and one more, which becomes the group's vector: [n, tokens, 768] -> [n, 768].

    Only the added token's answer is computed. The parameters are those of torch's TransformerEncoderLayer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.self_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.linear1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.linear2 = nn.Linear(4 * WIDTH, WIDTH)
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        cls = self.cls_token.expand(len(x), -1, -1)
        normed = self.norm1(torch.cat((cls, x), 1))
        attended, _ = self.self_attn(normed[:, :1], normed, normed, need_weights=False)
        cls = cls + attended
        return (cls + self.linear2(F.gelu(self.linear1(self.norm2(cls)))))[:, 0]


class SoundTransformer(nn.Module):
    """Segments of sound [n, 128, 66] -> one vector for each of 6 times [n, 6, 768]."""

    def __init__(self) -> None:
        super().__init__()
        self.ast = _Ast()
        self.freq_attn_agg = Pooling()

    def forward(self, segments: Tensor) -> Tensor:
        x = self.ast(segments)[:, 2:].unflatten(1, (-1, AUDIO_TOKENS))  # [n, bands, times, 768]
        x = x.transpose(1, 2)
        return self.freq_attn_agg(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class _Ast(nn.Module):
    """The Audio Spectrogram Transformer on [n, 128, 66], under transformers' parameter names -> [n, 74, 768]."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = _AstEmbeddings()
        self.encoder = _AstEncoder()
        self.layernorm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        return self.layernorm(self.encoder(self.embeddings(x)))


class _AstEmbeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        bands = (BANDS - PATCH) // STRIDE + 1
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.position_embeddings = nn.Parameter(torch.zeros(1, bands * AUDIO_TOKENS + 2, WIDTH))
        self.patch_embeddings = _AstPatches()

    def forward(self, x: Tensor) -> Tensor:
        first = torch.cat((self.cls_token, self.distillation_token), 1).expand(len(x), -1, -1)
        return torch.cat((first, self.patch_embeddings(x)), 1) + self.position_embeddings


class _AstPatches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Conv2d(1, WIDTH, PATCH, STRIDE)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x[:, None]).flatten(2).transpose(1, 2)


class _AstEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_AstLayer() for _ in range(DEPTH)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x)
        return x


class _AstLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        attention = {name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict(
            {"attention": nn.ModuleDict(attention), "output": nn.ModuleDict({"dense": nn.Linear(WIDTH, WIDTH)})}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, 4 * WIDTH)})
        self.output = nn.ModuleDict({"dense": nn.Linear(4 * WIDTH, WIDTH)})
        self.layernorm_before = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layernorm_after = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.layernorm_before(x)
        attention = self.attention.get_submodule
        q, k, v = (attention(f"attention.{name}")(normed) for name in ("query", "key", "value"))
        x = x + attention("output.dense")(_attend(q, k, v, HEADS))
        hidden = F.gelu(self.intermediate["dense"](self.layernorm_after(x)))
        return x + self.output["dense"](hidden)


class OffsetTransformer(nn.Module):
    """Tokens of pictures [b, 112, 768] and of sound [b, 84, 768] -> logits [b, 21], read from an added first token."""

    def __init__(self) -> None:
        super().__init__()
        self.OFF_tok = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.MOD_tok = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.vis_in_lnorm = nn.LayerNorm(WIDTH)
        self.aud_in_lnorm = nn.LayerNorm(WIDTH)
        self.pos_emb_cfg = nn.Module()
        tokens = SEGMENTS * (VIDEO_TOKENS + AUDIO_TOKENS) + 2
        self.pos_emb_cfg.pos_emb = nn.Parameter(torch.zeros(1, tokens, WIDTH))
        self.blocks = nn.Sequential(*(_CompareBlock() for _ in range(COMPARE_DEPTH)))
        self.ln_f = nn.LayerNorm(WIDTH)
        self.off_head = nn.Linear(WIDTH, CLASSES)

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        off, mod = (token.expand(len(video), -1, -1) for token in (self.OFF_tok, self.MOD_tok))
        x = torch.cat((off, self.vis_in_lnorm(video), mod, self.aud_in_lnorm(audio)), 1)
        x = self.blocks(x + self.get_parameter("pos_emb_cfg.pos_emb"))
        return self.off_head(self.ln_f(x[:, 0]))


class _CompareBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(WIDTH)
        self.ln2 = nn.LayerNorm(WIDTH)
        self.attn = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in ("key", "query", "value", "proj")})
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln1(x)
        q, k, v = (self.attn[name](normed) for name in ("query", "key", "value"))
        x = x + self.attn["proj"](_attend(q, k, v, COMPARE_HEADS))
        return x + self.mlp(self.ln2(x))


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k' / sqrt d) v of [n, tokens, 768] by head."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
