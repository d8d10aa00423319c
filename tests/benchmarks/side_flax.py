"""JAX: the Flax networks of diffusers, jitted."""

import json

import diffusers
import flax
import jax
import jax.numpy as jnp
import numpy as np
from diffusers.models.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax
from safetensors.numpy import load_file

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def prepare(threads):
    del threads  # XLA takes all cores


def versions():
    return {
        "diffusers": diffusers.__version__,
        "jax": jax.__version__,
        "jaxlib": jax.lib.__version__,
        "flax": flax.__version__,
    }


def product(size, dtype):
    a = jax.random.normal(jax.random.key(0), (size, size), DTYPES[dtype])
    multiply = jax.jit(jnp.matmul)
    return lambda: multiply(a, a).block_until_ready()


def load(what, folder, dtype, options):
    if what not in NETWORKS:
        raise ValueError(f"{what} is not compared with Flax: choose {', '.join(NETWORKS)}")
    return NETWORKS[what](folder, dict(np.load(folder / "inputs.npz")), DTYPES[dtype], options)


class Loaded(np.ndarray):
    """A tensor, as the conversion of weights expects it."""

    def numpy(self):
        return np.asarray(self)


class Network:
    """One network and its inputs, as a jitted function."""

    def __init__(self, folder, inputs, dtype, options):
        self.check(inputs, options)
        settings = json.loads((folder / "config.json").read_text())
        model = self.cls.from_config(settings, dtype=dtype)
        tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
        tensors = {name: array.view(Loaded) for name, array in tensors.items()}
        params = convert_pytorch_state_dict_to_flax(tensors, model)
        self.params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        self.arguments = self.prepare(inputs, options)
        self.program = jax.jit(lambda params, *given: self.forward(model, params, *given))

    def call(self):
        result = self.program(self.params, *self.arguments)
        self.result = result.block_until_ready()

    def output(self):
        return np.asarray(self.result, np.float32).transpose(0, 2, 3, 1)


class UNet(Network):
    cls = diffusers.FlaxUNet2DConditionModel

    def check(self, inputs, options):
        if "vector" in inputs or "label" in inputs:
            raise ValueError("the Flax UNet has no class embedding: choose sd15 or sd21-v")

    def prepare(self, inputs, options):
        x = jnp.asarray(inputs["x"].transpose(0, 3, 1, 2))
        return x, jnp.asarray(inputs["time"]), jnp.asarray(inputs["context"])

    def forward(self, model, params, x, time, context):
        return model.apply({"params": params}, x, time, context).sample


class Decoder(Network):
    cls = diffusers.FlaxAutoencoderKL

    def check(self, inputs, options):
        if options["patch"] != 1:
            raise ValueError("the folding of patches is not compared with Flax: choose sd15")

    def prepare(self, inputs, options):
        return (jnp.asarray((inputs["latents"] / options["scale"]).transpose(0, 3, 1, 2)),)

    def forward(self, model, params, latents):
        return model.apply({"params": params}, latents, method=model.decode).sample


NETWORKS = {"unet": UNet, "vae": Decoder}
