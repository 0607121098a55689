"""What is chosen for machines that are not here: by generation and packages, for every operator and role."""

import re
import subprocess
import sys
from itertools import chain, combinations, pairwise

import pytest
import torch

from mova_engine.backend import NAMES, Backend, describe_backend, get_backend
from mova_engine.errors import MovaError
from mova_engine.ops import OPERATORS, REFERENCE, Implementation, Machine, bind, choose, registry
from mova_engine.ops.__main__ import main
from mova_engine.ops.declarations import Choice
from mova_engine.ops.machine import BROUGHT, KINDS, PACKAGES, assumed_machine
from mova_engine.ops.registry import ROLES, ThisMachine

FLASH = ("flash-attn-2", "flash-attn-3", "flash-attn-4")
ATTENTION = ("attention", "attention_lse", "attention_backward")
GENERATIONS = ("sm80", "sm86", "sm89", "sm90", "sm100", "sm103", "sm120")


def subsets(packages):
    return list(chain.from_iterable(combinations(packages, n) for n in range(len(packages) + 1)))


def chosen(machine, **options) -> dict[str, str]:
    return {choice.operator: choice.implementation for choice in choose(machine, **options)}


def test_orders_are_those_of_the_rates():
    for name in ATTENTION:
        operator = OPERATORS[name]
        entries = {entry.name: entry for entry in operator.implementations}
        for order in operator.orders:
            machine = Machine("cuda", order.generations[0], frozenset(PACKAGES))
            known = [entries[n].rate(machine) for n in order.names if entries[n].refusal(machine, True) is None]
            assert len(known) >= 3
            for faster, slower in pairwise(known):
                assert faster.forward >= slower.forward and faster.backward >= slower.backward


def test_float32_is_refused_to_a_kernel_of_half_precision():
    (refused,) = [
        c.refused for c in choose(assumed_machine("cuda", "sm90"), dtype="float32") if c.operator == "attention_lse"
    ]
    assert dict(refused)["cudnn"] == "takes bfloat16 and float16, not float32"


@pytest.mark.parametrize(
    ("name", "serves", "refuses"),
    [
        ("flash-attn-2", ["sm80", "sm90", "sm120"], ["sm75"]),
        ("flash-attn-3", ["sm90"], ["sm89", "sm100"]),
        ("flash-attn-4", ["sm90", "sm100", "sm110"], ["sm80", "sm120"]),
        ("flash-cuda", ["sm80", "sm90"], ["sm75"]),
        ("cudnn", ["sm80", "sm120"], ["sm75"]),
    ],
)
def test_generations_of_gpus(name, serves, refuses):
    entry = next(e for e in OPERATORS["attention_lse"].implementations if e.name == name)
    for text in serves:
        assert entry.refusal(assumed_machine("cuda", text, FLASH), training=True) is None
    for text in refuses:
        machine = assumed_machine("cuda", text, FLASH)
        reason = entry.refusal(machine, training=True)
        assert reason.endswith("this GPU has {}.{}".format(*machine.capability))


def test_products_of_ascend_that_a_package_does_not_serve():
    entries = {e.name: e for e in OPERATORS["norm_modulate"].implementations}
    machine = assumed_machine("npu", "310p", ["triton", "mindiesd"])
    for name in ("triton", "mindie"):
        reason = entries[name].refusal(machine, training=False)
        assert reason == "runs on Ascend 910a2 or 910a3, not on 310p"


def test_a_cpu_whose_kernels_were_not_built():
    unbuilt = {c.operator: c for c in choose(Machine("cpu"))}
    assert dict(unbuilt["norm_modulate"].refused)["native"] == "the engine's cpu-kernels were not built"


class Gpu(Backend):
    """A GPU of a given generation, with what is asked of one to choose for it."""

    name = "cuda"

    def __init__(self, capability):
        self.capability = capability

    def unavailable(self):
        return None

    def compute_capability(self):
        return self.capability

    def describe(self):
        return "a GPU"


@pytest.mark.parametrize("installed", subsets(FLASH))
@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_real_machine_and_one_assumed_to_be_like_it_choose_alike(generation, installed, monkeypatch):
    """One path for both: here packages are looked for and checks are asked, which let everything pass."""
    machine = assumed_machine("cuda", generation, installed)
    monkeypatch.setattr(registry, "_lacking", machine.lacks)
    monkeypatch.setattr(registry, "resolve", lambda target: lambda *_: None)
    backend = Gpu(machine.capability)
    dtypes = (torch.bfloat16,)
    with_libraries = Machine("cuda", machine.capability, machine.packages | {"cuda-kernels"})
    for training in (True, False):
        table = bind(backend, training=training, dtypes=dtypes)
        assert table.choices == bind(assume=with_libraries, training=training, dtypes=dtypes).choices


def test_this_cpu_and_one_assumed_to_be_like_it_choose_alike(tmp_path, monkeypatch):
    monkeypatch.setenv("MOVA_TILES", str(tmp_path))  # nothing was measured
    here = ThisMachine(get_backend("cpu"))
    built = here.tried(OPERATORS["rms_norm"], OPERATORS["rms_norm"].implementations[0], True, ()) is None
    assumed = Machine("cpu", packages=frozenset(BROUGHT["cpu"] if built else ()))
    # A CPU that fails in what it is tried with chooses otherwise; nothing but the trial may make a difference.
    tried = re.compile(r"^fails on this CPU|is wrong here")
    failed = {c.operator for c in choose(here) for _, why in c.refused if tried.search(why)}
    ours, theirs = chosen(here), chosen(assumed)
    assert ours.keys() == theirs.keys()
    assert {name: ours[name] for name in ours.keys() - failed} == {name: theirs[name] for name in ours.keys() - failed}


def test_an_ascend_device_is_known_by_its_name():
    class Npu(Gpu):
        name = "npu"

        def compute_capability(self):
            return None

        def describe(self):
            return self.capability

    products = {name: ThisMachine(Npu(name)).capability for name in ("Ascend910B2", "Ascend910_9392", "Ascend1")}
    assert products == {"Ascend910B2": "910a2", "Ascend910_9392": "910a3", "Ascend1": None}


def test_a_table_of_an_absent_machine_can_be_read_and_not_called():
    table = bind(assume=assumed_machine("cuda", "sm90", ["flash-attn-3"]), dtypes=(torch.bfloat16,))
    assert Choice("attention", "flash-attn-3") in table.choices and table.device == "cuda"
    for name in (*OPERATORS, *ROLES, "shared_linear", "feed_forward"):
        with pytest.raises(MovaError) as caught:
            getattr(table, name)(1, x=2)
        assert str(caught.value) == (
            f"operator {name} is bound for a machine that is not here (cuda sm90 with flash-attn-3): such a table can "
            "be read, not called; bind a backend of this machine"
        )
    assert set(table.functions) == set(bind(get_backend("cpu")).functions)
    for arguments in ({}, {"backend": get_backend("cpu"), "assume": Machine("cpu")}):
        with pytest.raises(MovaError, match="one of the two"):
            bind(**arguments)


def test_choices_are_met_or_refused_there_too():
    machine = assumed_machine("cuda", "sm80", ["flash-attn-3"])
    assert chosen(machine, choices={"attention": "sdpa-cudnn"})["attention"] == "sdpa-cudnn"
    assert set(chosen(machine, choices="reference").values()) == {REFERENCE}
    with pytest.raises(MovaError, match="'flash-attn-3' cannot serve: needs compute capability 9.0 to 9.x, this GPU"):
        choose(machine, {"attention": "flash-attn-3"})


def test_a_caller_s_implementation_stays_in_front():
    mine = Implementation("mine", "my_package:attention", needs=("my_package",))
    operators = OPERATORS | {"attention": OPERATORS["attention"].with_implementation(mine)}
    machine = Machine("cuda", (9, 0), frozenset({"flash-attn-3", "my_package"}))
    assert chosen(machine, operators=operators)["attention"] == "mine"


def test_the_kinds_are_the_backends():
    assert KINDS == NAMES and all(describe_backend(kind).name == kind for kind in KINDS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--device cuda --assume sm9x", "unknown cuda machine 'sm9x'. Did you mean 'sm90'"),
        ("--device npu --assume 910b", "unknown npu machine '910b'."),
        (
            "--device cuda --assume sm90 --with flash-attn3",
            "unknown package 'flash-attn3'. Did you mean 'flash-attn-3'",
        ),
        ("--device cuda --with flash-attn-3", "give --assume too"),
        ("--device cuda --assume sm90 --dtype bf16", "--dtype: unknown value 'bf16'."),
        ("--device cdua --assume sm90", "unknown device 'cdua'. Did you mean 'cuda'"),
    ],
)
def test_words_that_name_no_machine(words, message):
    with pytest.raises(MovaError) as caught:
        main(words.split())
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_answers_for_an_absent_machine_without_torch():
    code = (
        "import sys\n"
        "from mova_engine.ops.__main__ import main\n"
        "main('--device cuda --assume sm90 --with flash-attn-3'.split())\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (child.returncode, child.stderr) == (0, "")
    lines = child.stdout.splitlines()
    assert lines[0] == "device cuda sm90 with flash-attn-3: assumed, not asked"
    assert "attention                    -> flash-attn-3 (flash_attn_func)" in lines
    assert "attention_backward           -> flash-attn-3 (_flash_attn_backward)" in lines


def test_what_is_assumed_can_be_spelled_in_capitals(capsys):
    main(["--device", "npu", "--assume", "910A2", "--with", "mindiesd,triton", "--inference"])
    shown = capsys.readouterr().out
    assert shown.startswith("device npu 910a2 with mindiesd, triton: assumed, not asked\n")
    assert "gate_residual                -> triton" in shown
