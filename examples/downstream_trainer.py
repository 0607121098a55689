"""A trainer of one's own over the engine's parts: operators, dual tower, schedule and codecs; no trainer of ours.

    python examples/downstream_trainer.py --steps 200

It draws bouncing balls that click, trains the nano model on them in a plain PyTorch loop, and runs one operator, the
gated residual with the modulated LayerNorm after it, by an implementation that this file brings itself.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F

from mova_engine.backend import get_backend
from mova_engine.codecs import build_audio_codec, build_text_encoder, build_video_codec, video_from_uint8
from mova_engine.config.diffusion import LossWeights
from mova_engine.config.model import get_preset
from mova_engine.data.synthetic.bounce import TRAINED, draw, render_audio, render_video
from mova_engine.diffusion.conditioning import first_frame_condition, video_input
from mova_engine.diffusion.loss import velocity_loss
from mova_engine.diffusion.schedule import Schedule, add_noise, velocity_target
from mova_engine.models.mova import Mova, dual_tower_forward
from mova_engine.ops import OPERATORS, Implementation, OpTable, bind


def gate_norm_addcmul(x, y, gate, shift, scale, *, eps):
    """`r = x + gate * y`, `layer_norm(r) * (1 + scale) + shift`: each product and its sum in one pass; returns both."""
    r = x + y if gate is None else torch.addcmul(x, y, gate.unsqueeze(1)).to(x.dtype)
    normed = F.layer_norm(r.to(shift.dtype), r.shape[-1:], eps=eps)
    return r, torch.addcmul(shift.unsqueeze(1), normed, 1 + scale.unsqueeze(1)).to(x.dtype)


def own_operators(device: str) -> OpTable:
    """The engine's table with this file's implementation of one operator, chosen by name: it serves or it fails."""
    name, mine = "gate_residual_norm_modulate", Implementation("addcmul", f"{__name__}:gate_norm_addcmul")
    operators = {**OPERATORS, name: OPERATORS[name].with_implementation(mine)}
    return bind(get_backend(device), {name: "addcmul"}, operators=operators)


def train(steps: int, batch: int = 8, clips: int = 24, device: str = "cpu", seed: int = 0) -> list[float]:
    """Train nano for `steps` steps on `clips` drawn clips; returns the loss of each step."""
    generator, config = torch.Generator().manual_seed(seed), get_preset("nano")
    get_backend(device).use_threads(None, config.video.dim)  # one thread: tensors this small are not worth sharing
    drawn = [draw(np.random.default_rng((seed, i)), *TRAINED[i % len(TRAINED)]) for i in range(clips)]
    frames = video_from_uint8(torch.from_numpy(np.stack([render_video(clip) for clip in drawn])))
    sound = torch.from_numpy(np.stack([render_audio(clip) for clip in drawn])).unsqueeze(1)
    first_frame = torch.cat([frames[:, :, :1], torch.zeros_like(frames[:, :, 1:])], 2)
    codec = build_video_codec(config.video_codec, device=device)
    latents, condition = codec.encode(frames), first_frame_condition(codec.encode(first_frame))
    audio_latents = build_audio_codec(config.audio_codec, device=device).encode(sound)
    text = build_text_encoder(config.text_encoder, tokens=config.text_tokens, dim=config.video.text_dim, device=device)
    context = text.encode([clip.caption for clip in drawn])

    model = Mova(config, own_operators(device), device=device)
    model.init_weights(torch.Generator(device).manual_seed(seed))
    schedule, weights = Schedule(video_shift=3.0, audio_shift=3.0), LossWeights(skip_first_frame=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98))
    losses = []
    for _ in range(steps):
        rows = torch.randint(clips, (batch,), generator=generator)
        times = schedule.draw(generator, batch, stratified=True)
        video, audio = latents[rows], audio_latents[rows]
        noise_v, noise_a = (torch.randn(x.shape, generator=generator).to(x) for x in (video, audio))
        velocity_v, velocity_a = dual_tower_forward(
            model.video_dit,
            model.audio_dit,
            model.dual_tower_bridge,
            video_input(add_noise(video, noise_v, times.video_sigma), condition[rows]),
            add_noise(audio, noise_a, times.audio_sigma),
            context[rows],
            times.video_timestep,
            times.audio_timestep,
        )
        targets = velocity_target(video, noise_v), velocity_target(audio, noise_a)
        loss = velocity_loss(velocity_v, targets[0], velocity_a, targets[1], weights).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    history = train(args.steps, device=args.device)
    print(f"loss {np.mean(history[:10]):.3f} in the first ten steps, {np.mean(history[-10:]):.3f} in the last ten")
