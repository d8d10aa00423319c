"""The published sizes, with random weights, in PyTorch and here: one line per component.

    python tests/parity/full_width.py [component ...]

Each component runs in a process of its own, PyTorch first, so that memory holds one network at a
time. Weights are those of `randomise`: no layer is zero or the identity, as many are in a new
network. Everything is float32. The status is 1 if an output is further than TOLERANCE from
PyTorch's.
"""

import gc
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from parity.differ import error
from parity.torch_side import noise, ours, randomise, run, tensors

from sdjax import presets
from sdjax.denoisers.unet import UNet
from sdjax.image.autoencoder import Autoencoder
from sdjax.image.depth import Depth
from sdjax.nn.functional import Params, inspect
from sdjax.text.clip_text import ClipText
from sdjax.weights import clip, depth, stable_diffusion
from sdjax.weights.rules import Table, convert

TOLERANCE = 1e-3  # in standard deviations of the output


@dataclass(frozen=True)
class Component:
    """One network on both sides, and what to give it."""

    build: Callable[[], torch.nn.Module]
    theirs: Callable[[Any], torch.Tensor]  # the output of what `build` made
    table: Table
    shapes: Params
    ours: Callable[[Params], jax.Array]


def unet(config: Any, side: int, **torch_config: Any) -> Component:
    def build() -> torch.nn.Module:
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel(
            down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
            up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
            **torch_config,
        )

    x, times = noise(1, 4, side, side), torch.tensor([500])
    context = noise(1, 77, config.context_dim, seed=2)
    return Component(
        build,
        lambda module: module(x, times, context).sample,
        stable_diffusion.unet_table(config),
        stable_diffusion.unet_shapes(config),
        lambda params: apply(
            UNet(config), params, ours(x), ours(times).astype(jnp.float32), ours(context)
        ),
    )


def autoencoder(half: str) -> Component:
    config = presets.KL_F8

    def build() -> torch.nn.Module:
        from diffusers import AutoencoderKL

        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )

    image, z = noise(1, 3, 512, 512), noise(1, 4, 64, 64)

    def theirs(module: Any) -> torch.Tensor:
        if half == "decode":
            return module.decode(z).sample
        posterior = module.encode(image).latent_dist
        return torch.cat([posterior.mean, posterior.logvar], dim=1)

    def network(params: Params) -> jax.Array:
        if half == "decode":
            latents = ours(z) * config.scaling_factor
            return apply(Autoencoder(config), params, latents, method="decode")
        posterior = apply(Autoencoder(config), params, ours(image), method="encode")
        return jnp.concatenate([posterior.mean, posterior.logvar], axis=-1)

    return Component(
        build,
        theirs,
        stable_diffusion.autoencoder_table(config),
        stable_diffusion.autoencoder_shapes(config),
        network,
    )


def text(config: Any, build: Callable[[], torch.nn.Module], theirs: Any, table: Table) -> Component:
    def network(params: Params) -> jax.Array:
        return apply(ClipText(config), params, ours(TOKENS), jnp.array([20])).hidden

    return Component(build, theirs, table, clip.text_shapes(config), network)


TOKENS = torch.cat(
    [
        torch.tensor([[49406]]),
        torch.randint(0, 49406, (1, 19), generator=torch.Generator().manual_seed(0)),
        torch.full((1, 57), 49407),
    ],
    dim=1,
)


def clip_l_text() -> Component:
    config = presets.CLIP_L_TEXT

    def build() -> torch.nn.Module:
        from transformers import CLIPTextConfig, CLIPTextModel

        return CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                hidden_act="quick_gelu",
            )
        )

    return text(
        config, build, lambda module: module(TOKENS).last_hidden_state, clip.text_table(config)
    )


def openclip_h_text() -> Component:
    config = presets.OPENCLIP_H_TEXT

    def build() -> torch.nn.Module:
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

        whole = CLIP(
            1024,
            CLIPVisionCfg(image_size=28, layers=1, width=64, patch_size=14),  # not looked at
            CLIPTextCfg(width=1024, heads=16, layers=24),
        )
        del whole.visual
        return whole

    def theirs(module: Any) -> torch.Tensor:
        """The rule of Stable Diffusion 2: the last block but one, then the last norm."""
        states = []
        block = module.transformer.resblocks[-2]
        with block.register_forward_hook(lambda _block, _args, output: states.append(output)):
            module.encode_text(TOKENS)
        return module.ln_final(states[0])

    return text(config, build, theirs, clip.openclip_text_table(config))


def dpt_hybrid() -> Component:
    config = presets.DPT_HYBRID

    def build() -> torch.nn.Module:
        from transformers import DPTConfig, DPTForDepthEstimation

        module = DPTForDepthEstimation(
            DPTConfig(
                is_hybrid=True,
                image_size=384,
                backbone_out_indices=[2, 5, 8, 11],
                backbone_featmap_shape=[1, 1024, 24, 24],
                neck_hidden_sizes=[256, 512, 768, 768],
                neck_ignore_stages=[0, 1],
                readout_type="project",
                reassemble_factors=[1, 1, 1, 0.5],
                layer_norm_eps=1e-6,
                backbone_config={
                    "model_type": "bit",
                    "global_padding": "same",
                    "layer_type": "bottleneck",
                    "depths": [3, 4, 9],
                    "hidden_sizes": [256, 512, 1024],
                    "out_features": ["stage1", "stage2", "stage3"],
                    "embedding_dynamic_padding": True,
                },
            )
        )
        module.head.head[-1] = torch.nn.Identity()  # the last ReLU would hide negative values
        return module

    image = noise(1, 3, 384, 384)

    def network(params: Params) -> jax.Array:
        _, kept = jax.jit(inspect, static_argnums=0)(Depth(config), params, ours(image))
        return kept["before_relu"]

    return Component(
        build,
        lambda module: module(image).predicted_depth,
        depth.depth_table("transformers"),
        depth.depth_shapes(config),
        network,
    )


COMPONENTS: dict[str, Callable[[], Component]] = {
    "sd1-unet": lambda: unet(presets.SD1.unet, 64, attention_head_dim=8, cross_attention_dim=768),
    "sd2-unet": lambda: unet(
        presets.SD2_V.unet,
        96,
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024,
        use_linear_projection=True,
    ),
    "vae-encode": lambda: autoencoder("encode"),
    "vae-decode": lambda: autoencoder("decode"),
    "clip-l-text": clip_l_text,
    "openclip-h-text": openclip_h_text,
    "dpt-hybrid": dpt_hybrid,
}

TITLES = ("component", "parameters", "output", "std", "error/std", "torch", "sdjax", "memory")
LINE = "{:16}  {:>11}  {:>17}  {:>7}  {:>9}  {:>7}  {:>7}  {:>8}"


def apply(module: nn.Module, params: Params, *args: Any, method: str | None = None) -> Any:
    """The compiled network's output."""

    @jax.jit
    def call(params: Params) -> Any:
        return module.apply({"params": params}, *args, method=method)

    return call(params)


def check(name: str) -> bool:
    """Run one component, print its line; True if it is within the tolerance."""
    jax.config.update("jax_default_matmul_precision", "highest")
    component = COMPONENTS[name]()
    module = randomise(component.build())
    start = time.perf_counter()
    want = np.asarray(ours(run(component.theirs, module)))
    torch_seconds = time.perf_counter() - start
    params = convert(tensors(module), component.table, component.shapes)
    del module
    gc.collect()
    start = time.perf_counter()
    found = np.asarray(component.ours(params))
    jax_seconds = time.perf_counter() - start
    worst = error(found, want)
    print(
        LINE.format(
            name,
            f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,}",
            "x".join(map(str, found.shape)),
            f"{want.std():.3f}",
            f"{worst:.1e}",
            f"{torch_seconds:.1f} s",
            f"{jax_seconds:.1f} s",
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB",
        ),
        flush=True,
    )
    return worst <= TOLERANCE


def main(names: list[str]) -> int:
    """Each component in a process of its own; the exit status."""
    if unknown := set(names) - set(COMPONENTS):
        sys.exit(f"no component {', '.join(unknown)}: choose among {', '.join(COMPONENTS)}")
    if len(names) == 1:
        return 0 if check(names[0]) else 1
    print(LINE.format(*TITLES), flush=True)
    command = [sys.executable, __file__]
    statuses = [subprocess.run([*command, name]).returncode for name in names or COMPONENTS]
    return 1 if any(statuses) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
