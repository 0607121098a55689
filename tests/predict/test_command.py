"""`mova plan` as it is typed: tables, JSON, hardware files, errors, and the page that shows it."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from plan_page import PAGE, blocks, output

from mova_engine.config.memory import PLAIN
from mova_engine.config.model import get_preset
from mova_engine.config.recipes import TRAIN
from mova_engine.errors import MovaError
from mova_engine.plan.__main__ import main
from mova_engine.plan.recipe import job_of, layout_as_set, recipe_as_it_stands
from mova_engine.plan.report import LABEL
from mova_engine.predict.calibrate import calibrated
from mova_engine.predict.hardware import get_hardware, hardware_names
from mova_engine.predict.job import Job, PlannedRun
from mova_engine.predict.memory_use import memory
from mova_engine.predict.operator_cost import attention_rates
from mova_engine.predict.published import measured_here
from mova_engine.predict.search import plan

SELECTIVE = PLAIN["lora"]
_HARDWARE = """
card:
  operators: {device: cuda, assume: sm80}
  memory: 40.0e+9
  usable: 0.9
  peak: {bf16: 100.0e+12, fp32: 50.0e+12}
  bandwidth: 1.0e+12
  host_bandwidth: 30.0e+9
  link: {kind: switch, bandwidth: 50.0e+9, devices: 4}
  network: 10.0e+9
  latency: 20.0e-6
  achieved: {gemm: 0.8, attention: {sdpa: [60.0e+12, 50.0e+12]}, bandwidth: 0.8, link: 0.7, conv: 0.2}
"""


def _plan(command: str) -> int:
    return main(command.split())


@pytest.mark.parametrize("arguments, shown, _start, _end", list(blocks(PAGE.read_text(encoding="utf-8"))))
def test_the_page_shows_what_the_commands_print(arguments, shown, _start, _end):
    assert shown == output(arguments), "renew it: python tests/plan_page.py"


def test_stored_weights_make_adapters_fit_a_smaller_card(capsys):
    command = "mova-360p --task lora --hardware h100-80gb --vram 40GB --memory.weights device"
    assert _plan(command) == 1 and _plan(f"{command} --stored nf4") == 0
    assert "bf16 activations, weights in nf4" in capsys.readouterr().out
    with pytest.raises(MovaError, match="--stored nf4: all weights are trained, which are plain: add --task lora"):
        _plan("mova-360p --stored nf4")


def test_the_page_shows_what_was_asked():
    commands = {arguments for arguments, *_ in blocks(PAGE.read_text(encoding="utf-8"))}
    assert {
        "--validate",
        "mova-360p --task lora --hardware h100-80gb",
        "mova-360p --task lora --hardware 910a2 --mesh 1x2x1x4",
        "mova-720p --hardware h100-80gb --devices 16 --clips 1",
        "mova-360p --task lora --hardware rtx4090 --devices 2",
    } <= commands


@pytest.mark.parametrize(
    "command",
    ["mova-360p --task lora", "mova-720p --task lora --hardware rtx4090", "--validate", "nano --hardware cpu"],
)
def test_every_output_calls_itself_a_prediction(command, capsys):
    _plan(command)
    assert LABEL in capsys.readouterr().out
    _plan(f"{command} --json")
    assert LABEL in capsys.readouterr().out


def test_json_says_what_the_table_says(capsys):
    assert _plan("mova-360p --task lora --hardware 910a2 --mesh 1x2x1x4 --json") == 0
    found = json.loads(capsys.readouterr().out)["recommended"]
    assert found["mesh"] == {"dp_replicate": 1, "dp_shard": 2, "ring": 1, "ulysses": 4, "cfg": 1, "shard": True}
    assert found["fits"] and found["memory_bytes"]["in all"] < found["usable_bytes"]
    context = sum(found["traffic_bytes"][name] for name in ("all_to_all", "ring", "reduce"))
    assert f"{context / 1e9:.1f}" == "26.7"
    assert sum(v for k, v in found["seconds"].items() if k != "in all") == pytest.approx(found["seconds"]["in all"])


def test_a_plan_says_which_operators_it_counts_on(capsys):
    _plan("mova-360p --task lora --hardware h200")
    shown = capsys.readouterr().out
    said = "operators: attention by flash-attn-3; norms, residuals and GELU by triton (cuda sm90 with flash-attn-3)"
    assert said in shown.splitlines()
    _plan("mova-360p --task lora --hardware h200 --with flash-attn-2 --json")
    other = json.loads(capsys.readouterr().out)["recommended"]
    assert other["operators"]["attention"] == "sdpa-cudnn" and other["operators"]["attention_backward"] == "cudnn"
    _plan("mova-360p --task inference --implementation reference")
    assert "operators:" not in capsys.readouterr().out


def test_nothing_fits_is_status_one(capsys):
    assert _plan("mova-720p --task lora --hardware rtx4090") == 1
    assert "nothing fits: the leanest needs" in capsys.readouterr().out
    fixed = "mova-360p --task lora --memory.checkpointing none --memory.frozen activations --memory.inputs device"
    assert _plan(fixed) == 1
    assert "would fit: " in capsys.readouterr().out


def test_a_recipe_brings_its_settings(capsys):
    assert _plan("--recipe joint-phase3 --devices 1024 --mesh 1x64x2x8 --json") == 0
    found = json.loads(capsys.readouterr().out)["recommended"]
    assert found["clips"] == 64
    assert _plan("--recipe audio-pretrain --devices 8 --json") == 0
    found = json.loads(capsys.readouterr().out)["recommended"]
    assert found["clips"] == 128 and "moving average" in found["memory_bytes"]
    assert found["mesh"]["ulysses"] == found["mesh"]["ring"] == 1


@pytest.mark.parametrize(
    "command, says",
    [
        ("--recipe lora", "does not fit: 118.2 GB of 79.5"),
        ("--recipe lora --devices 4", "smallest change that fits: --memory.weights host ("),
        ("--recipe lora --devices 8", "does not run on 8 devices: global_batch_size 4 is no multiple of 8"),
        pytest.param("--recipe joint-phase3 --devices 64", "joint-phase3 as it stands fits: ", marks=pytest.mark.long),
        ("--recipe joint-phase3 --devices 1", "does not run on 1 device: parallel.context_parallel is 16"),
        ("--recipe joint-phase3 --devices 24", "does not run on 24 devices: mesh: context_parallel 16 does not divide"),
        ("--recipe audio-pretrain --hardware rtx4090", "no option makes it fit on this mesh"),
    ],
)
def test_a_recipe_is_judged_as_it_stands(command, says, capsys):
    _plan(command)
    shown = " ".join(capsys.readouterr().out.split())
    assert says in shown and " as it stands " in shown
    _plan(f"{command} --json")
    assert says in json.loads(capsys.readouterr().out)["recipe_as_it_stands"]


@pytest.mark.parametrize(
    "command, shard",
    [
        ("--task inference --mesh 1x1x1x4", False),
        ("--task inference --mesh 1x1x1x4 --memory.weights host", True),
        ("--task lora --mesh 1x1x1x8", True),
        ("--task lora --mesh 1x1x1x8 --memory.frozen fp8", False),
    ],
)
def test_weights_of_a_given_mesh_are_shared_as_its_policy_needs(command, shard, capsys):
    assert _plan(f"mova-360p --hardware h200 {command} --json") == 0
    found = json.loads(capsys.readouterr().out)["recommended"]
    assert found["mesh"]["shard"] == shard == ("--parallel.shard" in found["command"])


def test_the_smallest_change_to_a_recipe_is_what_makes_it_fit():
    hardware = calibrated("h100-80gb")
    said = recipe_as_it_stands("lora", 1, hardware)
    options = re.search(r"smallest change that fits: (.*) \([\d.]+ GB\)", said)[1]
    config = TRAIN.parse(["--recipe", "lora", *options.split()])
    changed = PlannedRun(job_of("lora"), layout_as_set(config, 40, 1), config.memory)
    assert plan(changed, hardware).fits and not plan(replace(changed, policy=SELECTIVE), hardware).fits


def test_micro_batches_count_in_memory():
    job = job_of("audio-pretrain")
    one, eight = (memory(PlannedRun(replace(job, batch=batch))).device for batch in (1, 8))
    kept = {"block inputs", "working set of a layer", "clips prepared ahead"}
    assert {name for name in one if one[name] != eight[name]} == kept
    assert all(eight[name] == 8 * one[name] for name in kept)


def _in_toml(value):
    """A value as TOML writes it: a mapping as an inline table, all else as JSON does."""
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{name}" = {_in_toml(one)}' for name, one in value.items()) + "}"
    return json.dumps(value)


@pytest.mark.parametrize("suffix", [".yaml", ".json", ".toml"])
def test_a_hardware_file(tmp_path, suffix, capsys):
    file = tmp_path / f"card{suffix}"
    entry = yaml.safe_load(_HARDWARE)["card"]
    forms = {
        ".yaml": _HARDWARE,
        ".json": json.dumps({"card": entry}),
        ".toml": "[card]\n" + "".join(f"{name} = {_in_toml(value)}\n" for name, value in entry.items()),
    }
    file.write_text(forms[suffix])
    hardware = get_hardware(str(file))
    rates = attention_rates(hardware, Job(get_preset("nano"), precision="fp32"))
    assert hardware.name == "card" and rates == (30e12, 25e12)
    assert main(["mova-360p", "--task", "lora", "--hardware", str(file), "--devices", "2"]) == 0
    assert "2 x card, 36.0 of 40.0 GB usable" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, message",
    [
        (("memory: 40.0e+9", "memory: -1"), "memory must be a positive number"),
        (("memory: 40.0e+9", "memory: much"), "memory must be a positive number, got 'much'"),
        (("usable: 0.9", "usable: 1.5"), "usable is a share"),
        (("network:", "netwrk:"), "unknown field 'netwrk'. Did you mean 'network'"),
        (("switch", "bus"), "link.kind must be switch or mesh, got 'bus'"),
        (("[60.0e+12, 50.0e+12]", "60.0e+12"), "must be \\[forward, backward\\]"),
        (("bf16: 100.0e+12, ", ""), "bf16 is missing"),
        (("sdpa:", "sdpaa:"), "attention has no implementation 'sdpaa'. Did you mean 'sdpa'"),
        (("operators: {device: cuda, assume: sm80}", "title: x"), "operators is missing"),
        (("device: cuda,", "device: cud,"), "operators: unknown device 'cud'. Did you mean 'cuda'"),
        (("sm80}", "sm80, with: flash-attn-2}"), "operators.with must be a list of packages"),
        (("sm80}", "sm80, wiht: []}"), "operators: unknown field 'wiht'. Did you mean 'with'"),
        (("card:", "card: ["), "is not valid"),
        ((_HARDWARE, "- 1"), "must hold one entry"),
    ],
)
def test_a_bad_hardware_file_is_one_line(tmp_path, change, message):
    file = tmp_path / "card.yaml"
    file.write_text(_HARDWARE.replace(*change))
    with pytest.raises(MovaError, match=message) as refused:
        get_hardware(str(file))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "command, message",
    [
        ("", "name a model"),
        ("mova-360p --recipe nano", "one of the two"),
        ("mova-270p", "Did you mean 'mova-"),
        ("mova-360p --hardware h10", "Did you mean 'h"),
        ("mova-360p --hardware none.yaml", "cannot be read: No such file"),
        ("mova-360p --task loar", "Did you mean 'lora'"),
        ("mova-360p --devices 0", "--devices must be between 1 and 10000000, got 0"),
        ("mova-360p --devices 99999999999999999999", "--devices must be between 1 and"),
        ("mova-360p --mesh 99999999x1x1x1", "--devices must be between 1 and 10000000, got 99999999"),
        ("mova-360p --clip.frames 9999999999999999997", "--clip.frames must be between 1 and"),
        ("mova-360p --clips 0", "--clips must be between 1 and"),
        ("mova-360p --mesh 1x2", "takes four sizes"),
        ("mova-360p --mesh 1x1x1x3", "divisors: 1, 2, 4, 5, 8, 10, 20, 40"),
        ("mova-360p --mesh 1x1x1x8 --devices 4", "has 8 devices, not 4"),
        ("mova-360p --memory.check full", "Did you mean 'checkpointing'"),
        ("mova-360p --memory.inputs hots", "Did you mean 'host'"),
        ("mova-360p --task lora --hardware 910a2 --memory.frozen fp8", "has no fp8 arithmetic"),
        ("mova-360p --hardware 910a2 --fp8", "has no fp8 arithmetic; leave --fp8"),
        ("mova-360p --task lora --fp8", "--fp8 is for weights that are trained: of others add --memory.frozen fp8"),
        ("nano --hardware cpu --memory.inputs host", "is the host itself"),
        ("mova-360p --task lora --memory.expert host", "memory.expert host: training draws an expert"),
        (
            "mova-360p --task lora --memory.weights host --memory.checkpointing none",
            "memory.weights host, memory.checkpointing none cannot be run on 1 device: layers that come one by one",
        ),
        ("mova-360p --with flash-attn", "unknown package 'flash-attn'. Did you mean 'flash-attn-"),
        ("mova-360p --clip.height 7", "clip.height must be a positive multiple of 16, got 7"),
        ("mova-360p --dtype float16", "Did you mean 'bfloat16'"),
        ("mova-360p --implementation theirs", "Known: ours, reference"),
        ("--recipe nope", "unknown recipe"),
        ("--validate --results nowhere", "there is no folder nowhere"),
    ],
)
def test_bad_input_is_one_line(command, message):
    with pytest.raises(MovaError, match=message) as refused:
        _plan(command)
    assert "\n" not in str(refused.value)


def test_broken_result_files_are_named(tmp_path):
    (tmp_path / "step.json").write_text('{"kind": "step"}')
    with pytest.raises(MovaError, match="cannot be read: KeyError"):
        measured_here(tmp_path)


def test_every_device_says_where_its_figures_come_from():
    for name in hardware_names():
        assert len(get_hardware(name).source) > 30


def test_planning_by_model_needs_no_torch():
    code = "import sys; from mova_engine.plan.__main__ import main; main(['mova-360p']); main(['--validate'])"
    code += "; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
