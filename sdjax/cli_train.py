"""`sdjax train`."""

import argparse
from dataclasses import replace
from pathlib import Path

from sdjax.cli_unclip import refuse

READS = {
    "clip": (),
    "autoencoder": (),
    "latent-diffusion": ("clip", "autoencoder"),
    "latent-decoder": ("autoencoder",),
    "prior": ("kind", "clip"),
    "decoder": ("clip",),
    "upsampler": ("stage",),
    "judge": (),
}
"""The parts that are trained, and the options that are for them and not for all."""
ABSENT = {"kind": None, "stage": None, "clip": None, "autoencoder": None}
"""These options when they are not given."""
TRAINED_WHOLE = ("mini", "dalle2-mini")
OF_RECIPE = ("steps", "batch", "learning_rate", "seed", "start")
"""Options of `train` that change a recipe."""
ONE_PART_ONLY = ABSENT | dict.fromkeys(OF_RECIPE) | {"preset": "mini"}
"""Options that say nothing about a whole model, and what they are when not given."""


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `train`."""
    train = commands.add_parser(
        "train", help="train on the emoji pictures, from nothing or further"
    )
    order = (
        "a whole model (mini, dalle2-mini) or one part of it; clip and autoencoder first: "
        "latent-diffusion needs both, latent-decoder the second, prior and decoder the first; the "
        "judge only grades"
    )
    train.add_argument("part", choices=(*TRAINED_WHOLE, *READS), help=order)
    kinds = "of a prior: autoregressive, or (the default) diffusion"
    train.add_argument("--kind", choices=("ar", "diffusion"), help=kinds)
    train.add_argument("--stage", type=int, choices=(1, 2), help="of an upsampler (1)")
    train.add_argument(
        "--preset",
        default="mini",
        help="sizes of the networks: mini, or dalle2 for its CLIP (mini)",
    )
    train.add_argument("--out", type=Path, required=True, help="folder of the run")
    train.add_argument("--resume", action="store_true", help="continue the run in --out")
    train.add_argument("--steps", type=int, help="steps in all; may grow or shrink on resuming")
    train.add_argument("--batch", type=int, help="examples per step")
    train.add_argument("--learning-rate", type=float)
    train.add_argument("--seed", type=int)
    train.add_argument("--start", help="model whose weights it begins with, such as mini")
    train.add_argument("--clip", type=Path, help="model folder of CLIP, or mini for its own")
    train.add_argument("--autoencoder", type=Path, help="the same of an autoencoder")
    train.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    train.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> None:
    from sdjax.training.loop import open_run, train
    from sdjax.training.parts import RECIPES, make_task

    if args.save_every < 1:
        raise ValueError(f"--save-every must be at least 1, got {args.save_every}")
    if args.part in TRAINED_WHOLE:
        return _train_whole(args)
    unread = {name: None for name in ABSENT if name not in READS[args.part]}
    refuse(args, unread, f"the training of {args.part}")
    changes = {name: getattr(args, name) for name in OF_RECIPE if getattr(args, name) is not None}
    stored = open_run(args.out, resume=args.resume)
    variants = {"prior": f"-{args.kind or 'diffusion'}", "upsampler": f"-{args.stage or 1}"}
    part = args.part + variants.get(args.part, "")
    recipe = replace(stored or RECIPES[part], **changes)
    task = make_task(part, args.preset, recipe, args.clip, args.autoencoder)
    train(task, recipe, args.out, resume=args.resume, save_every=args.save_every)
    print(f"trained: {(args.out / 'model').resolve()}")


def _train_whole(args: argparse.Namespace) -> None:
    from sdjax.training.systems import train_system

    refuse(args, ONE_PART_ONLY, f"the whole of {args.part}")
    model = train_system(args.part, args.out, resume=args.resume, save_every=args.save_every)
    print(f"trained: {model.resolve()}\nmeasure it: sdjax evaluate {model}")
