"""One optimisation step in PyTorch: the losses of `sdjax/training`, clipped AdamW, average."""

import json

import diffusers
import torch
from torch.nn import functional


class Step:
    """Forward, backward, clipping, AdamW and the moving average of the weights."""

    def __init__(self, folder, inputs, options):
        settings = json.loads((folder / "config.json").read_text())
        self.model = self.cls.from_config(settings).train().to(memory_format=torch.channels_last)
        self.weights = list(self.model.parameters())
        self.average = [weight.detach().clone() for weight in self.weights]
        self.parameters = sum(weight.numel() for weight in self.weights)
        self.options, self.recipe = options, options["recipe"]
        self.inputs = {name: torch.from_numpy(array) for name, array in inputs.items()}
        decayed = [weight for weight in self.weights if weight.ndim > 1]
        others = [weight for weight in self.weights if weight.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.recipe["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]
        rate = self.recipe["learning_rate"]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), foreach=True)

    def call(self):
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, self.recipe["clip_norm"])
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.weights, 1 - self.recipe["ema"])
        self.value = loss.item()


class UNetStep(Step):
    """Of `sdjax.training.losses.latent_diffusion_loss`."""

    cls = diffusers.UNet2DConditionModel

    def loss(self):
        given = self.inputs
        mean, std = (given[name].permute(0, 3, 1, 2) for name in ("mean", "std"))
        count, steps = len(mean), len(given["alpha_bars"])
        x0 = mean + std * torch.randn_like(mean)
        time = ((torch.arange(count) + torch.rand(count)) / count * steps).long()
        time = time.clamp(max=steps - 1)
        noise = torch.randn_like(x0)
        alpha_bar = given["alpha_bars"][time].view(-1, 1, 1, 1)
        signal, spread = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        dropped = torch.rand(count) < self.options["drop"]
        context = torch.where(
            dropped[:, None, None], given["empty_context"][None], given["context"]
        ).float()
        vector = torch.where(dropped[:, None], given["empty_vector"], given["vector"])
        x = (signal * x0 + spread * noise).contiguous(memory_format=torch.channels_last)
        output = self.model(x, time, context, class_labels=vector).sample
        wanted = signal * noise - spread * x0  # v
        ratio = alpha_bar / (1 - alpha_bar)
        weight = (ratio + 1).clamp(max=self.options["gamma"]) / (ratio + 1)
        return (weight * (output - wanted) ** 2).mean()


class AutoencoderStep(Step):
    """Of `sdjax.training.losses.autoencoder_loss`."""

    cls = diffusers.AutoencoderKL

    def loss(self):
        pixels = self._shifted(self.inputs["pixels"].permute(0, 3, 1, 2))
        images = pixels.float() / 127.5 - 1
        folded = functional.pixel_unshuffle(images, self.options["patch"])
        folded = folded.contiguous(memory_format=torch.channels_last)
        posterior = self.model.encode(folded).latent_dist
        decoded = self.model.decode(posterior.sample()).sample
        error = decoded - folded
        kl = posterior.kl().mean() / error[0].numel()
        return error.abs().mean() + (error**2).mean() + self.options["kl_weight"] * kl

    def _shifted(self, pixels):
        most, (height, width) = self.options["shift"], pixels.shape[2:]
        padded = functional.pad(pixels.float(), (most,) * 4, mode="replicate")
        corners = torch.randint(0, 2 * most + 1, (len(pixels), 2)).tolist()
        crops = [
            image[:, y : y + height, x : x + width]
            for image, (y, x) in zip(padded, corners, strict=True)
        ]
        return torch.stack(crops)
