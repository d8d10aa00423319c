"""PyTorch: networks of diffusers and transformers, channels last, in inference mode."""

import json

import diffusers
import numpy as np
import torch
import transformers
from train_torch import AutoencoderStep, UNetStep

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def prepare(threads):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    diffusers.utils.logging.disable_progress_bar()


def versions():
    return {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


def product(size, dtype):
    a = torch.randn(size, size, dtype=DTYPES[dtype])
    return lambda: a @ a


def load(what, folder, dtype, options):
    inputs = dict(np.load(folder / "inputs.npz"))
    if what.startswith("train"):
        step = {"train unet": UNetStep, "train autoencoder": AutoencoderStep}[what]
        return step(folder, inputs, options)
    return NETWORKS[what](folder, inputs, DTYPES[dtype], options)


def nchw(array, dtype):
    """Images and latents from the file, as PyTorch wants them."""
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    return tensor.to(dtype).contiguous(memory_format=torch.channels_last)


def nhwc(tensor):
    return tensor.float().permute(0, 2, 3, 1).contiguous().numpy()


def from_folder(cls, folder, dtype):
    quiet = {"low_cpu_mem_usage": False} if cls.__module__.startswith("diffusers") else {}
    model = cls.from_pretrained(folder, torch_dtype=dtype, **quiet).eval()
    return model.to(memory_format=torch.channels_last)


class Network:
    """One network and its inputs."""

    def __init__(self, folder, inputs, dtype, options):
        self.model = from_folder(self.cls, folder, dtype)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.options = options
        self.prepare(inputs, dtype)

    def call(self):
        with torch.inference_mode():
            self.result = self.forward()


class UNet(Network):
    cls = diffusers.UNet2DConditionModel

    def prepare(self, inputs, dtype):
        self.x = nchw(inputs["x"], dtype)
        self.time = torch.from_numpy(inputs["time"])
        self.context = torch.from_numpy(inputs["context"]).to(dtype)
        self.told = None
        if "vector" in inputs:
            self.told = torch.from_numpy(inputs["vector"]).to(dtype)
        elif "label" in inputs:
            self.told = torch.from_numpy(inputs["label"]).long()

    def forward(self):
        return self.model(self.x, self.time, self.context, class_labels=self.told).sample

    def output(self):
        return nhwc(self.result)


class Decoder(Network):
    cls = diffusers.AutoencoderKL

    def prepare(self, inputs, dtype):
        self.z = nchw(inputs["latents"] / self.options["scale"], dtype)

    def forward(self):
        return self.model.decode(self.z).sample

    def output(self):
        pixels, patch = nhwc(self.result), self.options["patch"]
        batch, height, width, channels = pixels.shape
        blocks = pixels.reshape(batch, height, width, patch, patch, channels // patch**2)
        return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(
            batch, height * patch, width * patch, channels // patch**2
        )


class Text(Network):
    def __init__(self, folder, inputs, dtype, options):
        config = json.loads((folder / "config.json").read_text())
        self.cls = getattr(transformers, config["architectures"][0])
        super().__init__(folder, inputs, dtype, options)

    def prepare(self, inputs, dtype):
        self.tokens = torch.from_numpy(inputs["tokens"]).long()

    def forward(self):
        return self.model(self.tokens).last_hidden_state

    def output(self):
        return self.result.float().numpy()


class Pipeline:
    """Words to pixels, from given noise."""

    def __init__(self, folder, inputs, dtype, options):
        self.pipe = diffusers.StableDiffusionPipeline.from_pretrained(
            folder, torch_dtype=dtype, low_cpu_mem_usage=False
        )
        self.pipe.set_progress_bar_config(disable=True)
        parts = self.pipe.unet, self.pipe.vae, self.pipe.text_encoder
        for part in parts:
            part.to(memory_format=torch.channels_last)
        self.parameters = sum(p.numel() for part in parts for p in part.parameters())
        self.options, self.noise = options, nchw(inputs["noise"], dtype)

    def call(self):
        self.pixels = self.pipe(
            [self.options["prompt"]] * len(self.noise),
            num_inference_steps=self.options["steps"],
            guidance_scale=self.options["guidance"],
            height=self.options["pixels"],
            width=self.options["pixels"],
            latents=self.noise,
            output_type="np",
        ).images

    def output(self):
        return (self.pixels * 255).round().astype(np.float32)


NETWORKS = {"unet": UNet, "vae": Decoder, "text": Text, "pipeline": Pipeline}
