"""On what a job runs: actors, batches, and how its network computes."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

from kintsugi.device import has_bf16
from kintsugi.pipeline.parts import Model, absent


class Compute(Model):
    """On what the job runs, and in which portions."""

    actors: PositiveInt | Literal["auto"] = Field(default="auto", description="auto: all that fit.")
    gpus_per_actor: NonNegativeFloat = Field(
        default=1, description="Ignored, with a message, where the cluster has no GPU."
    )
    cpus_per_actor: PositiveInt = Field(default=2, le=1024, description="Also the number of compute threads.")
    batch_size: PositiveInt | Literal["auto"] = Field(
        default=16,
        description="auto: the largest that fits into the GPU's memory, found once and kept in the run "
        "directory; 16 on a CPU.",
    )
    unit_size: PositiveInt = Field(
        default=256, lt=2**31, description="Samples per unit of work, committed as one."
    )
    precision: Literal["auto", "float32", "bf16", "fp16"] = Field(
        default="auto",
        description="Of the network; the sampler's state is float32 always. auto: bf16 where the machine "
        "that begins the run has a GPU for it, else float32; the run records which. fp16 loses the small "
        "gradients of samplers with vector-Jacobian products.",
    )
    compile: Literal["auto", "default", "reduce-overhead", "max-autotune"] | None = Field(
        default=None,
        description="torch.compile's mode for the network; reduce-overhead uses CUDA graphs. auto: default "
        "where the machine that begins the run has a GPU, else none. Falls back with a message.",
    )
    reuse: PositiveInt | None = Field(
        default=None,
        exclude_if=absent,
        description="N: the network's coarser levels in every N-th evaluation only, its finest in all, for "
        "samplers without vector-Jacobian products (DeepCache).",
    )
    attempts: PositiveInt = Field(default=3, description="Before a unit that fails as a whole is given up.")

    @field_validator("gpus_per_actor")
    @classmethod
    def whole_or_shared(cls, value: float) -> float:
        """Raise a ValueError for one and a half GPUs."""
        if value > 1 and not value.is_integer():
            raise ValueError(f"more than one GPU must be a whole number, got {value:g}")
        return value

    @model_validator(mode="after")
    def reused_as_it_is(self) -> "Compute":
        """Raise a ValueError for parts of a network that is compiled as a whole."""
        if self.reuse is not None and self.compile is not None:
            raise ValueError("reuse: a compiled network runs as a whole; leave compile out")
        return self

    def on(self, device: str) -> "Compute":
        """With what `auto` means on a device of this machine, "cuda" or "cpu"; batch_size is the run's."""
        precision = "bf16" if has_bf16(device) else "float32"
        return self.decided(precision, "default" if device == "cuda" else None)

    def as_in(self, run: "Compute") -> "Compute":
        """With what `auto` was when a run was begun."""
        return self.decided(run.precision, run.compile)

    def decided(self, precision: str, mode: str | None) -> "Compute":
        """With this precision and mode of compilation where they are `auto`."""
        found = {"precision": precision, "compile": mode}
        return self.model_copy(update={k: v for k, v in found.items() if getattr(self, k) == "auto"})
