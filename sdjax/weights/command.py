"""The command line of `weights_convert.py`."""

import argparse
import sys
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from sdjax.pipelines.models import find_model
from sdjax.weights.conversion import Export, convert_checkpoint, export_model
from sdjax.weights.files import MODEL_FILE, StoredDtype
from sdjax.weights.recognize import FAMILIES
from sdjax.weights.report import report
from sdjax.weights.sources import open_source

EXAMPLES = """examples:
  python weights_convert.py --src mini --dst mini.safetensors --export single-file
  python weights_convert.py --src v1-5-pruned-emaonly.safetensors --dst sd15 --check
  python weights_convert.py --src v2-1_768-nonema-pruned.ckpt --dst sd21 --family sd2-v
  python weights_convert.py --src sd15 --dst sd15_diffusers --export diffusers
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 is success, 2 what was given cannot be converted, told in words."""
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *_: print(
                f"weights_convert.py: note: {message}", file=sys.stderr
            )
            _run(options)
    except (ValueError, OSError) as error:
        print(f"weights_convert.py: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="weights_convert.py",
        description="Convert a published checkpoint to a model folder of sdjax, or with --export "
        "any model to a published layout. Nothing in a file is executed.",
        epilog=f"{EXAMPLES}\nnames for --family:\n{_wrapped(FAMILIES)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--src",
        type=Path,
        required=True,
        help=".ckpt, .safetensors, .bin or .pt file; diffusers, transformers or sdjax folder; the "
        "name of a bundled model, or one on the Hugging Face hub",
    )
    parser.add_argument("--dst", type=Path, help="what to write (not needed with --dry-run)")
    parser.add_argument(
        "--family",
        default="auto",
        metavar="NAME",
        help="what the tensors cannot tell, such as sd2-base (eps) or sd2-v (auto); the names are "
        "listed below",
    )
    parser.add_argument(
        "--dtype",
        default="source",
        choices=get_args(StoredDtype),
        help="precision to store (source: what each tensor has)",
    )
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="take the moving average of the weights, or the raw ones (the average, where the "
        "file has it)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show what fits; write nothing")
    parser.add_argument(
        "--export",
        choices=get_args(Export),
        help="write a published layout instead of a model folder: diffusers (DST is a folder) or "
        "single-file (DST is a .safetensors file)",
    )
    parser.add_argument(
        "--check", action="store_true", help="prove that every tensor comes back bit by bit"
    )
    return parser


def _wrapped(names: Iterable[str]) -> str:
    return textwrap.fill(
        ", ".join(names), initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
    )


def _run(options: argparse.Namespace) -> None:
    family = None if options.family == "auto" else options.family
    path = find_model(str(options.src))
    converted = (path / MODEL_FILE).is_file()
    if converted and (options.dry_run or not options.export):
        raise ValueError(f"{options.src} is a model folder already: write it with --export")
    if not (options.dst or options.dry_run):
        raise ValueError("say with --dst where to write")
    source = path
    if not converted:
        source = open_source(path, family, options.ema)
        print(report(source))
        source.check()
    if options.dry_run:
        return
    dtype, check = options.dtype, options.check
    if options.export:
        export_model(source, options.dst, options.export, dtype=dtype, check=check)
    else:
        convert_checkpoint(source, options.dst, dtype=dtype, check=check)
    checked = ", checked bit by bit" if options.check else ""
    print(f"wrote {options.dst}{checked}")
