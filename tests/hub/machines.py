"""Machines of people around the hub: processes with a cache and settings of their own, and a folder to push.

Processes, because huggingface_hub reads its settings when it is imported.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hub_server import Account
from safetensors.numpy import save_file
from warm import run_warm

ROOT = Path(__file__).parents[2]
OWNER, READER, STRANGER = "token-owner", "token-reader", "token-stranger"
ACCOUNTS = {
    OWNER: Account("alice"),
    READER: Account("alice", may_write=False),
    STRANGER: Account("bob"),
}

# Where magicedit is not installed: importing it, by whatever name, fails as it does there.
WITHOUT_MAGICEDIT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("magicedit", "pipelines", "train"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


@dataclass
class Machine:
    """A process's surroundings: its cache folder, and the hub that it talks to."""

    home: Path
    endpoint: str

    def run(
        self, code: str, *, token: str | None = None, offline: bool = False, magicedit: bool = True, **values
    ) -> dict:
        """Runs `code` in a new process, in which `values` are defined and whose `result` dict comes back.

        Raises:
            AssertionError: with the process's own output, where it fails.
        """
        inherited = {k: v for k, v in os.environ.items() if not k.upper().startswith(("HF_", "HUGGING"))}
        environment = inherited | {
            "HF_HOME": str(self.home),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }
        if token:
            environment["HF_TOKEN"] = token
        if offline:
            environment["HF_HUB_OFFLINE"] = "1"
        script = "\n".join(
            [
                "" if magicedit else WITHOUT_MAGICEDIT,
                "import json as _json",
                f"globals().update(_json.loads({json.dumps(json.dumps(values))}))",
                "result = {}",
                code,
                "print('\\n' + _json.dumps(result))",
            ]
        )
        place = ROOT if magicedit else self.home
        done = run_warm(["-c", script], environment, place, timeout=120)
        assert done.returncode == 0, f"{code}\n--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}"
        return json.loads(done.stdout.splitlines()[-1])


def write_small_folder(folder: Path) -> Path:
    """Files in the layout of a pipeline folder: small ones, and one that is a large file at the hub."""
    for name in ("unet", "scheduler"):
        (folder / name).mkdir(parents=True)
    index = {
        "_class_name": ["pipeline", "MagicEditPipeline"],
        "_diffusers_version": "0.42.1",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "vae": [None, None],
        "resolution": 32,
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "pipeline.py").write_text("# the pipeline's code\n")
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\npipeline_tag: image-to-image\n---\n\n# Card\n"
    )
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    (folder / "unet" / "config.json").write_text("{}")
    weights = np.random.default_rng(0).standard_normal(100_000, dtype=np.float32)
    save_file({"weight": weights}, folder / "unet" / "diffusion_pytorch_model.safetensors")
    return folder
