"""Convert published checkpoints to sdjax's model folders, and to other published layouts.

    python weights_convert.py --src v1-5-pruned-emaonly.safetensors --dst sd15
    python weights_convert.py --src v2-1_768-nonema-pruned.ckpt --dst sd21 --family sd2-v
    python weights_convert.py --src sd15 --dst sd15_diffusers --export diffusers

PyTorch is not needed, and nothing in a file is ever executed.
"""

from sdjax.weights.command import main

if __name__ == "__main__":
    raise SystemExit(main())
