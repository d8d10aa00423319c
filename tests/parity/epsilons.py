"""The epsilon of every norm of every published network, as the reference implementations have it.

Outputs of ordinary size do not tell 1e-5 from 1e-6; half precision and small activations do.
`tests/nn/test_epsilons.py` proves our networks against this table, `test_recorded_epsilons.py`
reads the same numbers from the PyTorch modules.
"""

import re

CLIP_BLOCKS = {r"block_\d+/norm_(self|mlp)": 1e-5}

EPSILONS: dict[str, dict[str, float]] = {
    "unet": {
        r"(down_\d+|mid|up_\d+)_res_\d+/norm_[12]": 1e-5,
        r"(down_\d+|mid|up_\d+)_attention(_\d+)?/norm": 1e-6,
        r"(down_\d+|mid|up_\d+)_attention(_\d+)?/block/norm_(self|first|cross|mlp)": 1e-5,
        "norm_out": 1e-5,
    },
    "autoencoder": {
        r"(encoder|decoder)/(down_\d+|mid|up_\d+)_res_\d+/norm_[12]": 1e-6,
        "(encoder|decoder)/mid_attention/norm": 1e-6,
        "(encoder|decoder)/norm_out": 1e-6,
    },
    "text": {**CLIP_BLOCKS, "norm_final": 1e-5},
    "image": {**CLIP_BLOCKS, "norm_in": 1e-5, "norm_out": 1e-5},
    "depth": {
        r"block_\d+/norm_(self|mlp)": 1e-6,
        r"resnet/(stage_\d_\d/)?norm_(stem|1|2|3|skip)": 1e-5,
        r"resnet/(stage_\d_\d/)?conv_(stem|1|2|3|skip)": 1e-8,  # weight standardisation
    },
}
EPSILONS["safety"] = {f"image/{pattern}": value for pattern, value in EPSILONS["image"].items()}


def expected(network: str, path: str) -> float:
    """The epsilon of the layer at `path`, which exactly one row is about.

    Raises:
        ValueError: if no row is about it, or several.
    """
    rows = EPSILONS[network]
    found = [value for pattern, value in rows.items() if re.fullmatch(pattern, path)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows for the norm {path!r} of {network!r}, not one")
    return found[0]


def unused(network: str, paths: list[str]) -> list[str]:
    """Rows about none of `paths`: the network has changed its names."""
    return [
        pattern
        for pattern in EPSILONS[network]
        if not any(re.fullmatch(pattern, path) for path in paths)
    ]
