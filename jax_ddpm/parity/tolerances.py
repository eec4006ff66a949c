"""Every tolerance of the parity report and tests, with the largest measured difference beside it.

Differences are max |ours - theirs| / max |theirs| of an array. In float64 they prove that the
algorithm is the same; in float32 they show the effect of rounding. `pytest parity_tests` prints the
measured values.
"""

from typing import NamedTuple


class Tolerance(NamedTuple):
    """The largest accepted difference in each precision."""

    float64: float
    float32: float


# The gradient of an attention's key bias is zero in exact arithmetic. Adam divides the rounding
# noise by its own size, so this bias does a random walk and needs a tolerance of its own.
TOLERANCES = {
    # what: Tolerance(float64, float32),  # measured
    "schedule tables": Tolerance(1e-12, 1e-06),  # 9.2e-14, 1.8e-07
    "diffusers' tables": Tolerance(1e-12, 3e-06),  # 6.3e-15, 2.0e-06: theirs are float32 sums
    "q_sample": Tolerance(1e-13, 1e-05),  # 5.8e-16, 1.5e-06
    "one-step q": Tolerance(1e-13, 1e-06),  # 1.8e-16, 9.6e-08
    "q_posterior": Tolerance(1e-13, 1e-06),  # 3.2e-16, 7.2e-08
    "eps, x_0 and v conversions": Tolerance(1e-13, 1e-06),  # 3.4e-16, 8.4e-08
    "predicted x_0 and eps": Tolerance(5e-12, 5e-05),  # 3.7e-13, 6.6e-06
    "losses": Tolerance(1e-13, 5e-06),  # 6.8e-16, 8.5e-07
    "timestep embedding": Tolerance(1e-12, 0.0001),  # 5.6e-14, 1.4e-05
    "time embedding": Tolerance(1e-13, 2e-05),  # 4.3e-15, 2.3e-06
    "group norm": Tolerance(1e-13, 5e-06),  # 1.6e-15, 5.1e-07
    "group norm: gradients": Tolerance(1e-13, 2e-05),  # 5.0e-15, 1.7e-06
    "ResNet block": Tolerance(1e-13, 5e-06),  # 9.0e-16, 4.5e-07
    "ResNet block: gradients": Tolerance(1e-13, 5e-06),  # 1.2e-15, 5.8e-07
    "attention block": Tolerance(1e-13, 5e-06),  # 6.0e-16, 3.9e-07
    "attention block: gradients": Tolerance(1e-13, 2e-05),  # 1.1e-15, 1.7e-06
    "down- and upsampling": Tolerance(1e-13, 5e-06),  # 6.3e-16, 0
    "U-Net": Tolerance(1e-13, 1e-05),  # 2.0e-14, 1.4e-06
    "U-Net: gradients": Tolerance(1e-13, 2e-05),  # 7.0e-15, 2.4e-06
    "lucidrains' U-Net": Tolerance(2e-13, 5e-05),  # 1.2e-14, 5.4e-06
    "lucidrains' reverse step": Tolerance(1e-12, 1e-05),  # float32 only: 4.4e-07
    "lucidrains' U-Net: gradients": Tolerance(5e-13, 0.0001),  # 4.6e-14, 1.1e-05
    "given network": Tolerance(1e-11, 2e-05),  # 9.2e-14, 6.7e-06; more if rounding is amplified
    "given network: gradients": Tolerance(1e-11, 5e-05),  # 4.0e-13, 2.2e-05; the same
    "OpenAI's U-Net": Tolerance(1e-13, 1e-05),  # 5.1e-15, 1.6e-06
    "OpenAI's U-Net: gradients": Tolerance(1e-13, 2e-05),  # 7.5e-15, 2.7e-06
    "MyUNet": Tolerance(1e-13, 1e-05),  # 4.7e-15, 2.1e-06
    "MyUNet: gradients": Tolerance(1e-13, 2e-05),  # 8.6e-15, 4.1e-06
    "interleaved embedding": Tolerance(1e-12, 1e-05),  # 1.8e-15, 6.0e-08
    "tutorials' U-Nets": Tolerance(1e-13, 1e-05),  # 6.8e-15, 1.0e-06
    "tutorials' U-Nets: gradients": Tolerance(1e-13, 2e-05),  # 6.2e-15, 1.6e-06
    "resized images": Tolerance(1e-15, 1e-06),  # 0, 0
    "measures of features": Tolerance(1e-10, 1e-06),  # 2.6e-12, 0: computed in float64
    "shares of images": Tolerance(1e-06, 1e-06),  # 2.3e-08, 0: theirs are float32
    "statistics files": Tolerance(1e-15, 1e-07),  # 0, 0
    "Inception": Tolerance(1e-13, 1e-05),  # 2.3e-15, 7.6e-07
    "one sampler step": Tolerance(1e-11, 5e-05),  # 1.5e-12, 4.9e-06
    "chain of 1000 ancestral steps": Tolerance(1e-11, 0.0002),  # 3.9e-13, 1.9e-05
    "chain of 50 DDIM steps": Tolerance(1e-12, 0.0001),  # 1.3e-14, 8.7e-06
    "chain of 25 steps": Tolerance(0, 5e-05),  # -, 4.0e-06
    "pipelines of diffusers": Tolerance(0, 0.0002),  # -, 8.3e-05: their tables are float32
    "tutorials' tables": Tolerance(1e-12, 0.0002),  # 8.3e-14, 4.1e-05: theirs are float32 sums
    "unclipped chains": Tolerance(1e-11, 0.0002),  # 1.2e-14, 1.1e-04
    # its betas of 1e-13 are differences of levels that are known to 1e-16
    "chain of the quadratic slip": Tolerance(1e-09, 0),  # 5.2e-10, -
    "recorded solvers": Tolerance(5e-13, 5e-05),  # 8.0e-16, 7.8e-06
    "grids": Tolerance(1e-12, 5e-05),  # 2.4e-14, 5.5e-06
    "diffusers' solvers": Tolerance(1e-12, 0),  # 2.3e-13, -
    "recorded chains": Tolerance(5e-12, 5e-05),  # 1.8e-13, 1.2e-05
    "the reverse step": Tolerance(1e-12, 1e-06),  # 1.3e-15, 2.3e-07
    "terms of the bound": Tolerance(5e-10, 2e-05),  # 4.3e-11, 1.8e-06
    "likelihoods": Tolerance(1e-12, 5e-06),  # 2.1e-15, 1.1e-06
    "likely likelihoods": Tolerance(1e-11, 5e-04),  # 1.4e-13, 7.9e-05
    "one recorded sampler step": Tolerance(1e-12, 2e-05),  # 6.8e-15, 4.4e-06
    "lucidrains' tables": Tolerance(1e-12, 5e-06),  # 9.9e-15, 1.3e-06
    "loss weights": Tolerance(1e-12, 1e-06),  # 1.8e-15, 1.5e-07
    "recorded conversions": Tolerance(5e-12, 1e-05),  # 1.1e-13, 1.2e-06
    "recorded losses": Tolerance(1e-13, 2e-06),  # 4.9e-16, 2.6e-07
    "training: loss": Tolerance(1e-12, 5e-06),  # 4.2e-16, 2.5e-07
    "training: gradient norm": Tolerance(1e-12, 5e-06),  # 1.4e-15, 4.7e-07
    "training: Adam's moments": Tolerance(1e-12, 1e-05),  # 1.2e-15, 1.4e-06
    "training: parameters": Tolerance(1e-13, 5e-06),  # 1.4e-15, 1.5e-06
    "training: EMA": Tolerance(1e-13, 5e-06),  # 1.4e-15, 1.5e-06
    "training: key biases": Tolerance(1e-10, 0.005),  # 3.1e-12, 8.0e-04
    "moving averages": Tolerance(1e-13, 1e-06),  # 2.6e-16, 1.1e-07
    "decays": Tolerance(1e-13, 0),  # 1.3e-16, -
    "learning rates": Tolerance(1e-13, 1e-06),  # 2.4e-16, 5.8e-08
    "importance of timesteps": Tolerance(1e-13, 0),  # 1.1e-16, -
    "optimisers": Tolerance(1e-13, 2e-06),  # 4.0e-16, 2.7e-07
}
