"""diffusers' schedulers by name and settings, and which sampler of ours one of them means.

They hold settings and compute nothing. diffusers' own objects, and newer ones', are read the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from notewave.checks import quoted
from notewave.pipeline.refusal import PipelineError
from notewave.voice.folder import Voice

PREDICTION_TYPES = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}  # ours: diffusers' name
_SHARED: dict[str, Any] = {  # settings of both schedulers, with diffusers' defaults
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "clip_sample": True,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}
# What our samplers do, whatever the voice. Settings that are not here have no effect where these hold.
_DONE: dict[str, Any] = {
    "trained_betas": None,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}


class Config(dict[str, Any]):
    """Settings by name, which are attributes too."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"the configuration has no {name!r}")
        return self[name]


class Scheduler:
    """Settings of a scheduler, by diffusers' names; those left out have diffusers' defaults. Raises PipelineError."""

    sampler: ClassVar[str]  # ours
    defaults: ClassVar[dict[str, Any]]
    done: ClassVar[dict[str, Any]]  # what our sampler does

    def __init__(self, **settings: Any) -> None:
        kind = type(self).__name__
        _check_known(kind, settings, self.defaults)
        self.config = Config({"_class_name": kind, **self.defaults, **settings})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changes: Any) -> Self:
        """A scheduler with the settings of another one's ``config``, and some changed.

        Those that only another kind has are kept for it, as diffusers does. Raises PipelineError.
        """
        if not isinstance(config, Mapping):
            raise PipelineError(f"the configuration is {quoted(config)}; it must be a scheduler's config.")
        _check_known(cls.__name__, changes, DDPMScheduler.defaults | DDIMScheduler.defaults)
        given = {name: value for name, value in {**config, **changes}.items() if not name.startswith("_")}
        scheduler = cls(**{name: value for name, value in given.items() if name in cls.defaults})
        scheduler.config.update(given)
        return scheduler


class DDPMScheduler(Scheduler):
    """Ancestral sampling (Ho et al. 2020), as diffusers' of this name."""

    sampler = "ddpm"
    defaults = _SHARED | {"variance_type": "fixed_small"}
    done = _DONE | {"variance_type": "fixed_large"}


class DDIMScheduler(Scheduler):
    """Deterministic sampling (Song et al. 2021, eta = 0), as diffusers' of this name."""

    sampler = "ddim"
    defaults = _SHARED | {"set_alpha_to_one": True}
    done = _DONE | {"set_alpha_to_one": True}


SCHEDULERS: dict[str, type[Scheduler]] = {kind.__name__: kind for kind in (DDPMScheduler, DDIMScheduler)}


def scheduler_for(voice: Voice) -> DDPMScheduler | None:
    """The scheduler of diffusers' pipeline, with the schedule that a voice was trained for; None where it has none."""
    if voice.is_autoregressive:
        return None
    return DDPMScheduler(variance_type="fixed_large", **_trained(voice))


def scheduler_from(config: Mapping[str, Any]) -> Scheduler:
    """The scheduler that a checkpoint's settings name. Raises PipelineError for one that there is not here."""
    kind = config.get("_class_name")
    if not isinstance(kind, str) or kind not in SCHEDULERS:
        raise PipelineError(
            f"the checkpoint's scheduler is {quoted(kind)}, which this engine has not. Give one: "
            "scheduler=DDPMScheduler(...), or DDIMScheduler."
        )
    return SCHEDULERS[kind].from_config(config)


def sampler_of(scheduler: Any, voice: Voice) -> str:
    """The name of our sampler that does what a scheduler, of ours or of diffusers, would do with a voice.

    Raises PipelineError where none would, naming the first setting that stands against it.
    """
    kind, config = type(scheduler).__name__, getattr(scheduler, "config", None)
    if kind not in SCHEDULERS or not isinstance(config, Mapping):
        raise PipelineError(
            f"the scheduler is {quoted(scheduler)}; this engine has {' and '.join(SCHEDULERS)}. "
            "Say pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config), or DDIMScheduler."
        )
    settings = SCHEDULERS[kind].defaults | dict(config)
    for name, due in (SCHEDULERS[kind].done | _trained(voice)).items():
        found = settings[name]
        if not (found is due or (isinstance(found, (str, int, float)) and found == due)):
            raise PipelineError(
                f"the scheduler says {name} = {quoted(found)}, and this engine does {quoted(due)} with voice "
                f"{voice.name!r}: its result would be another than diffusers'. Say {kind}.from_config("
                f"pipe.scheduler.config, {name}={quoted(due)})."
            )
    return SCHEDULERS[kind].sampler


def _trained(voice: Voice) -> dict[str, Any]:
    """Settings that are a voice's own, since it was trained with them."""
    return {
        "num_train_timesteps": voice.schedule.train_steps,
        "beta_schedule": voice.schedule.name,
        "prediction_type": PREDICTION_TYPES[voice.prediction],
    }


def _check_known(kind: str, settings: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    if unknown := settings.keys() - known.keys():
        raise PipelineError(f"{kind} has no setting {', '.join(sorted(unknown))}. Known: {', '.join(known)}.")
