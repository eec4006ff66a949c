"""Other common names for a setting's values, accepted wherever the setting can be given.

An alias of a flag that takes several values may stand for several, with spaces between them.
"""

from collections.abc import Mapping

from jax_ddpm.process.predictions import PREDICTION_ALIASES
from jax_ddpm.process.schedules import SCHEDULE_ALIASES
from jax_ddpm.quality.measures import MEASURE_ALIASES

ALIASES: dict[str, Mapping[str, str]] = {
    "prediction_type": PREDICTION_ALIASES,
    "schedule": SCHEDULE_ALIASES,
    "measure": MEASURE_ALIASES,
}
