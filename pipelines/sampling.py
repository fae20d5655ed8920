"""How a quality samples: its number of steps, and which of them are guided. Imports no torch."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of a call, see `MagicEditPipeline.sampling`.

    steps: denoiser evaluations. guidance_scale: of classifier-free guidance, 1: off. guidance_interval: part
    of the steps with guidance, 0 (the noisiest) to 1 (Kynkäänniemi et al. 2024, arXiv:2404.07724).
    feature_cache_interval: run the deep levels at every n-th step (see `DeepFeatures`). tiny_decoder: decode
    by `tiny_vae`.
    """

    steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    feature_cache_interval: int = 1
    tiny_decoder: bool = False

    def __post_init__(self):
        first, last = self.guidance_interval
        if not 0 <= first <= last <= 1:
            raise ValueError(f"guidance_interval must be two parts of the steps, 0 to 1, got {first}, {last}")
        if self.feature_cache_interval < 1:
            raise ValueError(f"feature_cache_interval must be at least 1, got {self.feature_cache_interval}")

    def guides(self, step: int, steps: int) -> bool:
        """Whether guidance acts on a step, counted from 0."""
        first, last = self.guidance_interval
        return self.guidance_scale != 1.0 and first * steps <= step < last * steps


QUALITIES = ("exact", "balanced", "fast", "live")
EXACT_STEPS = 50  # of the published sampler


def sampling_of(
    quality: str | None,
    default: Sampling,
    *,
    distilled_steps: int = 0,
    composed: bool = False,
    in_latents: bool = False,
    previews: bool = False,
    caches_features: bool = True,
) -> Sampling:
    """Returns the settings of a quality, see `MagicEditPipeline.sampling`; None: `default`.

    Args:
        default: the model's own steps and guidance.
        distilled_steps: to which the model was distilled; 0: it was not.
        composed: whether it is a flow-mask-paint model.
        in_latents: whether it works on the latents of a VAE.
        previews: whether it has a decoder for previews.
        caches_features: whether it can skip its deep levels.

    Raises:
        ValueError: on an unknown quality.
    """
    if quality is None:
        return default
    if quality not in QUALITIES:
        raise ValueError(f"quality must be one of {', '.join(QUALITIES)}, got {quality!r}")
    tiny_decoder = quality in ("fast", "live") and previews
    if distilled_steps:
        most = {"fast": 2, "live": 1}.get(quality, distilled_steps)
        return replace(default, steps=min(most, distilled_steps), tiny_decoder=tiny_decoder)
    if quality == "exact":
        return replace(default, steps=max(EXACT_STEPS, default.steps))
    if not in_latents:
        # Only the last step's prediction of a flow-mask-paint model counts, so earlier guidance is lost
        late = composed and quality != "live"
        return replace(
            default,
            steps={"balanced": 4, "fast": 2, "live": 1}[quality],
            guidance_interval=(0.5, 1.0) if late else (0.0, 1.0),
        )
    return replace(
        default,
        steps={"balanced": 10, "fast": 6, "live": 2}[quality],
        guidance_interval=(0.25, 0.75),
        feature_cache_interval=2 if quality == "fast" and caches_features else 1,
        tiny_decoder=tiny_decoder,
    )
