"""The rows of `speed.py` that need no clock: FLOPs, simulated times of GPUs, memory of live tensors."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from counting import DEVICES, Meter, flops, parameter_bytes, roofline_seconds
from naive import NaiveNetworks
from proxy import SIZES, ModelSize, distilled, make_pipeline, make_tiny_decoder, make_unets
from training_step import TrainingBatch, training_losses

from magicedit.models import encode_reference, predict_noise, project_reference
from magicedit.pipelines.pipeline_magicedit import MAGICFACE_ACTION_UNITS, MagicEditPipeline
from magicedit.pipelines.reference_attention import Features
from magicedit.request import QUALITIES

TRAINING_TARGETS = ("times faster", {"exact": 1.18, "cached": 1.6}, 2.0)  # unit, must reach, goal
DISTILLED_STEPS = 4  # of the rows of a distilled model
TEXT_PROJECTIONS = r"attn2\.to_[kv]"
ISSUE_TFLOP = {  # of the issue, to check
    "naive branch": 1.222,
    "trimmed branch": 0.951,
    "cached branch": 0.923,
    "ID encoder, batch 2, whole": 1.61,
    "ID encoder, batch 1, cut off": 0.77,
    "VAE encode": 1.117,
    "VAE decode": 2.515,
    "tiny decode": 0.141,
    "50 guided steps, naive": 128.6,
    "50 guided steps, exact": 97.8,
    "10 guided steps": 24.0,
    "10 steps, half of them guided": 19.4,
    "4 steps, guidance in the weights": 9.2,
    "4 steps, tiny decoder": 6.9,
    "4 steps, tiny decoder, each of 25 AUs": 4.0,
}


def tera(count: float) -> float:
    return round(count / 1e12, 4)


@dataclass(frozen=True)
class Shapes:
    """Inputs of the networks on "meta"; batch as asked, one face."""

    size: ModelSize
    num_aus: int
    dtype: torch.dtype = torch.float32

    def empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="meta", dtype=self.dtype)

    def latents(self, batch: int = 1) -> torch.Tensor:
        return self.empty(batch, 4, self.size.resolution // 8, self.size.resolution // 8)

    def images(self, batch: int = 1) -> torch.Tensor:
        return self.empty(batch, 3, self.size.resolution, self.size.resolution)

    @property
    def prompt_embeds(self) -> torch.Tensor:
        return self.empty(1, self.size.text_tokens, self.size.text_width)

    def branch(self, batch: int) -> tuple[torch.Tensor, ...]:
        """What a denoiser call takes before its reference."""
        timestep = torch.zeros((), dtype=torch.long, device="meta")
        return (
            self.latents(batch),
            self.latents(batch),
            timestep,
            self.prompt_embeds,
            self.empty(batch, self.num_aus),
        )


def repeated_features(features: Features, batch: int) -> Features:
    return {name: feature.repeat(batch, 1, 1) for name, feature in features.items()}


@torch.no_grad()
def branch_flops(size: ModelSize, action_units: str = MAGICFACE_ACTION_UNITS) -> dict[str, int]:
    """FLOPs of one denoiser branch as published, with queries trimmed, and with the reference's and the
    text's keys and values known; of both projections, once a face; and of the ID encoder."""
    with torch.device("meta"):
        unet, reference_unet = make_unets(size, action_units)
    shapes = Shapes(size, unet.config.projection_class_embeddings_input_dim)
    naive = NaiveNetworks(_NetworksOnly(unet, reference_unet))
    prompt, latents = shapes.prompt_embeds, shapes.latents()
    features = encode_reference(reference_unet, latents, prompt)
    projections = project_reference(unet, features)
    inputs = shapes.branch(1)
    trimmed = flops(lambda: predict_noise(unet, *inputs, features))
    with_text = flops(lambda: predict_noise(unet, *inputs, projections))
    cached = flops(lambda: predict_noise(unet, *inputs, projections), without=TEXT_PROJECTIONS)
    doubled = latents.repeat(2, 1, 1, 1)
    return {
        "naive": flops(lambda: naive.predict_noise(*inputs, features)),
        "trimmed": trimmed,
        "cached": cached,
        "projections of the reference": trimmed - with_text,
        "projections of the text": with_text - cached,
        "ID encoder, batch 2, whole": flops(lambda: naive.encode_identity(doubled, prompt)),
        "ID encoder, batch 1, cut off": flops(lambda: encode_reference(reference_unet, latents, prompt)),
    }


class _NetworksOnly:
    """The part of a pipeline that `NaiveNetworks` reads, without the autoencoder and the text encoder."""

    image_encoder = au_map = None

    def __init__(self, unet, reference_unet):
        self.unet, self.reference_unet = unet, reference_unet
        self.config = SimpleNamespace(concat_identity=False)


def edits_from(cost: dict[str, float]) -> dict[str, float]:
    """Costs of whole edits of one picture from the costs of their parts; additive in any unit.

    Args:
        cost: of "naive step", "guided step" (both two branches), "single step" (one), "projections",
            "ID encoder, batch 2, whole", "ID encoder, batch 1, cut off", "VAE encode", "VAE decode",
            "tiny decode".
    """
    once = 2 * cost["VAE encode"] + cost["ID encoder, batch 1, cut off"] + cost["projections"]
    naive_once = 2 * cost["VAE encode"] + cost["ID encoder, batch 2, whole"]
    guided, single, decode, tiny = (
        cost[name] for name in ("guided step", "single step", "VAE decode", "tiny decode")
    )
    return {
        "50 guided steps, naive": 50 * cost["naive step"] + naive_once + decode,
        "50 guided steps, exact": 50 * guided + once + decode,
        "10 guided steps": 10 * guided + once + decode,
        "10 steps, half of them guided": 5 * guided + 5 * single + once + decode,
        "4 steps, guidance in the weights": 4 * single + once + decode,
        "4 steps, tiny decoder": 4 * single + once + tiny,
        "4 steps, tiny decoder, each of 25 AUs": 4 * single + once / 25 + tiny,
    }


@torch.no_grad()
def counted_flops() -> dict[str, object]:
    """TFLOP at full size beside what the issue states, and the ratio of naive to cached there and of the
    proxy."""
    branch, proxy = branch_flops(SIZES["full"]), branch_flops(SIZES["proxy"])
    pipeline = make_pipeline(SIZES["full"], device="meta")
    shapes = Shapes(SIZES["full"], len(pipeline.action_units))
    tiny = pipeline.tiny_vae
    rest = {
        "VAE encode": flops(lambda: pipeline.encode_images(shapes.images())),
        "VAE decode": flops(lambda: pipeline.decode_latents(shapes.latents())),
        "tiny decode": flops(lambda: tiny.decode(shapes.latents())),
    }
    edits = edits_from(
        {
            **branch,
            **rest,
            "naive step": 2 * branch["naive"],
            "guided step": 2 * branch["cached"],
            "single step": branch["cached"],
            "projections": branch["projections of the reference"] + branch["projections of the text"],
        }
    )
    names = {f"{name} branch" if name in ("naive", "trimmed", "cached") else name: name for name in branch}
    found = {shown: tera(branch[name]) for shown, name in names.items()}
    found |= {name: tera(count) for name, count in {**rest, **edits}.items()}
    found |= quality_tflop(pipeline, once=edits["10 guided steps"] - 20 * branch["cached"], rest=rest)
    return {
        "kind": "counted",
        "what": "TFLOP at Stable Diffusion 1.5's size, 512 px, on the meta device",
        "tflop": found,
        "stated_in_the_issue": ISSUE_TFLOP,
        "differs_from_the_issue": {
            name: found[name]
            for name, stated in ISSUE_TFLOP.items()
            if abs(found[name] - stated) > 0.5 * 10 ** -len(str(stated).partition(".")[2]) + 1e-9
        },
        "ratio_full": round(branch["naive"] / branch["cached"], 4),
        "ratio_proxy": round(proxy["naive"] / proxy["cached"], 4),
        "proxy_gflop": {name: round(count / 1e9, 3) for name, count in proxy.items()},
    }


@torch.no_grad()
def quality_tflop(
    pipeline: MagicEditPipeline, once: float, rest: dict[str, float], aus: int = 25
) -> dict[str, float]:
    """TFLOP of one edit, and of each of `aus` of one face, by each quality that is not "exact".

    once: FLOPs of encoding a face and decoding a picture.
    """
    encode = once - rest["VAE decode"]
    shapes = Shapes(SIZES["full"], len(pipeline.action_units))
    found = {}
    for name, one in (
        ("", pipeline),
        (f"distilled to {DISTILLED_STEPS}, ", distilled(pipeline, DISTILLED_STEPS)),
    ):
        faces = one._encode(shapes.images(), shapes.images())
        faces.reference.fill(one.unet)
        for quality in QUALITIES[1:]:
            sampling = one.sampling(quality)
            steps = flops(
                lambda one=one, quality=quality, faces=faces: one(
                    faces=faces,
                    au_delta=torch.ones(1, shapes.num_aus),
                    latents=shapes.latents(),
                    output_type="latent",
                    quality=quality,
                )
            )
            decode = rest["tiny decode" if sampling.tiny_decoder else "VAE decode"]
            found[f"{name}{quality}"] = tera(encode + steps + decode)
            found[f"{name}{quality}, each of {aus} AUs"] = tera(encode / aus + steps + decode)
    return found


def metered(call: Callable[[], object]) -> Meter:
    with torch.no_grad(), Meter() as meter:
        call()
    return meter


@torch.no_grad()
def simulated_times(dtype: torch.dtype = torch.bfloat16) -> dict[str, object]:
    """Seconds of a step and of whole edits at full size on GPUs, from each operator's FLOPs and bytes."""
    size = SIZES["full"]
    pipeline = make_pipeline(size, device="meta", dtype=dtype)
    unet, reference_unet = pipeline.unet, pipeline.reference_unet
    shapes, tiny = Shapes(size, len(pipeline.action_units), dtype), make_tiny_decoder(size, dtype=dtype)
    naive, prompt = NaiveNetworks(pipeline), shapes.prompt_embeds
    features = encode_reference(reference_unet, shapes.latents(), prompt)
    projections, doubled = project_reference(unet, features), repeated_features(features, 2)
    meters = {
        "naive step": metered(lambda: naive.predict_noise(*shapes.branch(2), doubled)),
        "guided step": metered(lambda: predict_noise(unet, *shapes.branch(2), projections)),
        "single step": metered(lambda: predict_noise(unet, *shapes.branch(1), projections)),
        "projections": metered(lambda: project_reference(unet, features)),
        "ID encoder, batch 2, whole": metered(lambda: naive.encode_identity(shapes.latents(2), prompt)),
        "ID encoder, batch 1, cut off": metered(
            lambda: encode_reference(reference_unet, shapes.latents(), prompt)
        ),
        "VAE encode": metered(lambda: pipeline.encode_images(shapes.images())),
        "VAE decode": metered(lambda: pipeline.decode_latents(shapes.latents())),
        "tiny decode": metered(lambda: tiny.decode(shapes.latents())),
    }
    devices = {}
    for device in DEVICES:
        seconds = {name: roofline_seconds(meter.operators, device) for name, meter in meters.items()}
        edits = edits_from(seconds)
        yardstick = edits["50 guided steps, naive"]
        devices[device.name] = {
            "source": device.source,
            "peak_tflops": device.flops(dtype) / 1e12,
            "bandwidth_gb_s": device.bandwidth / 1e9,
            "ms": {name: round(1000 * value, 3) for name, value in {**seconds, **edits}.items()},
            "guided_step_ratio": round(seconds["naive step"] / seconds["guided step"], 3),
            "edit_ratios": {name: round(yardstick / value, 2) for name, value in edits.items()},
        }
    return {
        "kind": "simulated",
        "what": f"seconds at full size, {str(dtype).removeprefix('torch.')}, batch 1: each operator takes "
        "max(FLOPs / peak, bytes / bandwidth); no launch times, no fusion",
        "operators_a_step": {name: len(meters[name].operators) for name in ("naive step", "guided step")},
        "gb_moved_a_step": {
            name: round(meters[name].bytes / 1e9, 3) for name in ("naive step", "guided step")
        },
        "devices": devices,
    }


ADAMW_BYTES = 7 * 4  # a float32 parameter: reads it, its gradient, two moments; writes all but the gradient


def simulated_training(batch: int = 8) -> dict[str, object]:
    """One optimiser step at full size from cached latents, as `train_row`, in TF32."""
    size = SIZES["full"]
    pipeline = make_pipeline(size, device="meta")
    shapes = Shapes(size, len(pipeline.action_units))
    with torch.no_grad():
        features = encode_reference(pipeline.reference_unet, shapes.latents(), shapes.prompt_embeds)
    latents = shapes.latents(batch)
    data = TrainingBatch(
        *(latents for _ in range(5)),
        timesteps=torch.zeros(batch, dtype=torch.long, device="meta"),
        alphas=shapes.empty(batch),
        prompt_embeds=shapes.prompt_embeds,
        au_delta=shapes.empty(batch, shapes.num_aus),
    )
    tflop, gigabytes, milliseconds = {}, {}, {device.name: {} for device in DEVICES}
    for name, (loss, parameters) in training_losses(pipeline, data, torch.float32).items():
        with Meter() as meter:
            loss().backward()
        for parameter in parameters:
            parameter.grad = None
        trained = sum(parameter.numel() for parameter in parameters)
        tflop[name] = tera(meter.flops)
        gigabytes[name] = round((meter.bytes + ADAMW_BYTES * trained) / 1e9, 2)
        for device in DEVICES:
            seconds = roofline_seconds(meter.operators, device) + ADAMW_BYTES * trained / device.bandwidth
            milliseconds[device.name][name] = round(1000 * seconds, 2)
    return {
        "kind": "simulated",
        "what": f"one optimiser step of both UNets at full size, cached latents, batch {batch}, TF32: each "
        "operator takes max(FLOPs / peak, bytes / bandwidth); AdamW by its bytes",
        **dict(zip(("unit", "must_reach", "goal"), TRAINING_TARGETS, strict=True)),
        "tflop": tflop,
        "gb_moved": gigabytes,
        "ms": milliseconds,
        "ratios": {
            device: {name: round(found["naive"] / found[name], 3) for name in ("exact", "cached")}
            for device, found in milliseconds.items()
        },
        "features_of_a_face_mb": round(sum(x.numel() * x.element_size() for x in features.values()) / 1e6, 1),
    }


@torch.no_grad()
def counted_memory(dtype: torch.dtype = torch.bfloat16, variants: int = 25) -> dict[str, object]:
    """Bytes of live tensors at the worst moment of an edit at full size, parameters included."""
    size = SIZES["full"]
    pipeline = make_pipeline(size, device="meta", dtype=dtype)
    unet, reference_unet, vae = pipeline.unet, pipeline.reference_unet, pipeline.vae
    shapes = Shapes(size, len(pipeline.action_units), dtype)
    prompt = shapes.prompt_embeds
    features = encode_reference(reference_unet, shapes.latents(), prompt)
    kept = sum(x.numel() * x.element_size() for x in features.values())
    tokens = torch.zeros(1, size.text_tokens, dtype=torch.long, device="meta")

    def denoise(batch: int) -> None:
        projections = project_reference(unet, features)
        for _ in range(2):
            predict_noise(unet, *shapes.branch(batch), projections)

    calls = {
        "text": (pipeline.text_encoder, lambda: pipeline.text_encoder(tokens), 0),
        "VAE encode": (vae, lambda: pipeline.encode_images(shapes.images()), 0),
        "ID encoder": (
            reference_unet,
            lambda: encode_reference(reference_unet, shapes.latents(), prompt),
            0,
        ),
        "denoise, 2 branches": (unet, lambda: denoise(2), kept),
        f"denoise, {2 * variants} branches": (unet, lambda: denoise(2 * variants), kept),
        "VAE decode": (vae, lambda: pipeline.decode_latents(shapes.latents()), 0),
    }
    stages = {
        name: {
            "activations_gb": round((metered(call).peak + held) / 1e9, 3),
            "parameters_gb": round(parameter_bytes(network) / 1e9, 3),
        }
        for name, (network, call, held) in calls.items()
    }
    resident = round(parameter_bytes(unet, reference_unet, vae, pipeline.text_encoder) / 1e9, 3)

    def peaks(names) -> dict[str, float]:
        chosen = [stages[name] for name in names]
        return {
            "all_resident_gb": round(resident + max(s["activations_gb"] for s in chosen), 2),
            "offloaded_gb": round(max(s["activations_gb"] + s["parameters_gb"] for s in chosen), 2),
        }

    wide = f"denoise, {2 * variants} branches"
    return {
        "kind": "counted",
        "what": f"GB of live tensors, {str(dtype).removeprefix('torch.')}, 512 px, counted on the meta "
        "device, not measured: without the device's context, workspaces of its libraries and "
        "fragmentation; with attention that keeps no matrix of tokens x tokens; offloaded: one network at "
        "a time on the device",
        "must_reach": {"all_resident_gb": 6.0},
        "goal": {"offloaded_gb": 4.0, f"sweep of {variants}": 8.0},
        "parameters_gb": resident,
        "stages": stages,
        "one_edit": peaks(name for name in stages if name != wide),
        f"sweep of {variants} in one call, decoded one by one": peaks(stages),
    }


COUNTS = {
    "flops": counted_flops,
    "gpu": simulated_times,
    "gpu_train": simulated_training,
    "memory": counted_memory,
}
