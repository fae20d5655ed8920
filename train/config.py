"""The settings of a training run: one frozen dataclass, read from flags and YAML files of the same names."""

import argparse
import dataclasses
import math
import os
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from magicedit.errors import DatasetError, TrainingError
from magicedit.files import read_yaml, shown
from magicedit.models.checks import RANGES
from magicedit.train.methods import OBJECTIVES
from magicedit.vocabulary import quoted

# Settings that determine a checkpoint's tensors, and those that determine how a run continues
SHAPING = (
    *("block_out_channels", "layers_per_block", "attention_heads", "patch_size", "prediction"),
    *("au_encoder", "identity_encoder", "concat_identity", "fine_flow", "resolution", "lora_rank"),
    *("objective", "distill_steps", "distill_teacher_steps", "distill_guidance", "freeze_reference"),
    *("use_ema", "use_8bit_adam", "settings"),
)
COMPUTED_WITH = (
    *("seed", "train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler"),
    *("max_train_steps", "warped", "augment", "au_dropout", "zero_keeps", "mixed_precision", "change_weight"),
    *("compile", "gradient_checkpointing", "reference_cache_gb"),
    *("edge_weight", "flow_weight", "known_mask_weight", "mask_weight"),
)
# Values of runs from before these were settings
BEFORE = {"fine_flow": False, "au_encoder": "linear", "identity_encoder": "unet", "objective": "pairs"}

Settings = typing.TypeVar("Settings")


@dataclass(frozen=True)
class TrainConfig:
    """Names are those of diffusers' training examples; `help` gives units and meaning."""

    def _(default, help):  # a field with its help text
        return dataclasses.field(default=default, metadata={"help": help})

    objective: str = _(
        "pairs",
        "pairs: learn from pairs of pictures; distill: learn to reproduce the pipeline "
        "--pretrained_model_name_or_path in fewer steps and without guidance; flow-autoencoder: an "
        "editor by flow; ganimation: an editor by attention and colour, against a critic; "
        "emotion-diffusion: an editor of emotions in the latents of an autoencoder; "
        "emotion-vae: such an autoencoder; attribute-diffusion: an editor of attributes in pixels",
    )
    settings: dict | None = _(  # noqa: RUF009 - a field, as below
        None, "what only this objective has: NAME=VALUE, joined by commas, or a mapping; none: its defaults"
    )
    distill_steps: int = _(2, "distill: steps of the student, 1 to 4")
    distill_teacher_steps: int = _(8, "distill: steps of the teacher, a multiple of --distill_steps")
    distill_guidance: float | None = _(
        None, "distill: guidance of the teacher, baked into the student; none: the teacher's own default"
    )

    # Model
    pretrained_model_name_or_path: str | None = _(
        None,
        "Stable Diffusion folder or hub id, published MagicFace checkpoint (needs --base_model), or our own "
        "pipeline folder or hub id (mini too); none: a small model on patches of pixels, from scratch",
    )
    refine: bool = _(False, "continue a flow_mask_paint pipeline at another --resolution, with --fine_flow")
    base_model: str | None = _(
        None, "Stable Diffusion folder: VAE and text encoder of a MagicFace checkpoint"
    )
    revision: str | None = _(None, "hub revision of the pretrained model")
    variant: str | None = _(
        None, "files of the pretrained weights, such as fp16; none: the plain ones, else the only ones"
    )
    prediction: str = _("flow_mask_paint", "from scratch: flow_mask_paint or noise")
    patch_size: int = _(4, "from scratch: pixels a side of a patch")
    block_out_channels: tuple[int, ...] = _((64, 96, 160), "from scratch: width of each level of both UNets")
    layers_per_block: int = _(1, "from scratch: layers of each level")
    attention_heads: int = _(4, "from scratch: heads of each attention layer")
    concat_identity: bool = _(True, "from scratch: identity patches on the denoiser's input channels too")
    fine_flow: bool = _(True, "from scratch: a displacement of each pixel, not only of each patch")
    au_encoder: str = _("linear", "from scratch: AUs by a linear layer, padded, or as a latent_map")
    identity_encoder: str = _("unet", "from scratch: identity by a unet, convolution, clip, or none")
    default_steps: int = _(6, "from scratch: inference steps that the saved pipeline uses by default")
    default_guidance_scale: float = _(1.5, "from scratch: guidance that the saved pipeline uses by default")
    freeze_reference: bool = _(
        False,
        "train the denoiser only; reference features are then computed once per photograph, unless --augment "
        "changes it every time",
    )
    reference_cache_gb: float = _(
        4.0,
        "frozen reference without --augment: device memory to cache features in, GB (10^9 bytes); 0: compute "
        "them at every step",
    )
    lora_rank: int = _(
        0,
        "train LoRA matrices of this rank, conv_in and the AU layer instead of all weights; checkpoints and "
        "result hold these alone, and need the pretrained model",
    )
    merge: bool = _(False, "with --lora_rank: save the whole pipeline, adapters merged into its weights")

    # Data
    train_data_dir: str | None = _(
        None,
        "dataset folder written by `magicedit prepare`, or shards written by `magicedit shards`: a folder, a "
        "URL, or a command (pipe:COMMAND, with {} for the name of a file)",
    )
    dataset_name: str | None = _(None, "hub id (or ID@REVISION) of such a dataset, not --train_data_dir")
    resolution: int = _(512, "pixels a side of the training crops")
    warped: float = _(0.0, "probability of a warped pair of one photograph instead of a real pair, 0 to 1")
    augment: bool = _(False, "random small rotations, shifts, mirroring and colour of each pair")
    au_dropout: float = _(0.1, "probability of the zero AU vector, 0 to 1")
    zero_keeps: bool | None = _(
        None,
        "use the source as the target of pairs with a zero AU vector, so that zero means keep; none: with "
        "flow_mask_paint",
    )
    max_bad_fraction: float = _(
        0.01,
        "share of the dataset's rows that may be unusable, such as unreadable pictures and labels outside 0 "
        "to 5; they are named and left out, as is a single one in any dataset; 0: none may be unusable",
    )
    cache_latents: bool = _(True, "with a VAE and without augmentation: encode each photograph once")
    dataloader_num_workers: int = _(0, "processes that prepare batches")

    # Optimisation
    output_dir: str = _("magicedit-model", "pipeline folder to write, with checkpoints and previews in it")
    train_batch_size: int = _(4, "pairs per device and micro-step")
    max_train_steps: int = _(100_000, "optimiser steps")
    gradient_accumulation_steps: int = _(1, "micro-steps per optimiser step")
    gradient_checkpointing: bool = _(False, "recompute activations in the backward pass to save memory")
    learning_rate: float = _(1e-5, "peak learning rate")
    lr_scheduler: str = _("constant_with_warmup", "a schedule of diffusers.optimization, e.g. cosine")
    lr_warmup_steps: int = _(500, "optimiser steps")
    adam_beta1: float = _(0.9, "beta1 of AdamW")
    adam_beta2: float = _(0.999, "beta2 of AdamW")
    adam_weight_decay: float = _(0.01, "weight decay of AdamW")
    adam_epsilon: float = _(1e-8, "epsilon of AdamW")
    max_grad_norm: float = _(1.0, "gradient norm to clip at")
    compile: bool = _(False, "compile the networks, which takes minutes; on a CPU it needs a C++ compiler")
    use_8bit_adam: bool = _(False, "AdamW with 8-bit state (needs bitsandbytes)")
    snr_gamma: float | None = _(5.0, "min-SNR weighting of the noise objective (Hang et al. 2023); none: off")
    change_weight: float = _(8.0, "flow_mask_paint: extra weight of pixels that the edit changes")
    edge_weight: float = _(0.0, "flow_mask_paint: weight of differences between neighbouring pixels")
    flow_weight: float = _(0.0, "flow_mask_paint: weight of the distance to the known displacement, a pixel")
    known_mask_weight: float = _(0.0, "flow_mask_paint: weight of the cross-entropy to the known mask")
    mask_weight: float = _(
        0.0, "flow_mask_paint: cost of paint where it is not known to be needed; pairs only"
    )
    use_ema: bool = _(False, "keep and save an exponential moving average of the weights")
    ema_decay: float = _(0.9999, "final decay of that average per step")
    mixed_precision: str | None = _(None, "no, fp16 or bf16; none: as accelerate is configured")
    allow_tf32: bool = _(False, "TF32 matrix products on Ampere and later")
    seed: int = _(0, "seed of weights, pairs, noise and dropout")

    # Reporting, checkpoints, publishing
    report_to: str = _("none", "tracker: none, tensorboard, wandb, ...")
    logging_steps: int = _(
        10,
        "optimiser steps between lines of train_log.jsonl: step, loss and its parts, grad_norm, lr; "
        "images_per_second of all processes, data_share (of the time, waiting for batches) and mfu (model "
        "FLOP utilisation: of --peak_tflops) since the last line, without the time of previews, validation "
        "and checkpoints; memory_mb (10^6 bytes), the peak of a process: allocated on CUDA devices, else "
        "resident; with cached features, reference_hits and reference_misses since the last line",
    )
    peak_tflops: float | None = _(
        None,
        "peak TFLOP/s of a device, the base of mfu; none: as published for "
        "some NVIDIA GPUs, else measured by a short product",
    )
    validation_steps: int = _(
        1000,
        "optimiser steps between preview grids and between validation losses, which are written to "
        "train_log.jsonl as validation_loss and its parts; 0: none",
    )
    validation_pairs: int = _(
        64,
        "held-out samples of a validation loss, always the same ones, of people of the validation split; 0: "
        "no validation loss",
    )
    validation_faces: int = _(4, "number of faces in a preview grid")
    checkpointing_steps: int = _(500, "optimiser steps between checkpoints; 0: only at the end")
    checkpoints_total_limit: int | None = _(
        2, "checkpoints kept, beside the one of the lowest validation loss; none: all"
    )
    resume_from_checkpoint: str | None = _(
        None,
        '"latest" (the newest that verifies), "best" (the one of the lowest validation loss) or a checkpoint '
        "folder; later ones than that are renamed to abandoned-N",
    )
    save_dtype: str = _("float32", "data type of the saved pipeline: float32, float16 or bfloat16")
    push_to_hub: bool = _(False, "push the result")
    hub_model_id: str | None = _(None, "owner/name to push to; default: the name of output_dir")
    hub_private: bool = _(False, "push to a private repository")
    hub_token: str | None = _(None, "default: the one that `hf auth login` stored")
    license: str | None = _(
        None,
        "licence of the weights, for the model card, in the hub's spelling, such as cc-by-4.0; none: that of "
        "the pretrained model, if its card is here and states one",
    )
    data_license: str | None = _(None, "licence of the training photographs, for the model card")
    data_citation: str | None = _(None, "citation of the training photographs, for the model card")

    del _

    def __post_init__(self):
        def check(valid: bool, field: str, expected: str):
            if not valid:
                got = quoted(getattr(self, field))
                raise TrainingError(f"--{field} must be {expected}, got {got}")

        for field in ("output_dir", "train_data_dir"):
            check(getattr(self, field) != "", field, "a name")  # pathlib takes an empty one for "."
        for field in ("logging_steps", "train_batch_size", "max_train_steps", "gradient_accumulation_steps",
                      "layers_per_block", "attention_heads"):  # fmt: skip
            check(getattr(self, field) >= 1, field, "at least 1")
        for field, (_, low, high) in RANGES.items():
            if hasattr(self, field):  # else no load would accept the result
                check(low <= getattr(self, field) <= high, field, f"from {low:g} to {high:g}")
        widths = self.block_out_channels
        check(
            bool(widths) and min(widths) >= 1, "block_out_channels", "widths of at least 1, joined by commas"
        )
        check(0 <= self.seed < 2**32, "seed", "from 0 to 4294967295")
        for field in ("checkpointing_steps", "validation_steps", "validation_pairs", "lora_rank",
                      "lr_warmup_steps"):  # fmt: skip
            check(getattr(self, field) >= 0, field, "0 or more")
        for field in ("warped", "au_dropout", "max_bad_fraction", "ema_decay"):
            check(0 <= getattr(self, field) <= 1, field, "between 0 and 1")
        for field in ("adam_beta1", "adam_beta2"):
            check(0 <= getattr(self, field) < 1, field, "at least 0 and below 1")
        for field in ("adam_weight_decay", "adam_epsilon", "dataloader_num_workers", "validation_faces",
                      "change_weight", "edge_weight", "flow_weight", "known_mask_weight",
                      "mask_weight"):  # fmt: skip
            check(getattr(self, field) >= 0, field, "0 or more")
        faces = self.validation_faces >= 1 or not self.validation_steps
        check(faces, "validation_faces", "at least 1 with --validation_steps")
        for field in ("learning_rate", "max_grad_norm"):
            check(getattr(self, field) > 0, field, "above 0")
        check(self.snr_gamma is None or self.snr_gamma > 0, "snr_gamma", "above 0, or none")
        check(self.peak_tflops is None or self.peak_tflops > 0, "peak_tflops", "above 0, or none")
        check(0 <= self.reference_cache_gb < math.inf, "reference_cache_gb", "0 or more")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            check(not isinstance(value, float) or math.isfinite(value), field.name, "a finite number")
        limit = self.checkpoints_total_limit
        check(limit is None or limit >= 1, "checkpoints_total_limit", "at least 1, or none")
        check(self.prediction in ("flow_mask_paint", "noise"), "prediction", "flow_mask_paint or noise")
        named = self.license is None or self.license.strip() not in ("", "other")
        check(named, "license", "an identifier of the hub; write another one into the card")
        check(self.mixed_precision in (None, "no", "fp16", "bf16"), "mixed_precision", "no, fp16 or bf16")
        dtypes = ("float32", "float16", "bfloat16")
        check(self.save_dtype in dtypes, "save_dtype", "float32, float16 or bfloat16")
        if self.compile and self.gradient_checkpointing:
            raise TrainingError(
                "--compile and --gradient_checkpointing exclude each other: compilation decides itself what "
                "the backward pass recomputes, and cannot read reference features inside checkpoints"
            )
        pairs = self.objective in ("pairs", "distill")  # others refuse --lora_rank themselves
        if self.lora_rank and pairs and self.pretrained_model_name_or_path is None:
            raise TrainingError(
                "--lora_rank needs --pretrained_model_name_or_path, whose weights stay as they are; name it, "
                "or leave --lora_rank out"
            )
        if self.lora_rank and self.refine and not self.merge:
            raise TrainingError(
                "--refine changes the base of --lora_rank; add --merge to save the whole pipeline"
            )
        check(bool(self.lora_rank) or not self.merge, "merge", "off without --lora_rank, which it merges")
        check(self.objective in OBJECTIVES, "objective", " or ".join(OBJECTIVES))
        check(not (self.settings and pairs), "settings", f"empty: --objective {self.objective} has none")
        check(1 <= self.distill_steps <= 4, "distill_steps", "1 to 4")
        steps, guidance = self.distill_teacher_steps, self.distill_guidance
        multiple = steps >= 1 and steps % self.distill_steps == 0
        check(multiple, "distill_teacher_steps", f"a multiple of --distill_steps {self.distill_steps}")
        check(guidance is None or 0 < guidance < math.inf, "distill_guidance", "above 0, or none")
        if self.objective == "distill":
            if self.pretrained_model_name_or_path is None:
                raise TrainingError("--objective distill needs a teacher: --pretrained_model_name_or_path")
            refined = "off with --objective distill: the student is the teacher's copy"
            check(not self.refine, "refine", refined)
        elif guidance is not None:
            raise TrainingError("--distill_guidance needs --objective distill; add that, or leave it out")
        if (self.train_data_dir is None) == (self.dataset_name is None):
            raise TrainingError("name the data: either --train_data_dir FOLDER or --dataset_name ID")

    def data_folder(self) -> str:
        """The folder of the dataset, which is downloaded where it is one of the hub."""
        if self.train_data_dir is not None:
            return self.train_data_dir
        import huggingface_hub

        repository, _, revision = self.dataset_name.partition("@")
        try:
            return huggingface_hub.snapshot_download(
                repository, repo_type="dataset", revision=revision or None
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise DatasetError(
                f"--dataset_name {self.dataset_name} cannot be fetched from the hub: {error}"
            ) from error

    def changed_since(self, earlier: dict) -> tuple[list[str], list[str]]:
        """Returns settings that differ from a checkpoint's: those in `SHAPING`, and in `COMPUTED_WITH`."""
        earlier = BEFORE | earlier
        changed = {name for name, value in self.to_dict().items() if value != earlier.get(name, value)}
        return sorted(changed & set(SHAPING)), sorted(changed & set(COMPUTED_WITH))

    def to_dict(self) -> dict:
        """Plain values without secrets, for YAML and JSON."""
        values = dataclasses.asdict(self)
        values.pop("hub_token")
        values["block_out_channels"] = list(self.block_out_channels)
        return values


def _convert(name: str, value, annotation):
    """Converts a flag's text or a YAML value to the field's type."""
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    if value is None or (type(None) in options and str(value).lower() == "none"):
        if type(None) in options:
            return None
        raise TrainingError(f"--{name} must not be empty")
    kind = next(option for option in options if option is not type(None))
    try:
        if typing.get_origin(kind) is tuple:
            return tuple(int(v) for v in (value.split(",") if isinstance(value, str) else value))
        if kind is dict:
            if isinstance(value, str):
                value = dict(part.split("=") for part in value.split(","))
            return dict(value)
        if kind is bool:
            known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
            return known[str(value).lower()]
        if isinstance(value, list | dict) or (kind is int and float(value) != int(float(value))):
            raise ValueError(value)
        return int(float(value)) if kind is int else kind(value)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise TrainingError(f"--{name} must be of type {kind.__name__}, got {quoted(value)}") from error


def settings_of(config: TrainConfig, kind: type[Settings]) -> Settings:
    """The `settings` of an objective as its own dataclass.

    Raises:
        TrainingError: on names that it does not have, and on values that do not fit.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    given = config.settings or {}
    if unknown := sorted({str(name) for name in given} - set(fields)):
        raise TrainingError(
            f"--objective {config.objective} has no settings {shown(', '.join(unknown))}; it has "
            f"{', '.join(fields)}"
        )
    return kind(**{n: _convert(f"settings {n}", v, fields[n].type) for n, v in given.items()})


def refuse_unused(config: TrainConfig, names: tuple[str, ...]) -> None:
    """Raises TrainingError where one of these settings, which the objective does not use, is set."""
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    for name in names:
        if getattr(config, name) != defaults[name]:
            raise TrainingError(f"--objective {config.objective} does not use --{name}; leave it out")


class _Parser(argparse.ArgumentParser):
    """Reports invalid flags in one line, like all user errors, not after the usage of a hundred flags."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="train.py",
        description="Trains an expression editor on pairs of photographs of one identity.",
        epilog="example: accelerate launch train/train.py --config train/configs/mini-cpu.yaml "
        "--train_data_dir DATASET --output_dir RUN",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="YAML file of the same settings; flags win over it")
    for field in dataclasses.fields(TrainConfig):
        text = field.metadata["help"].replace("%", "%%") + f" (default: {field.default})"
        if field.type is bool:
            parser.add_argument(f"--{field.name}", nargs="?", const="true", metavar="BOOL", help=text)
            parser.add_argument(f"--no_{field.name}", dest=field.name, action="store_const", const="false",
                                help=argparse.SUPPRESS)  # fmt: skip
        else:
            parser.add_argument(f"--{field.name}", help=text)
    return parser


def parse_config(argv: list[str] | None = None) -> TrainConfig:
    """Reads flags, which win over `--config FILE.yaml`, which wins over the defaults.

    Raises TrainingError on unknown keys and invalid values; argparse exits on unknown flags.
    """
    flags = vars(build_parser().parse_args(argv))
    values = {}
    if config_file := flags.pop("config", None):
        recipes = {path.stem: path for path in (Path(__file__).parent / "configs").glob("*.yaml")}
        named = config_file in recipes and not os.path.isfile(config_file)
        if not named and not os.path.lexists(config_file):
            raise TrainingError(
                f"no such file {shown(config_file)}, and no recipe of that name (known: "
                f"{', '.join(sorted(recipes))})"
            )
        path = recipes[config_file] if named else config_file
        content = read_yaml(path, TrainingError, "a mapping of settings")
        values = {} if content is None else content
        if not isinstance(values, dict):
            raise TrainingError(
                f"{shown(path)} must hold a mapping of settings, got {type(values).__name__}; see --help"
            )
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    if unknown := sorted({str(name) for name in values} - set(fields)):
        raise TrainingError(
            f"{shown(config_file)} has unknown settings: {shown(', '.join(unknown))}; see --help"
        )
    values |= flags
    return TrainConfig(**{name: _convert(name, value, fields[name].type) for name, value in values.items()})
