"""Models are loaded without a second copy of their weights, and saving over their folder is safe."""

import gc
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from magicedit.models import convert, from_stable_diffusion, load_magicface, load_pipeline
from magicedit.models.base import open_base
from magicedit.models.folder import Base

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Narrow random weights in the layouts of Stable Diffusion, of the published checkpoint, and of ours."""
    script = runpy.run_path(str(ROOT / "dev" / "random_stable_diffusion.py"))
    folder = tmp_path_factory.mktemp("loading")
    script["write_stable_diffusion"](folder / "sd15", tiny=True)
    script["write_magicface"](folder / "magicface", tiny=True)
    convert(folder / "magicface", folder / "sd15", folder / "pipeline")
    return folder


def mapped_ranges(folder: Path) -> list[range]:
    """Addresses at which this process has files of a folder mapped."""
    maps = Path("/proc/self/maps").read_text()
    pattern = rf"^(\w+)-(\w+) .*{re.escape(str(folder))}/.*$"
    return [range(int(m[1], 16), int(m[2], 16)) for m in re.finditer(pattern, maps, re.MULTILINE)]


def copies(folder: Path, *networks: torch.nn.Module) -> list[str]:
    """Names of weights that do not lie in the mapped files of a folder."""
    ranges = mapped_ranges(folder)
    return [
        name
        for network in networks
        for name, tensor in network.state_dict().items()
        if not any(tensor.data_ptr() in addresses for addresses in ranges)
    ]


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says where files are mapped")


@linux
def test_the_published_checkpoint_is_not_copied(folders):
    unets = load_magicface(folders / "magicface")
    assert copies(folders / "magicface", *unets) == []
    assert all(unet.dtype == torch.float32 and not unet.training for unet in unets)
    name = "mid_block.resnets.0.conv1.weight"
    assert copies(folders / "magicface", unets[0].to(torch.float64)) != []  # a copy is seen
    assert unets[1].get_parameter(name).abs().sum() > 0


@linux
def test_another_dtype_leaves_no_file_mapped(folders):
    gc.collect()  # models of other tests
    unets = load_magicface(folders / "magicface", torch.bfloat16)
    assert mapped_ranges(folders / "magicface") == []
    assert {parameter.dtype for unet in unets for parameter in unet.parameters()} == {torch.bfloat16}


@linux
def test_a_stable_diffusion_is_copied_once(folders):
    """For the denoiser, which training changes apart from the reference UNet."""
    unet, reference_unet = from_stable_diffusion(folders / "sd15")
    assert copies(folders / "sd15", reference_unet) == []
    assert len(copies(folders / "sd15", unet)) == len(unet.state_dict())


@linux
@pytest.mark.parametrize("opened", ["folder", "checkpoint"])
def test_networks_of_a_pipeline_are_not_copied(folders, opened):
    if opened == "folder":
        pipeline = load_pipeline(folders / "pipeline", device="cpu")
    else:
        pipeline = open_base(Base(str(folders / "magicface"), base_model=str(folders / "sd15")))
    networks = [pipeline.unet, pipeline.reference_unet, pipeline.vae, pipeline.text_encoder]
    assert copies(folders, *networks) == []


def test_saving_over_a_folder_keeps_what_was_loaded_from_it(folders, tmp_path):
    """Weights that are mapped do not change with the folder, whichever model is saved there."""
    folder = tmp_path / "model"
    load_pipeline(folders / "pipeline", device="cpu").save_pretrained(folder)
    loaded, other = (load_pipeline(folder, device="cpu") for _ in range(2))
    parts = ("unet", "reference_unet", "vae", "text_encoder")
    before = {part: {n: x.clone() for n, x in getattr(loaded, part).state_dict().items()} for part in parts}
    for part in parts:
        for parameter in getattr(other, part).parameters():
            parameter.data.mul_(-1)
    other.save_pretrained(folder)
    for part in parts:
        for name, tensor in getattr(loaded, part).state_dict().items():
            assert torch.equal(tensor, before[part][name]), (part, name)
    name = "mid_block.resnets.0.conv1.weight"
    saved = load_pipeline(folder, device="cpu").unet.get_parameter(name)
    assert torch.equal(saved, -before["unet"][name])
    loaded.save_pretrained(folder)
    assert torch.equal(load_pipeline(folder, device="cpu").unet.get_parameter(name), before["unet"][name])


@pytest.mark.slow
def test_full_size_loads_within_its_own_size(tmp_path):
    """8.5 GB for 7.7 GB of weights, mapped files included; 8 GB of memory and 20 GB of disk."""
    output = tmp_path / "edit_speed.json"
    lines = ["load_published", "convert_published", "load_folder", "load_stable_diffusion"]
    script = str(ROOT / "benchmarks" / "edit_speed.py")
    subprocess.run([sys.executable, script, "--only", *lines, "-o", str(output)], check=True)
    for line, row in json.loads(output.read_text()).items():
        (found,) = row["most"].values()
        assert found["weights_mb"] > 7700, line
        assert found["peak_mb"] <= 8500, line
