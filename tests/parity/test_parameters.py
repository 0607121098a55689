"""What a case sets reaches its run or is refused by name; any shift, boundary and scale gives the formulas' numbers."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mova_engine.backend import get_backend
from mova_engine.errors import MovaError
from mova_engine.models.modality import modalities
from mova_engine.models.mova import dual_tower_forward
from mova_engine.ops import bind
from mova_engine.parity.case import CaseDevice, GoldenCase
from mova_engine.parity.judge import difference
from mova_engine.parity.latents import wan_stats
from mova_engine.parity.parameters import ACCEPTED, SCHEDULE
from mova_engine.parity.runner import RUNNERS, run_case
from mova_engine.parity.sampling import build_mova

KINDS = sorted(ACCEPTED)
# Values for what a recorded case leaves to its default, and for what would change nothing by being a little larger.
OTHER = {
    "shift": 3.0,
    "audio_shift": 2.0,
    "boundary": 0.5,
    "num_train_timesteps": 900,
    "sigma_min": 0.01,
    "guidance_scale": 4.0,
    "eps": 1e-2,
}


@pytest.fixture(scope="module")
def machine():
    return CaseDevice(bind(get_backend("cpu")), torch.device("cpu"))


@pytest.fixture
def with_meta(golden_dir, tmp_path):
    """The case `name` with another JSON beside the recorded tensors and weights."""

    def make(name, meta) -> GoldenCase:
        for path in golden_dir.glob("*.safetensors"):
            if not (tmp_path / path.name).exists():
                (tmp_path / path.name).symlink_to(path)
        (tmp_path / f"{name}.json").write_text(json.dumps(meta))
        return GoldenCase(tmp_path, name)

    return make


def _places(meta):
    """(path of keys, value) of everything that a case sets."""
    for section in ("case_parameters", "config"):
        for name, value in meta[section].items():
            if isinstance(value, dict):
                yield from (((section, name, inner), x) for inner, x in value.items())
            else:
                yield (section, name), value


def _another(name, value):
    if name in OTHER:
        return OTHER[name]
    if isinstance(value, bool) or value is None:
        return not value
    if name in ("visual_layers", "audio_layers"):
        return 1 if value > 1 else 2
    if isinstance(value, str):
        return {"full": "shallow_focus", "shallow_focus": "progressive", "dac": "mdct"}[value]
    if isinstance(value, list):
        return [*value[:-1], _another(name, value[-1])]
    return value + 1 if isinstance(value, int) else 1.5 * value


def _outcome(case, machine):
    """What became of a case: None where nothing differs, "missed", or the refusal."""
    try:
        return None if all(row.passed for row in run_case(case, machine)) else "missed"
    except MovaError as error:
        assert "\n" not in str(error) and case.name in str(error)
        return str(error)


def _put(meta, keys, value):
    changed = copy.deepcopy(meta)
    place = changed
    for key in keys[:-1]:
        place = place.setdefault(key, {})
    place[keys[-1]] = value
    return changed


def _depths():
    """Each kind at full depth; slowly those of two towers, whose sizes the cases of one tower try too."""
    for name in KINDS:
        if ACCEPTED[name].parts:
            yield pytest.param(name, False, id=name)
        yield pytest.param(name, True, id=f"{name}-whole", marks=[pytest.mark.slow] if ACCEPTED[name].parts else [])


@pytest.mark.parametrize(("name", "whole"), _depths())
def test_everything_that_a_case_sets_changes_its_run_or_is_refused(golden_dir, machine, with_meta, name, whole):
    meta = json.loads((golden_dir / f"{name}.json").read_text())
    places = {keys: value for keys, value in _places(meta) if whole or len(keys) == 2}
    # And what the case could set.
    places |= {("case_parameters", key): None for key in ACCEPTED[name].parameters & OTHER.keys()}
    ignored = [
        ".".join(keys)
        for keys, value in places.items()
        if _outcome(with_meta(name, _put(meta, keys, _another(keys[-1], value))), machine) is None
    ]
    assert not ignored


@pytest.mark.parametrize("name", KINDS)
def test_what_no_run_reads_is_refused_by_name(golden_dir, machine, with_meta, name):
    meta = json.loads((golden_dir / f"{name}.json").read_text())
    sections = [(), ("case_parameters",), ("config",), ("weights",)]
    sections += [("config", part) for part in ("video", "audio", "bridge") if part in meta["config"]]
    for section in sections:
        entry = ".".join((*section, "frame_shift"))
        told = _outcome(with_meta(name, _put(meta, (*section, "frame_shift"), 2.0)), machine)
        assert f"{name}.json: {name} does not read {entry}." in told


def _wrong(name, keys, value, message):
    return pytest.param(name, tuple(keys.split(".")), value, message, id=f"{name}-{keys}-{value}")


@pytest.mark.parametrize(
    ("name", "keys", "value", "message"),
    [
        _wrong("case7_sampling_trajectory", "case_parameters.steps", "6", 'must be a positive whole number, got "6"'),
        _wrong("case7_sampling_trajectory", "case_parameters.steps", 6.5, "must be a positive whole number, got 6.5"),
        _wrong("case7_sampling_trajectory", "case_parameters.boundary", 1.5, "boundary must lie between 0 and 1"),
        _wrong("case7_sampling_trajectory", "case_parameters.shift", -3, "shift must be a positive number, got -3"),
        _wrong("case7_sampling_trajectory", "case_parameters.grid", [3, 6, 4], "but in.visual_noise has [3, 4, 6]"),
        _wrong("case5_scheduler", "case_parameters.steps", [[50]], "steps must be pairs"),
        _wrong("case5_scheduler", "case_parameters.steps", [[50.5, 5.0]], "steps must be pairs"),
        _wrong("case5_scheduler", "case_parameters.steps", [[50, 3.0]], "50 steps with shift 3, of which no tensor"),
        _wrong("case5_scheduler", "config.reverse_sigmas", True, "is true; the engine computes false alone"),
        _wrong("case5_scheduler", "config.shift", True, "shift must be a positive number, got true"),
        _wrong("case1_video_dit", "config.has_ref_conv", True, "is true; the engine computes false alone"),
        _wrong("case1_video_dit", "case_parameters", [], "case_parameters must be an object"),
        _wrong("case1_video_dit", "dtype", "bfloat16", 'dtype is "bfloat16"; cases are recorded in float32'),
        _wrong("case9_lora", "case_parameters.rank", 8, "rank is 8, but"),
    ],
)
def test_wrong_values_are_one_line(golden_dir, machine, with_meta, name, keys, value, message):
    meta = json.loads((golden_dir / f"{name}.json").read_text())
    told = _outcome(with_meta(name, _put(meta, keys, value)), machine)
    assert told.startswith(str(with_meta(name, meta).folder)) and message in told


# The formulas, in float64 and apart from the engine's code.


class Scheduler:
    """`sigma = shift s / (1 + (shift - 1) s)` at n times from 1 to `lowest`, on a scale of `scale` timesteps."""

    def __init__(self, shift=5.0, *, lowest=0.003 / 1.002, scale=1000, boundary=0.9):
        self.shift, self.lowest, self.scale, self.boundary = shift, lowest, scale, boundary

    def sigmas(self, n, dtype=torch.float64):
        s = torch.linspace(1.0, self.lowest, n, dtype=dtype).numpy()
        return self.shift * s / (1 + (self.shift - 1) * s)

    def nearest(self, timesteps, entries):
        table = self.sigmas(entries)
        return np.abs(table * self.scale - np.asarray(timesteps, np.float64)[:, None]).argmin(1)

    def count(self, entries):
        return int((self.sigmas(entries) * self.scale >= self.boundary * self.scale).sum())

    def weights(self, entries):
        bell = np.exp(-2 * ((self.sigmas(entries) * self.scale - entries / 2) / entries) ** 2)
        bell -= bell.min()
        return bell * entries / bell.sum()


def _trajectory(inputs, scheduler, audio, entries):
    made = {}
    n = len(inputs["in.traj.visual_velocity"])
    table = scheduler.sigmas(entries)
    for modality, own in (("visual", scheduler), ("audio", audio)):
        sigmas = np.append(table[scheduler.nearest(own.sigmas(n) * own.scale, entries)], 0.0)
        x, states = inputs[f"in.traj.{modality}_x0"].double().numpy(), []
        for velocity, start, end in zip(
            inputs[f"in.traj.{modality}_velocity"].double().numpy(), sigmas[:-1], sigmas[1:], strict=True
        ):
            x = x + velocity * (end - start)
            states.append(x)
        made[f"{modality}_states"] = np.stack(states)
    made["pairs"] = np.stack([s.sigmas(n) * s.scale for s in (scheduler, audio)], 1)
    return made


def write_schedule_case(folder, golden_dir, steps, *, entries=1000, audio_shift=1.0, traj_steps=8, **options):
    """A schedule case by the formulas, with the recorded case's inputs; `options` are the schedule's parameters."""
    names = {"sigma_min": "lowest", "num_train_timesteps": "scale", "boundary": "boundary"}
    common = {names[key]: value for key, value in options.items() if key in names}
    usual = Scheduler(options.get("shift", 5.0), **common)
    recorded = load_file(golden_dir / "case5_scheduler.safetensors")
    inputs = {name: x for name, x in recorded.items() if name.startswith("in.")}
    for name in ("visual", "audio"):
        velocity = inputs[f"in.traj.{name}_velocity"]
        inputs[f"in.traj.{name}_velocity"] = torch.cat([velocity, -0.5 * velocity, velocity])[:traj_steps].contiguous()
    made, values = {}, {}
    for n, shift in steps:
        prefix, own = f"n{n}_shift{shift:g}.", Scheduler(shift, **common)
        sigmas, table = own.sigmas(n), own.sigmas(entries)
        made |= {f"{prefix}timesteps": sigmas * own.scale, f"{prefix}sigmas": sigmas}
        pairs = np.stack([sigmas, sigmas], 1)
        made |= {f"{prefix}pairs_timesteps": pairs * own.scale, f"{prefix}pairs_sigmas": pairs}
        made[f"{prefix}snapped_sigmas"] = table[own.nearest(sigmas * own.scale, entries)]
        made |= {f"{prefix}train_timesteps": table * own.scale, f"{prefix}train_sigmas": table}
        other = Scheduler(audio_shift, **common).sigmas(n)
        dual = f"{prefix}dual_v{shift:g}_a{audio_shift:g}."
        made[f"{dual}pairs_timesteps"] = np.stack([sigmas, other], 1) * own.scale
        made[f"{dual}pairs_sigmas"] = np.stack([sigmas, other], 1)
        made[f"{dual}snapped_audio_sigmas"] = table[own.nearest(other * own.scale, entries)]
        low = np.flatnonzero(sigmas * own.scale < own.boundary * own.scale)
        values[f"{prefix}first_step_of_low_noise_expert"] = int(low[0])
    made |= {f"traj.{k}": x for k, x in _trajectory(inputs, usual, usual, entries).items()}
    dual = Scheduler(audio_shift, **common)
    made |= {f"traj_dual.{k}": x for k, x in _trajectory(inputs, usual, dual, entries).items()}
    table, middle = usual.sigmas(entries), usual.count(entries)
    values |= {"train.boundary_count": middle, "train.boundary_fraction": middle / entries}
    made |= {"train.timesteps": table * usual.scale, "train.sigmas": table, "train.weights": usual.weights(entries)}
    for name, low, high in (("high_noise", 0, middle), ("low_noise", middle, entries)):
        index = (low + inputs["in.train.uniform_draws"].double().numpy() * (high - low)).astype(np.int64)
        made |= {f"train.{name}.timestep_ids": index, f"train.{name}.timesteps": table[index] * usual.scale}
    nearest = usual.nearest(inputs["in.noise.timestep"], entries)
    made |= {"noise.sigma": table[nearest], "noise.training_weight": usual.weights(entries)[nearest]}
    sample, noise = (inputs[f"in.noise.{key}"].double().numpy() for key in ("sample", "noise"))
    made["noise.target"] = noise - sample
    made["noise.noisy"] = np.stack([(1 - sigma) * sample + sigma * noise for sigma in table[nearest]])
    tensors = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in made.items()}
    tensors = {name: x.float() if x.is_floating_point() else x for name, x in tensors.items()}
    tensors["noise.noisy_bf16"] = tensors["noise.noisy"].bfloat16()
    save_file(inputs | tensors, folder / "case5_scheduler.safetensors")
    given = {"steps": [list(pair) for pair in steps], "traj_steps": traj_steps, **options}
    given |= {"audio_shift": audio_shift} if audio_shift != SCHEDULE["audio_shift"] else {}
    meta = {"case": "case5_scheduler", "config": {}, "case_parameters": given, "weights": {}, "values": values}
    (folder / "case5_scheduler.json").write_text(json.dumps(meta))
    return GoldenCase(folder, "case5_scheduler")


@pytest.mark.parametrize(
    "options",
    [
        {"steps": [(50, 5.0), (25, 5.0)]},
        {"steps": [(40, 3.0), (7, 8.0), (33, 1.0), (16, 12.5), (2, 0.5)]},
        {"steps": [(20, 7.0)], "shift": 7.0, "audio_shift": 2.5, "traj_steps": 13},
        {"steps": [(30, 3.0)], "shift": 3.0, "boundary": 0.5, "traj_steps": 1},
        {"steps": [(30, 5.0)], "boundary": 0.417, "sigma_min": 0.02, "audio_shift": 5.0},
        {"steps": [(30, 4.0)], "num_train_timesteps": 500, "entries": 500},
        {"steps": [(30, 4.0)], "num_train_timesteps": 2000, "boundary": 0.8, "entries": 1000},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items() if k != "steps") or "steps",
)
def test_schedules_follow_the_formulas(golden_dir, machine, tmp_path, options):
    case = write_schedule_case(tmp_path, golden_dir, **options)
    rows = run_case(case, machine)
    assert not [row for row in rows if not row.passed]
    assert len(rows) == sum(not name.startswith("in.") for name in case.tensors)


def test_a_wrong_shift_is_seen(golden_dir, machine, tmp_path):
    case = write_schedule_case(tmp_path, golden_dir, [(40, 3.0)])
    tensors = load_file(tmp_path / "case5_scheduler.safetensors")
    other = Scheduler(3.1).sigmas(1000)
    tensors["n40_shift3.train_sigmas"] = torch.from_numpy(other).float()
    save_file(tensors, tmp_path / "case5_scheduler.safetensors")
    rows = run_case(GoldenCase(case.folder, case.name), machine)
    assert [row.tensor for row in rows if not row.passed] == ["n40_shift3.train_sigmas"]


@torch.no_grad()
def _sampled(case, scheduler, audio, guidance, steps):
    """Case 7 in float64: guided Euler steps between the table's sigmas, the network at the exact timesteps."""
    exact = CaseDevice(bind(get_backend("cpu"), "reference"), torch.device("cpu"), torch.float64)
    mova, stats = build_mova(case, exact), wan_stats(case.config)
    inputs = {name[3:]: x.double() for name, x in case.tensors.items() if name.startswith("in.")}
    image = stats.normalise(inputs["image_latent_raw"])
    mask = torch.zeros_like(image[:, :4])
    mask[:, :, 0] = 1
    table = scheduler.sigmas(scheduler.scale)
    # In float32, as the released model is sampled: the sinusoid of a timestep shows each of its rounding errors.
    times = [own.sigmas(steps, torch.float32) * np.float32(own.scale) for own in (scheduler, audio)]
    sigmas = [np.append(table[scheduler.nearest(t, len(table))], 0.0) for t in times]
    states = [inputs["visual_noise"], inputs["audio_noise"]]
    for step in range(steps):
        tower = mova.video_dit if times[0][step] >= scheduler.boundary * scheduler.scale else mova.video_dit_2
        seen = torch.cat([states[0], mask, image], 1)
        clocks = [torch.tensor([t[step]], dtype=torch.float64) for t in times]
        with_text, without = (
            dual_tower_forward(
                *(tower, mova.audio_dit, mova.dual_tower_bridge),
                *modalities(seen, states[1], inputs[f"text_{text}"], *clocks),
                fps=24.0,
            )
            for text in ("positive", "negative")
        )
        velocity = [n + guidance * (p - n) for p, n in zip(with_text, without, strict=True)]
        states = [x + v * (s[step + 1] - s[step]) for x, v, s in zip(states, velocity, sigmas, strict=True)]
    return states


# An odd number of steps has its middle halfway between two entries of the table, where rounding decides.
@pytest.mark.parametrize(
    "options",
    [
        {"steps": 4, "shift": 3.0, "audio_shift": 2.0, "boundary": 0.6, "guidance_scale": 2.5},
        {"steps": 4, "num_train_timesteps": 1200, "guidance_scale": 0.0},
    ],
    ids=["shifts", "scale"],
)
def test_sampling_follows_the_formulas(golden_dir, machine, with_meta, options):
    name = "case7_sampling_trajectory"
    meta = json.loads((golden_dir / f"{name}.json").read_text())
    case = with_meta(name, _put(meta, ("case_parameters",), meta["case_parameters"] | options))
    common = {"scale": options.get("num_train_timesteps", 1000), "boundary": options.get("boundary", 0.9)}
    usual = Scheduler(options.get("shift", 5.0), **common)
    produced = RUNNERS[name](case, machine)
    for infix, audio in (("", usual), ("dual.", Scheduler(options.get("audio_shift", 1.0), **common))):
        expected = _sampled(case, usual, audio, options.get("guidance_scale", 5.0), options["steps"])
        for modality, states in zip(("visual", "audio"), expected, strict=True):
            assert difference(produced[f"out.{infix}{modality}_final"], states) < 1e-5
