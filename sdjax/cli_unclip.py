"""`sdjax interpolate | textdiff | variations | mix | inpaint | outpaint`: what DALL-E 2 can do."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdjax.pipelines.images import Images
    from sdjax.pipelines.unclip import Unclip

MODEL = "dalle2-mini"
NOT_FOR_UNCLIP = {
    **{"negative": "", "size": None, "spacing": None, "offset": None, "rescale": 0.0},
    **{"guidance_interval": None, "reuse": 1, "merge": 0.0, "tile": None},
}
"""Options of `imagine` that DALL-E 2 has nothing for, and what they are when not given."""
ONLY_FOR_UNCLIP = {"prior": None, "best_of": None}


def add_imagine_options(imagine: argparse.ArgumentParser) -> None:
    """What `imagine` takes for DALL-E 2 alone."""
    imagine.add_argument("--prior", choices=("diffusion", "ar"), help="of DALL-E 2 (diffusion)")
    imagine.add_argument(
        "--best-of",
        type=int,
        help="of DALL-E 2: embeddings drawn, the best is kept (the model's own)",
    )


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Register the commands."""
    one = _command(commands, "interpolate", _interpolate, "from one picture to another")
    one.add_argument("first", type=Path, help="a PNG, JPEG or WebP file")
    one.add_argument("last", type=Path, help="another")
    one.add_argument("-n", type=int, default=8, help="pictures, both ends included (8)")
    one.add_argument("--fixed-noise", action="store_true", help="keep the noise of the first")
    _add_inverting(one, guided=False)

    one = _command(commands, "textdiff", _textdiff, "change a picture as a text changes")
    one.add_argument("picture", type=Path)
    one.add_argument("--from", dest="here", required=True, help="what it shows")
    one.add_argument("--to", dest="there", required=True, help="what it should show")
    one.add_argument("-n", type=int, default=6, help="pictures, the first unchanged (6)")
    one.add_argument("--theta", type=float, help="how far the last goes, above 0 to 1 (0.5)")
    _add_inverting(one)

    one = _command(commands, "variations", _variations, "pictures of which CLIP sees the same")
    one.add_argument("picture", type=Path)
    one.add_argument("-n", type=int, default=8, help="pictures (8)")
    one.add_argument("--eta", type=float, default=1.0, help="noise, 0 (the picture) to 1 (1)")
    one.add_argument("--seed", type=int, default=0, help="of the first (0)")
    _add_inverting(one)

    one = _command(commands, "mix", _mix, "pictures of several things at once")
    one.add_argument(
        "parts",
        metavar="TEXT or IMAGE",
        nargs="+",
        help="what is the name of a file or ends like one (.png) is an image, the rest are texts",
    )
    one.add_argument("--weights", type=float, nargs="+", help="of the parts (equal)")
    _add_drawing(one)

    one = _command(commands, "inpaint", _inpaint, "draw a part of a picture anew")
    one.add_argument("picture", type=Path)
    one.add_argument("prompt", help="what the whole picture shows then")
    one.add_argument("--mask", type=Path, required=True, help="an image: white is drawn anew")
    _add_drawing(one)

    one = _command(commands, "outpaint", _outpaint, "continue a picture beyond its borders")
    one.add_argument("picture", type=Path)
    one.add_argument("prompt", help="what the whole picture shows then")
    one.add_argument("--pixels", type=int, default=8, help="of the result, new at each border (8)")
    _add_drawing(one)


def imagine(pipe: "Unclip", args: argparse.Namespace) -> "Images":
    """`sdjax imagine` with DALL-E 2.

    Raises:
        ValueError: for options that it has nothing for.
    """
    from sdjax.pipelines.manipulate import translate

    refuse(args, NOT_FOR_UNCLIP, pipe.name)
    options = {
        "n": args.n,
        "seed": args.seed,
        "prior": args.prior,
        "best_of": args.best_of,
        "steps": args.steps,
        "sampler": args.sampler,
        "eta": args.eta,
        "guidance": args.guidance,
    }
    if args.image is None:
        refuse(args, {"strength": None}, f"{pipe.name} without --image")
        return pipe(args.prompt, **options)
    if args.strength is not None:
        options["strength"] = args.strength
    return translate(pipe, args.image, args.prompt, **options)


def is_image(item: str) -> bool:
    """Is it the name of a file, or does it end like the name of an image?"""
    from PIL import Image

    return os.path.isfile(item) or Path(item).suffix.lower() in Image.registered_extensions()


def refuse(args: argparse.Namespace, options: dict[str, Any], name: str) -> None:
    """ValueError for the first of `options` that differs from what it is when not given."""
    for option, absent in options.items():
        if getattr(args, option) != absent:
            raise ValueError(f"--{option.replace('_', '-')} is nothing for {name}: leave it out")


def _command(
    commands: argparse._SubParsersAction,
    name: str,
    draw: Callable[["Unclip", argparse.Namespace], "Images"],
    what: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=f"{what} (DALL-E 2)")
    parser.add_argument("--model", default=MODEL, help=f"bundled name or folder ({MODEL})")
    parser.add_argument("--scale", type=int, default=4, help="enlarge the grid's pixels (4)")
    out = Path(f"{name}.png")
    parser.add_argument("-o", "--out", type=Path, default=out, help=f"a PNG ({out})")

    def run(args: argparse.Namespace) -> None:
        from sdjax.pipelines.images import check_png, save_png
        from sdjax.pipelines.load import load
        from sdjax.pipelines.unclip import Unclip

        check_png(args.out)
        if args.scale < 1:
            raise ValueError(f"--scale must be at least 1, got {args.scale}")
        pipe = load(args.model)
        if not isinstance(pipe, Unclip):
            raise ValueError(f"{args.model} is no DALL-E 2: only one has image embeddings")
        images = draw(pipe, args)
        columns = len(images) if len(images) <= 8 else None
        save_png(images.grid(columns, scale=args.scale), args.out)
        print(f"{len(images)} pictures: {args.out.resolve()}")

    parser.set_defaults(run=run)
    return parser


def _add_drawing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", type=int, default=4, help="pictures (4)")
    parser.add_argument("--seed", type=int, default=0, help="of the first (0)")
    parser.add_argument("--prior", choices=("diffusion", "ar"), help="(the model's own)")
    parser.add_argument("--steps", type=int, help="of the decoder (the model's own)")
    parser.add_argument("--guidance", type=float, help="of the decoder (the model's own)")


def _add_inverting(parser: argparse.ArgumentParser, guided: bool = True) -> None:
    parser.add_argument("--steps", type=int, help="of DDIM in each stage, there and back (33)")
    if guided:
        parser.add_argument("--guidance", type=float, help="of the decoder, by the embedding (1)")


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """What was said of how to draw; the rest is the function's or the model's own."""
    told = {name: getattr(args, name, None) for name in ("prior", "steps", "guidance")}
    return {name: value for name, value in told.items() if value is not None}


def _interpolate(pipe: "Unclip", args: argparse.Namespace) -> "Images":
    from sdjax.pipelines.manipulate import interpolate

    return interpolate(
        pipe, args.first, args.last, args.n, fixed_noise=args.fixed_noise, **_given(args)
    )


def _textdiff(pipe: "Unclip", args: argparse.Namespace) -> "Images":
    from sdjax.pipelines.manipulate import MOST_THETA, textdiff

    if args.n < 2:
        raise ValueError(f"-n must be at least 2, as the first is unchanged, got {args.n}")
    most = MOST_THETA if args.theta is None else args.theta
    thetas = [most * i / (args.n - 1) for i in range(args.n)]
    return textdiff(pipe, args.picture, args.here, args.there, thetas, **_given(args))


def _variations(pipe: "Unclip", args: argparse.Namespace) -> "Images":
    from sdjax.pipelines.manipulate import variations

    return variations(pipe, args.picture, args.n, eta=args.eta, seed=args.seed, **_given(args))


def _mix(pipe: "Unclip", args: argparse.Namespace) -> "Images":
    from sdjax.pipelines.manipulate import mix

    parts = [Path(part) if is_image(part) else part for part in args.parts]
    return mix(pipe, parts, args.weights, n=args.n, seed=args.seed, **_given(args))


def _inpaint(pipe: "Unclip", args: argparse.Namespace) -> "Images":
    import numpy as np

    from sdjax.pipelines.clip import read_picture
    from sdjax.pipelines.manipulate import inpaint

    hole = np.asarray(read_picture(args.mask).convert("L")) > 127
    return inpaint(pipe, args.picture, hole, args.prompt, n=args.n, seed=args.seed, **_given(args))


def _outpaint(pipe: "Unclip", args: argparse.Namespace) -> "Images":
    from sdjax.pipelines.manipulate import outpaint

    return outpaint(
        pipe, args.picture, args.prompt, args.pixels, n=args.n, seed=args.seed, **_given(args)
    )
