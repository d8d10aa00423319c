"""`sdjax imagine | caption | models | train | evaluate | bench`: the command line."""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdjax import cli_bench, cli_train, cli_unclip

if TYPE_CHECKING:
    from sdjax.pipelines.images import Images
    from sdjax.pipelines.stable_diffusion import Pipeline

OUT = Path("evaluation.json")


class _Parser(argparse.ArgumentParser):
    """Options are written out: `--step` is no other way to say `--steps`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sdjax", description="Text-to-image systems in JAX.")
    commands = parser.add_subparsers(dest="command", metavar="command")
    _add_imagine(commands)
    _add_caption(commands)
    cli_unclip.add_commands(commands)
    models = commands.add_parser("models", help="list the models that sdjax can build")
    cost = "compile its networks and count what each costs; allocates no weights"
    models.add_argument("name", nargs="?", help=cost)
    models.add_argument("--float32", action="store_true", help="costs in float32, not bfloat16")
    models.add_argument("--json", action="store_true", help="as JSON, with every fact")
    models.set_defaults(run=_models)
    cli_train.add_command(commands)
    evaluate = commands.add_parser("evaluate", help="measure a model on held-out captions")
    evaluate.add_argument("model", nargs="?", default="mini", help="bundled name or folder")
    evaluate.add_argument("--count", type=int, help="held-out captions (200)")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--steps", type=int)
    evaluate.add_argument("--guidance", type=float)
    evaluate.add_argument(
        "--prior", action="store_true", help="measure the priors of a DALL-E 2, or one in a folder"
    )
    evaluate.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE",
        help="instead of measuring, draw the first 64 captions on one sheet, a PNG or WebP",
    )
    evaluate.add_argument(
        "--manipulations",
        type=Path,
        metavar="FILE",
        help="instead of measuring, a sheet of what a DALL-E 2 makes of texts and pictures",
    )
    evaluate.add_argument("-o", "--out", type=Path, help=f"JSON ({OUT})")
    evaluate.set_defaults(run=_evaluate)
    cli_bench.add_command(commands)
    return parser


def _add_imagine(commands: argparse._SubParsersAction) -> None:
    imagine = commands.add_parser("imagine", help="draw pictures of a text")
    imagine.add_argument(
        "prompt", help='for example "a red apple, 3d style"; mini draws noto, twemoji, flat and 3d'
    )
    imagine.add_argument("-n", type=int, default=4, help="pictures, seeds counting up (4)")
    imagine.add_argument(
        "--model", default="mini", help="bundled name, folder, checkpoint or hub name (mini)"
    )
    _add_checkpoint(imagine, "sd2-v")
    imagine.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the weights and of what computes with them; bfloat16 takes half the memory",
    )
    imagine.add_argument("--seed", type=int, default=0, help="of the first picture (0)")
    imagine.add_argument("--steps", type=int, help="denoising steps (the model's own: 30 for mini)")
    imagine.add_argument("--guidance", type=float, help="pull of the text; 1 is none (3 for mini)")
    imagine.add_argument("--negative", default="", help="what to keep away from")
    imagine.add_argument("--size", type=_size, help="pixels: 64 or HEIGHTxWIDTH")
    imagine.add_argument(
        "--sampler", help='such as ddim, "euler a" or "DPM++ 2M Karras" (ddim for mini)'
    )
    imagine.add_argument(
        "--spacing", help="of the steps: leading, trailing, linspace, karras, exponential, log-snr"
    )
    imagine.add_argument("--offset", type=int, help='added to the times of "leading" (1)')
    imagine.add_argument(
        "--eta", type=float, help="noise in ddim, churn in euler and heun, 0 to 1 (0)"
    )
    imagine.add_argument("--rescale", type=float, default=0.0, help="of guidance, 0 to 1 (0)")
    cli_unclip.add_imagine_options(imagine)
    _add_shortcuts(imagine)
    imagine.add_argument("--image", type=Path, help="redraw this picture")
    imagine.add_argument("--strength", type=float, help="how much of it, above 0 to 1 (0.75)")
    imagine.add_argument("--scale", type=int, default=4, help="enlarge the grid's pixels (4)")
    out = Path("imagine.png")
    imagine.add_argument("-o", "--out", type=Path, default=out, help=f"a PNG ({out})")
    imagine.set_defaults(run=_imagine)


def _add_shortcuts(imagine: argparse.ArgumentParser) -> None:
    """What makes a picture sooner or in less memory, and a little different."""
    imagine.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="faster: guide only at noise levels sigma / alpha between these",
    )
    imagine.add_argument(
        "--reuse", type=int, default=1, help="faster: the whole UNet only every so many calls (1)"
    )
    imagine.add_argument(
        "--merge", type=float, default=0.0, help="faster: share of tokens merged, to 0.75 (0)"
    )
    imagine.add_argument(
        "--tile", type=int, help="less memory: decode in tiles of so many latent pixels"
    )


def _add_caption(commands: argparse._SubParsersAction) -> None:
    caption = commands.add_parser(
        "caption",
        help="rank captions for an image, or images for a caption",
        usage="sdjax caption IMAGE [IMAGE ...] TEXT [TEXT ...] [--model MODEL] [--family FAMILY] "
        "[--json]",
        description="One text ranks the images; several texts are ranked for each image.",
    )
    caption.add_argument("image", metavar="IMAGE", help="a PNG, JPEG or WebP file")
    caption.add_argument(
        "more",
        metavar="IMAGE or TEXT",
        nargs="+",
        help="what is the name of a file or ends like one (.png) is an image, the rest are texts",
    )
    caption.add_argument(
        "--model", default="mini", help="a CLIP: bundled name, folder, file or hub name (mini)"
    )
    _add_checkpoint(caption, "openclip-vit-l-14")
    caption.add_argument("--json", action="store_true", help="as JSON")
    caption.set_defaults(run=_caption)


def _add_checkpoint(parser: argparse.ArgumentParser, example: str) -> None:
    """Options about a published checkpoint."""
    parser.add_argument("--family", help=f"what a checkpoint cannot tell, for example {example}")
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="take the averaged weights of a file, or the raw ones (averaged, if it has them)",
    )


def _size(text: str) -> int | tuple[int, int]:
    sides = text.lower().split("x")
    try:
        numbers = [int(side) for side in sides]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 64 or 64x96 (height x width)")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _imagine(args: argparse.Namespace) -> None:
    from sdjax.pipelines.images import check_png, save_png
    from sdjax.pipelines.load import load
    from sdjax.pipelines.stable_diffusion import Pipeline
    from sdjax.pipelines.unclip import Unclip

    check_png(args.out)
    if args.scale < 1:
        raise ValueError(f"--scale must be at least 1, got {args.scale}")
    pipe = load(args.model, dtype=args.dtype, family=args.family, ema=args.ema)
    if isinstance(pipe, Unclip):
        images = cli_unclip.imagine(pipe, args)
    elif isinstance(pipe, Pipeline):
        images = _imagine_latent(pipe, args)
    else:
        raise ValueError(f"{args.model} is no text-to-image model")
    save_png(images.grid(scale=args.scale), args.out)
    what = "picture" if len(images) == 1 else "pictures"
    print(f"{len(images)} {what} of {args.prompt!r}: {args.out.resolve()}")


def _imagine_latent(pipe: "Pipeline", args: argparse.Namespace) -> "Images":
    from sdjax.pipelines.clip import read_picture

    cli_unclip.refuse(args, cli_unclip.ONLY_FOR_UNCLIP, pipe.name)
    return pipe(
        args.prompt,
        n=args.n,
        seed=args.seed,
        steps=args.steps,
        guidance=args.guidance,
        negative=args.negative,
        size=args.size,
        sampler=args.sampler,
        spacing=args.spacing,
        offset=args.offset,
        eta=args.eta or 0.0,
        guidance_rescale=args.rescale,
        image=args.image and read_picture(args.image),
        strength=args.strength,
        guidance_interval=args.guidance_interval and tuple(args.guidance_interval),
        reuse=args.reuse,
        merge=args.merge,
        tile=args.tile,
        progress=True,
    )


def _caption(args: argparse.Namespace) -> None:
    from sdjax.pipelines.clip import load_clip

    named = [item for item in args.more if cli_unclip.is_image(item)]
    images, texts = [args.image, *named], [item for item in args.more if item not in named]
    if not texts:
        raise ValueError("no text to compare with: write a caption after the images")
    clip = load_clip(args.model, family=args.family, ema=args.ema)
    cosines = clip.cosines(images, texts)
    if len(texts) == 1:  # which image fits the text?
        rows = [(match.item, texts[0], match) for match in clip.rank(images, cosines[:, 0])]
    else:
        rows = [
            (image, match.item, match)
            for image, row in zip(images, cosines, strict=True)
            for match in clip.rank(texts, row)
        ]
    if args.json:
        fields = [
            {"image": i, "text": t, "cosine": m.cosine, "probability": m.probability}
            for i, t, m in rows
        ]
        print(json.dumps({"model": clip.name, "ranking": fields}, indent=2, ensure_ascii=False))
        return
    width = max(len("image"), *(len(image) for image in images))
    print(f"cosine  probability  {'image':{width}}  text")
    for image, text, match in rows:
        print(f"{match.cosine:6.3f}  {match.probability:11.3f}  {image:{width}}  {text}")


def _models(args: argparse.Namespace) -> None:
    from sdjax.catalog import catalog, table

    if args.name is not None:
        return _costs(args)
    print("counting parameters ...", file=sys.stderr, flush=True)
    models = catalog()
    print(json.dumps(models, indent=2, ensure_ascii=False) if args.json else table(models))


def _costs(args: argparse.Namespace) -> None:
    import jax.numpy as jnp

    from sdjax.costs import cost, stages, system, table

    dtype = jnp.float32 if args.float32 else jnp.bfloat16
    found = stages(system(args.name), dtype)
    print(f"compiling {len(found)} networks ...", file=sys.stderr, flush=True)
    costs = [cost(stage, dtype) for stage in found]
    if args.json:
        print(json.dumps([asdict(c) for c in costs], indent=2))
    else:
        print(table(costs))


def _evaluate(args: argparse.Namespace) -> None:
    from sdjax.evaluate import evaluate
    from sdjax.evaluate_prior import evaluate_priors

    if args.manipulations is not None:
        return _manipulations(args)
    if args.sheet is not None:
        return _sheet(args)
    out = OUT if args.out is None else args.out
    if not out.parent.is_dir():
        raise FileNotFoundError(f"cannot write {out}: there is no folder {out.parent}")
    settings = {
        name: getattr(args, name)
        for name in ("steps", "guidance")
        if getattr(args, name) is not None
    }
    if args.prior:
        for option, value in (("steps", args.steps), ("count", args.count)):
            if value is not None:
                raise ValueError(f"--{option} is nothing for --prior: leave it out")
        result = evaluate_priors(args.model, seed=args.seed, guidance=args.guidance)
    else:
        count = 200 if args.count is None else args.count
        result = evaluate(args.model, count=count, seed=args.seed, **settings)
    text = json.dumps(result, indent=2)
    print(text)
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(text + "\n")
    partial.replace(out)


def _sheet(args: argparse.Namespace) -> None:
    from sdjax.evaluate_sheet import CAPTIONS, check_sheet, draw_sheet, save_sheet

    cli_unclip.refuse(args, {"count": None, "prior": False, "out": None}, "--sheet")
    check_sheet(args.sheet)
    settings = {"steps": args.steps, "guidance": args.guidance}
    chosen = {name: value for name, value in settings.items() if value is not None}
    save_sheet(draw_sheet(args.model, seed=args.seed, **chosen), args.sheet)
    print(f"{CAPTIONS} held-out captions: {args.sheet.resolve()}")


def _manipulations(args: argparse.Namespace) -> None:
    from sdjax.evaluate_manipulations import draw_manipulations
    from sdjax.evaluate_sheet import check_sheet, save_sheet

    useless = dict.fromkeys(("count", "sheet", "steps", "guidance", "out")) | {"prior": False}
    cli_unclip.refuse(args, useless, "--manipulations")
    check_sheet(args.manipulations)
    save_sheet(draw_manipulations(args.model, seed=args.seed), args.manipulations)
    print(f"all manipulations: {args.manipulations.resolve()}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; bad input is one line on standard error and exit status 2."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 0
    from sdjax.compilation import keep_compilations

    keep_compilations()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *_: print(
                f"sdjax {args.command}: note: {message}", file=sys.stderr
            )
            args.run(args)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"sdjax {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\nsdjax {args.command}: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
