"""A trainer of one's own over the engine's parts: operators, dual tower, schedule and codecs; no trainer of ours.

    python examples/downstream_trainer.py --steps 200

It draws bouncing balls that click, trains the nano model on them in a plain PyTorch loop, and runs one operator, the
gated residual with the modulated LayerNorm after it, by an implementation that this file brings itself.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

import mova_engine as me


def gate_norm_addcmul(
    x: Tensor, y: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """`r = x + gate * y`, `layer_norm(r) * (1 + scale) + shift`: each product and its sum in one pass; returns both."""
    r = x + y if gate is None else torch.addcmul(x, y, gate.unsqueeze(1)).to(x.dtype)
    normed = F.layer_norm(r.to(shift.dtype), r.shape[-1:], eps=eps)
    return r, torch.addcmul(shift.unsqueeze(1), normed, 1 + scale.unsqueeze(1)).to(x.dtype)


def own_operators(device: str) -> me.OpTable:
    """The engine's table with this file's implementation of one operator, chosen by name: it serves or it fails."""
    name, mine = "gate_residual_norm_modulate", me.Implementation("addcmul", f"{__name__}:gate_norm_addcmul")
    operators = {**me.OPERATORS, name: me.OPERATORS[name].with_implementation(mine)}
    return me.bind(me.get_backend(device), {name: "addcmul"}, operators=operators)


def train(steps: int, batch: int = 8, clips: int = 24, device: str = "cpu", seed: int = 0) -> list[float]:
    """Train nano for `steps` steps on `clips` drawn clips; returns the loss of each step."""
    generator, config = torch.Generator().manual_seed(seed), me.get_preset("nano")
    me.get_backend(device).use_threads(None, config.video.dim)  # one thread: tensors this small are not worth sharing
    pictures, sound, captions = me.draw_clips(clips, seed)
    frames = me.video_from_uint8(torch.from_numpy(pictures))
    first_frame = torch.cat([frames[:, :, :1], torch.zeros_like(frames[:, :, 1:])], 2)
    codec = me.build_video_codec(config.video_codec, device=device)
    latents, condition = codec.encode(frames), me.first_frame_condition(codec.encode(first_frame))
    audio_latents = me.build_audio_codec(config.audio_codec, device=device).encode(torch.from_numpy(sound).unsqueeze(1))
    text = me.build_text_encoder("bytes", tokens=config.text_tokens, dim=config.video.text_dim, device=device)
    context = text.encode(captions)

    model = me.Mova(config, own_operators(device), device=device)
    model.init_weights(torch.Generator(device).manual_seed(seed))
    schedule, weights = me.Schedule(video_shift=3.0, audio_shift=3.0), me.LossWeights(skip_first_frame=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98))
    losses: list[float] = []
    for _ in range(steps):
        rows = torch.randint(clips, (batch,), generator=generator)
        times = schedule.draw(generator, batch, stratified=True)
        video, audio = latents[rows], audio_latents[rows]
        noise_v, noise_a = (torch.randn(x.shape, generator=generator).to(x) for x in (video, audio))
        noisy_video = me.video_input(me.add_noise(video, noise_v, times.video_sigma), condition[rows])
        noisy_audio = me.add_noise(audio, noise_a, times.audio_sigma)
        found = model(
            me.Modality(noisy_video, times.video_timestep, context[rows]),
            me.Modality(noisy_audio, times.audio_timestep, context[rows]),
        )
        wanted = me.velocity_target(video, noise_v), me.velocity_target(audio, noise_a)
        loss = me.velocity_loss(found[0], wanted[0], found[1], wanted[1], weights).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    history = train(args.steps, device=args.device)
    first, last = history[:10], history[-10:]
    print(f"loss {sum(first) / len(first):.3f} in the first ten steps, {sum(last) / len(last):.3f} in the last ten")
