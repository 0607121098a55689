"""Adapters over the API: named, weighted and mixed by requests, swapped between clips, stated in manifests."""

import json

import pytest
import torch
from mova_servers import TINY, mova_server, write_tiny_model
from worker_tools import wait_for

from mova_engine.adapters.lora import add_lora, lora_parameters, save_lora
from mova_engine.backend import get_backend
from mova_engine.inference.__main__ import main as sample
from mova_engine.models.mova import Mova
from mova_engine.ops import bind

pytestmark = pytest.mark.serving
pytest.importorskip("fastapi", reason="the extra serve is not installed")
TARGETS = ["video_dit.blocks.0.self_attn.q", "audio_dit.blocks.0.self_attn.v"]


def write_adapter_file(path, seed):
    """Adapters of the tiny model that change what it makes."""
    model = Mova(TINY, bind(get_backend("cpu")))
    generator = torch.Generator().manual_seed(seed)
    add_lora(model, TARGETS, 2, 2.0, generator=generator)
    with torch.no_grad():
        for parameter in lora_parameters(model).values():
            parameter.normal_(0.0, 0.5, generator=generator)
    save_lora(model, path)
    return path


def test_requests_name_adapters_with_their_strengths(tmp_path, capsys):
    checkpoint = write_tiny_model(tmp_path / "tiny")
    files = {
        name: write_adapter_file(tmp_path / f"{name}.safetensors", seed) for seed, name in enumerate(("ink", "oil"))
    }
    options = [word for name, path in files.items() for word in ("--lora", f"{name}={path}")]
    wanted = {
        "none": {},
        "ink": {"ink": 1.0},
        "half": {"ink": 0.5},
        "both": {"ink": 0.5, "oil": 1.0},
        "again": {"ink": 1.0},
        "bare": {},
    }
    with mova_server(checkpoint, tmp_path / "store", *options) as server:
        model = server.get("/v1/models")[1]["data"][0]
        assert [each["name"] for each in model["x_mova"]["adapters"]] == list(files)
        jobs = {
            name: server.post("/v1/videos", prompt="a ball", seed=3, num_inference_steps=4, adapters=adapters)["id"]
            for name, adapters in wanted.items()
        }
        done = {
            name: wait_for(
                lambda job=job: (
                    (now := server.get(f"/v1/videos/{job}")[1])["status"] != "queued"
                    and now["status"] != "in_progress"
                    and now
                ),
                every=0.1,
            )
            for name, job in jobs.items()
        }
        assert {each["status"] for each in done.values()} == {"completed"}
        made = {name: server.get(f"/v1/videos/{job}/content")[1] for name, job in jobs.items()}
        manifests = {name: server.get(f"/v1/videos/{job}/content?variant=manifest")[1] for name, job in jobs.items()}
    assert len({made[name] for name in ("none", "ink", "half", "both")}) == 4, "each changes what is made"
    assert made["again"] == made["ink"] and made["bare"] == made["none"], "and nothing of it stays"
    stated = {name: {each["name"]: each["strength"] for each in manifests[name]["adapters"]} for name in wanted}
    assert stated == wanted
    assert str(tmp_path) not in str(manifests)
    for name in ("both", "bare"):
        manifest = tmp_path / f"{name}.json"
        manifest.write_text(json.dumps(manifests[name]))
        out = tmp_path / name
        lora = [f"{files[each]}:{strength}" for each, strength in wanted[name].items()]
        words = ["--manifest", str(manifest), "--checkpoint", str(checkpoint), "--out", str(out)]
        assert sample([*words, *(["--lora", *lora] if lora else [])]) == 0
        assert "same clip, byte for byte" in capsys.readouterr().out
