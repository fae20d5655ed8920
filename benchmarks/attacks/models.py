"""Model folders with code, pickles, pipes and lies: loaded or refused in one sentence, and no code is run."""

import json
import os
import pickle
import random
import shutil
import struct
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from attacks import Attack, typed
from attacks.small import SMALL, scratch
from magicedit.embedded import embedded_folder
from magicedit.hub import check_pipeline_folder
from magicedit.models import create_patch_pipeline
from magicedit.models.face_model import load_face_model
from magicedit.models.folder import ModelFolder

TITLE = "Model folders"
SECONDS = 2  # of processor time
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX, CONFIG, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
MARKER = "code-has-run"  # in the attack's folder

Tamper = Callable[[Path], Any]


def attacks(seed: int, short: bool) -> list[Attack]:
    found = [
        Attack(f"{name} ({base})", partial(_check, name, base), 30, 700)
        for name in TAMPERED
        for base in BASES
    ]
    return random.Random(seed).sample(found, 16) if short else found


def _check(name: str, base: str, folder: Path) -> str | None:
    model = BASES[base](folder / "model")
    TAMPERED[name](model)
    began = time.process_time()
    problem = typed(lambda: load_face_model(model, device="cpu"))
    seconds = time.process_time() - began
    problem = problem or typed(lambda: ModelFolder.find(model).fingerprint)
    problem = problem or typed(lambda: check_pipeline_folder(model))
    if (folder / MARKER).exists():
        return "code of the folder was run"
    if seconds > SECONDS:
        return f"it took {seconds:.1f} s"
    return problem


def _mini(folder: Path) -> Path:
    """A copy of `mini`, whose weights are linked: what is written to replaces them first."""
    return shutil.copytree(embedded_folder("mini"), folder, copy_function=_linked)


def _linked(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        os.symlink(source, target)
    else:
        shutil.copyfile(source, target)


@cache
def _tiny() -> Path:
    create_patch_pipeline(SMALL).save_pretrained(scratch() / "tiny")
    return scratch() / "tiny"


BASES: dict[str, Callable[[Path], Path]] = {
    "mini": _mini,
    "tiny": lambda folder: shutil.copytree(_tiny(), folder),
}


def json_with(file: str, **values: Any) -> Tamper:
    def tamper(model: Path) -> None:
        path = model / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return tamper


def written(file: str, content: bytes | Callable[[bytes], bytes]) -> Tamper:
    def tamper(model: Path) -> None:
        path = model / file
        path.parent.mkdir(exist_ok=True)
        new = content(path.read_bytes()) if callable(content) else content
        path.unlink(missing_ok=True)
        path.write_bytes(new)

    return tamper


def replaced(file: str, make: Callable[[Path], Any]) -> Tamper:
    def tamper(model: Path) -> None:
        path = model / file
        path.unlink(missing_ok=True)
        make(path)

    return tamper


def both(*tampers: Tamper) -> Tamper:
    return lambda model: [tamper(model) for tamper in tampers]


def _code(model: Path) -> bytes:
    marker = str(model.parent / MARKER)
    return (
        f"open({marker!r}, 'w').close()\n"
        "class Evil:\n    @classmethod\n    def from_pretrained(cls, *a, **k):\n        return cls()\n"
        "MagicEditPipeline = UNet2DConditionModel = ActionUnitMap = DDIMScheduler = Evil\n"
    ).encode()


def planted(*files: str) -> Tamper:
    """Code that leaves a marker when it is imported or run."""

    def tamper(model: Path) -> None:
        for file in files:
            written(file, _code(model))(model)

    return tamper


class _Evil:
    def __init__(self, marker: str):
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


def pickled(file: str) -> Tamper:
    return lambda model: written(file, pickle.dumps(_Evil(str(model.parent / MARKER))))(model)


def torch_pickled(file: str) -> Tamper:
    def tamper(model: Path) -> None:
        (model / file).unlink(missing_ok=True)
        torch.save({"a": _Evil(str(model.parent / MARKER))}, model / file)

    return tamper


def header_with(change: Callable[[dict], Any]) -> Tamper:
    def rewrite(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return written(f"unet/{WEIGHTS}", rewrite)


def _first(header: dict) -> dict:
    return next(entry for name, entry in header.items() if name != "__metadata__")


def _without_first(header: dict) -> None:
    del header[next(name for name in header if name != "__metadata__")]


def _many(header: dict) -> None:
    header.update({f"x{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(100_000)})


def _renamed(header: dict) -> None:
    name = next(name for name in header if name != "__metadata__")
    header["other." + name] = header.pop(name)


def _sparse(path: Path) -> None:
    """A weights file of 2**42 bytes that takes no room on the disk."""
    text = json.dumps({"a": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 2**42)


def _not_numbers(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = model / "unet" / WEIGHTS
    tensors = {name: tensor * float("nan") for name, tensor in load_file(path).items()}
    path.unlink()
    save_file(tensors, path)


TAMPERED: dict[str, Tamper] = {
    "nothing": lambda model: None,
    # code
    "code beside the index": planted("pipeline.py"),
    "code in a component": planted("pipeline.py", "unet/pipeline.py", "unet/modeling.py", "unet/__init__.py"),
    "code as the class of the pipeline": both(
        planted("evil.py"), json_with(INDEX, _class_name=["evil", "Evil"])
    ),
    "code as the class of a component": both(
        planted("unet/evil.py", "evil.py"), json_with(INDEX, unet=["evil", "Evil"])
    ),
    "code as an AU map": both(
        planted("au_map/pipeline.py"),
        written("au_map/config.json", b"{}"),
        json_with(INDEX, au_map=["pipeline", "ActionUnitMap"]),
    ),
    "code as the scheduler": both(
        planted("scheduler/scheduling.py"), json_with(INDEX, scheduler=["scheduling", "DDIMScheduler"])
    ),
    "code by auto_map": both(planted("unet/evil.py"), json_with(CONFIG, auto_map={"AutoModel": "evil.Evil"})),
    "code as the class in a configuration": both(
        planted("unet/evil.py"), json_with(CONFIG, _class_name="evil.Evil")
    ),
    "a function as a component": json_with(INDEX, unet=["os", "system"]),
    "a class of another library": json_with(INDEX, unet=["transformers", "AutoModel"]),
    "a tokenizer with code": both(
        planted("tokenizer/tokenization.py"),
        written(
            "tokenizer/tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["tokenization.Evil", null]}}'
        ),
        json_with(INDEX, tokenizer=["transformers", "AutoTokenizer"]),
    ),
    "kernels of a hub": json_with(CONFIG, _attn_implementation="kernels-community/evil"),
    "an activation by name": json_with(CONFIG, act_fn="os.system"),
    "blocks by name": json_with(CONFIG, down_block_types=["os.system"] * 3),
    # pickles
    "a pickle beside the weights": pickled("unet/diffusion_pytorch_model.bin"),
    "a pickle in place of the weights": both(
        replaced(f"unet/{WEIGHTS}", lambda path: None), pickled("unet/diffusion_pytorch_model.bin")
    ),
    "a pickle named as the weights": pickled(f"unet/{WEIGHTS}"),
    "a pickle of torch named as the weights": torch_pickled(f"unet/{WEIGHTS}"),
    "a pickle of torch as the weights": both(
        replaced(f"unet/{WEIGHTS}", lambda path: None), torch_pickled("unet/diffusion_pytorch_model.pt")
    ),
    "a pickle named as the index": pickled(INDEX),
    "an adapter": written("unet/adapter_config.json", b'{"base_model_name_or_path": "/etc"}'),
    # the index
    **{
        f"{name} {str(value)[:24]}": json_with(INDEX, **{name: value})
        for name, values in {
            "_class_name": ([], {}, 5, [1, 2], ["a", "b", "c"], "", None, "x" * 10**6),
            "resolution": (0, -128, 10**6, "128", 1.5, None, True),
            "patch_size": (0, -4, 3, 8, 10**9, []),
            "default_steps": (0, 10**9, "1", None),
            "default_guidance_scale": (float("nan"), -1, "1"),
            "action_units": ("", 5, "AU1", ",".join(["AU1"] * 12), "x" * 10**6),
            "prediction": ("x", 5),
            "unet": ([], ["diffusers"], [None, None], "x", {"a": 1}, ["diffusers", {}]),
            "scheduler": (
                *(["diffusers", kind] for kind in ("FlowMatchEulerDiscreteScheduler", "KarrasVeScheduler")),
                *(["diffusers", kind] for kind in ("UNet2DModel", "PNDMScheduler", "Nothing")),
            ),
            "controls": (5, [5], [{"name": 5}], [{"name": "AU1", "range": [5, 1]}]),
            "vae": (["diffusers", "AutoencoderKL"], ["diffusers", "x"]),
        }.items()
        for value in values
    },
    "an index of depth": written(INDEX, b'{"a": ' + b"[" * 100_000),
    "an index of one number": written(INDEX, b'{"resolution": ' + b"9" * 100_000 + b"}"),
    "an index of 100 MB": written(INDEX, b" " * 100_000_000),
    "an index of bytes": written(INDEX, b"\xff\xfe\0"),
    "an index of nothing": written(INDEX, b""),
    "an index that is a pipe": replaced(INDEX, os.mkfifo),
    "an index that is a device": replaced(INDEX, lambda path: path.symlink_to("/dev/zero")),
    # configurations
    **{
        f"{name} {str(value)[:24]}": json_with(CONFIG, **{name: value})
        for name, values in {
            "layers_per_block": (10**7, 0, -1, "1", [1] * 10**5),
            "block_out_channels": ([10**9] * 3, [], [64], "x", None, [64, 96, 0]),
            "norm_num_groups": (0, -1, 7, "x"),
            "attention_head_dim": (0, -1, 10**9),
            "cross_attention_dim": (10**10, 0, None),
            "in_channels": (10**12, 0, 4),
            "transformer_layers_per_block": (10**8, 0, [1, 2]),
            "sample_size": (10**12, "x"),
            "down_block_types": (5, [], ["DownBlock2D"] * 10**4),
            "downsample_padding": (0,),
            "quantization_config": (
                {"quant_method": "bitsandbytes", "load_in_4bit": True},
                {"quant_method": "x"},
            ),
        }.items()
        for value in values
    },
    "a configuration of a list": written(CONFIG, b"[]"),
    "a configuration of depth": written(CONFIG, b"[" * 100_000),
    "a configuration that is a pipe": replaced(CONFIG, os.mkfifo),
    **{
        f"{name} {str(value)[:24]}": json_with(SCHEDULER, **{name: value})
        for name, values in {
            "num_train_timesteps": (10**10, 0, -1, "x", 1.5),
            "beta_schedule": ("x", 5),
            "trained_betas": ("x", [], [2.0] * 10),
            "prediction_type": ("x", 5),
            "timestep_spacing": ("x",),
            "steps_offset": (10**9,),
        }.items()
        for value in values
    },
    # weights
    "weights cut": written(f"unet/{WEIGHTS}", lambda content: content[: len(content) // 2]),
    "weights with more": written(f"unet/{WEIGHTS}", lambda content: content + bytes(1000)),
    "weights of nothing": written(f"unet/{WEIGHTS}", b""),
    "weights of zeros": written(f"unet/{WEIGHTS}", bytes(100_000)),
    "weights with a header of 2**63": written(f"unet/{WEIGHTS}", lambda content: b"\xff" * 8 + content[8:]),
    "weights with a header of depth": written(f"unet/{WEIGHTS}", struct.pack("<Q", 100_000) + b"[" * 100_000),
    "weights that say a large shape": header_with(lambda header: _first(header).update(shape=[2**40])),
    "weights that say another shape": header_with(lambda header: _first(header)["shape"].reverse()),
    "weights that say another type": header_with(lambda header: _first(header).update(dtype="I32")),
    "weights that say other places": header_with(
        lambda header: _first(header).update(data_offsets=[0, 2**50])
    ),
    "weights that say a place before": header_with(
        lambda header: _first(header).update(data_offsets=[-8, 8])
    ),
    "weights without a tensor": header_with(_without_first),
    "weights with another name": header_with(_renamed),
    "weights of many names": header_with(_many),
    "weights of a terabyte": replaced(f"unet/{WEIGHTS}", _sparse),
    "weights that are no numbers": _not_numbers,
    "weights that are a pipe": replaced(f"unet/{WEIGHTS}", os.mkfifo),
    "weights that are a device": replaced(f"unet/{WEIGHTS}", lambda path: path.symlink_to("/dev/zero")),
    "weights that are a link to themselves": replaced(f"unet/{WEIGHTS}", lambda path: path.symlink_to(path)),
    "weights of another network": written(
        f"unet/{WEIGHTS}", (embedded_folder("mini") / "reference_unet" / WEIGHTS).read_bytes()
    ),
    "shards elsewhere": written(
        f"unet/{WEIGHTS}.index.json", b'{"weight_map": {"a": "../../x.safetensors"}}'
    ),
    "shards that are a table": written(f"unet/{WEIGHTS}.index.json", b'{"weight_map": {"a": {}}}'),
    "a pipe beside the weights": lambda model: os.mkfifo(model / "unet" / "more.json"),
    "no reference": lambda model: shutil.rmtree(model / "reference_unet"),
    "a component that is a file": both(
        lambda model: shutil.rmtree(model / "scheduler"), written("scheduler", b"{}")
    ),
    # digests
    "digests of nothing": written("parts.json", b"{}"),
    "digests of another file": written("parts.json", b'{"sha256": {"unet/config.json": "0"}}'),
    "digests of a missing file": written("parts.json", b'{"sha256": {"unet/gone.json": "0"}}'),
    "digests of a device": both(
        lambda model: (model / "zero.json").symlink_to("/dev/zero"),
        written("parts.json", b'{"sha256": {"zero.json": "0"}}'),
    ),
    "digests elsewhere": written("parts.json", b'{"sha256": {"../../etc/passwd.json": "0"}}'),
    "digests that are a pipe": lambda model: os.mkfifo(model / "parts.json"),
}
