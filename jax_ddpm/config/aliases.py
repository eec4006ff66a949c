"""Other words of the field for a setting's values, accepted wherever the setting is given."""

from collections.abc import Mapping

ALIASES: dict[str, Mapping[str, str]] = {
    "prediction_type": {
        "epsilon": "eps",
        "pred_noise": "eps",
        "sample": "x_0",
        "pred_x0": "x_0",
        "v_prediction": "v",
        "pred_v": "v",
    },
    "schedule": {"squaredcos_cap_v2": "cosine", "scaled_linear": "quadratic"},
}
