"""What a run ends in: the files of a pipeline, its model card, and the push to a hub."""

import dataclasses
import json
import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.state import AcceleratorState

from magicedit.data.pairs import PairDataset
from magicedit.embedded import model_origin
from magicedit.errors import ModelError, reason_of
from magicedit.files import counted, is_address
from magicedit.hub.cards import (
    UNLICENSED,
    TrainingData,
    identifiers,
    license_of,
    licensed_card,
    model_card,
)
from magicedit.hub.push import push_folder
from magicedit.models import TRAINED_NETWORKS
from magicedit.models.adapters import save_adapters, saved_as
from magicedit.models.folder import Base, ModelFolder
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.pipelines.safe_pipeline import SafePipeline
from magicedit.train.config import TrainConfig
from magicedit.train.finished import CARD

logger = logging.getLogger(__name__)

FAMILY_CARD = """---
library_name: diffusers
tags: [magicedit, facial-expression, {tag}]
---
# {name}

{introduction} Edit only people who agreed to it, and say that a picture was edited.

Controls, in intensity steps: {controls}.

Trained on {data}. Licence: {license}. Citation: {citation}.

{weights}

```
{command}
```

{numbers}
"""

# Settings of the author's machine and hub: the command is for others, who would push to the author's
NOT_IN_COMMAND = (
    *("output_dir", "resume_from_checkpoint", "report_to"),
    *("push_to_hub", "hub_model_id", "hub_private", "hub_token"),
)
PLACES = ("train_data_dir", "pretrained_model_name_or_path", "base_model")


def command_of(config: TrainConfig, processes: int = 1) -> str:
    """Returns a command that repeats a run: all settings that differ from the defaults, also those of a
    `--config`. Folders are named without their place.

    processes: of the run, on which its samples depend.
    """
    # On CPUs `accelerate launch` starts one process, whatever is asked for
    several = ["torchrun", "--standalone", "--nproc_per_node", str(processes)]
    words = [*(several if processes > 1 else ["accelerate", "launch"]), "train/train.py"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in NOT_IN_COMMAND or value == field.default:
            continue
        if field.name in PLACES:
            value = _folder_name(value)
        if isinstance(value, dict):
            value = tuple(f"{key}={_folder_name(setting)}" for key, setting in value.items())
        if isinstance(value, tuple):
            value = ",".join(map(str, value))
        words += [f"--{field.name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return shlex.join(words)


def _folder_name(value: object) -> str:
    """Returns the name of a folder for others, to whom its place means nothing; other values as they are.

    An address may hold a password.
    """
    if is_address(value):
        return "shards"
    return Path(str(value)).name if os.path.isabs(str(value)) or os.path.isdir(str(value)) else str(value)


def _command_here(config: TrainConfig) -> str:
    """Returns the command of the run in this process, with what accelerate was configured to."""
    here = AcceleratorState()
    if config.mixed_precision is None and here.mixed_precision != "no":
        config = dataclasses.replace(config, mixed_precision=here.mixed_precision)
    return command_of(config, here.num_processes)


def _terms(config: TrainConfig) -> dict[str, Any]:
    """Returns the licence of the weights as arguments of `model_card`: the stated one, else the pretrained
    model's; empty where neither is known."""
    base = config.pretrained_model_name_or_path
    if config.license is not None:
        return {"license": config.license}
    if base is None:
        return {}
    pinned = {} if config.revision is None else {"revision": config.revision}
    try:
        card = ModelFolder.find(base).fetched(CARD, **pinned).path / CARD
        terms = license_of(card.read_text("utf-8")) if card.is_file() else {}
    except (ModelError, OSError, ValueError, yaml.YAMLError) as error:
        logger.warning(
            "the licence of %s is not known (%s); state that of the weights in the card",
            base,
            reason_of(error),
        )
        return {}
    if "other" in identifiers(terms.get("license")):
        terms.setdefault("license_name", f"that of {_folder_name(base)}")
    return terms


def _description(config: TrainConfig) -> str:
    """Returns the description of a distilled model for its card; empty for others."""
    if config.objective != "distill":
        return ""
    teacher = config.pretrained_model_name_or_path
    teacher = Path(teacher).name if model_origin(teacher) == "folder" else teacher
    return (
        f"It is distilled: in {config.distill_steps} steps without guidance it reproduces what its teacher, "
        f"`{teacher}`, does in {config.distill_teacher_steps} steps with guidance "
        f"{config.distill_guidance:g} (progressive distillation, Salimans & Ho 2022, "
        "[arXiv:2202.00512](https://arxiv.org/abs/2202.00512), of a guided teacher, Meng et al. 2023, "
        "[arXiv:2210.03142](https://arxiv.org/abs/2210.03142)). It was not trained for other numbers of "
        "steps or additional guidance."
    )


def publish(
    pipeline: MagicEditPipeline,
    config: TrainConfig,
    pairs: PairDataset,
    folder: Path,
    step: int,
    samples_seen: int,
    adapters_of: Base | None = None,
) -> None:
    """Writes `pipeline`, or its adapters alone, and a card to `folder`.

    pipeline: with the final (averaged) weights, which stay as they are; adapters are merged into what is
    written. step: optimiser steps done. samples_seen: pairs seen, counted with repetition. adapters_of: the
    base of LoRA adapters to write without it; None: the whole pipeline.
    """
    dtype = getattr(torch, config.save_dtype)
    if adapters_of is None:
        networks = [getattr(pipeline, name) for name in TRAINED_NETWORKS]
        with saved_as(filter(None, networks), dtype):
            pipeline.save_pretrained(folder)
    else:
        save_adapters(pipeline, folder, adapters_of, dtype)

    base = config.pretrained_model_name_or_path
    data = TrainingData(
        name=config.dataset_name or _folder_name(config.train_data_dir),
        photographs=len(pairs),
        identities=pairs.identities,
        license=config.data_license or "not stated",
        citation=config.data_citation or "",
        hub_id=config.dataset_name,
    )
    card = model_card(
        config.hub_model_id or Path(config.output_dir).name,
        repo_id=config.hub_model_id,
        description=_description(config),
        **_terms(config),
        data=[data],
        base_model=base if base and model_origin(base) != "folder" else None,
        command=_command_here(config),
        results={"optimiser steps": step, "pairs seen": samples_seen, "seed": config.seed},
        results_note="Training only; editing quality was not measured when this card was written.",
        action_units=pipeline.action_units,
        resolution=pipeline.config.resolution,
        adapters_of=None if adapters_of is None else adapters_of.name,
    )
    (folder / "README.md").write_text(card, "utf-8")


def publish_family(
    pipeline: SafePipeline,
    config: TrainConfig,
    pairs: PairDataset,
    folder: Path,
    counts: Mapping[str, float],
    *,
    tag: str,
    introduction: str,
) -> None:
    """Writes the pipeline of another family, its counts and its card.

    pipeline: with the final weights, which are saved as `config.save_dtype`. counts: what was trained, for
    `training.json` and the card. tag, introduction: of the card.
    """
    for network in pipeline.components.values():
        if isinstance(network, torch.nn.Module):
            torch.nn.Module.to(network, "cpu", getattr(torch, config.save_dtype))
    pipeline.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    name = config.dataset_name or _folder_name(config.train_data_dir)
    people = counted(pairs.identities, "person", "people")
    card = FAMILY_CARD.format(
        tag=tag,
        name=config.hub_model_id or Path(config.output_dir).name,
        introduction=introduction,
        controls=pipeline.config.action_units.replace(",", ", "),
        data=f"{name}: {counted(len(pairs), 'photograph')} of {people}",
        license=config.data_license or "not stated",
        citation=config.data_citation or "not stated",
        weights=UNLICENSED,
        command=_command_here(config),
        numbers="\n".join(f"- {key.replace('_', ' ')}: {value:g}" for key, value in counts.items()),
    )
    if terms := _terms(config):
        card = licensed_card(card, **terms)
    (folder / "README.md").write_text(card, "utf-8")


def push(config: TrainConfig, folder: Path) -> None:
    """Pushes a finished folder if `config.push_to_hub`."""
    if config.push_to_hub:
        settings = {"private": config.hub_private, "token": config.hub_token}
        url = push_folder(folder, config.hub_model_id or folder.name, **settings)
        logger.info("pushed to %s", url)
