"""The glossary: dimension names, layouts and value ranges used everywhere in sdjax.

    batch      images, prompts or examples
    height, width, channels     of an image, a latent or a feature map; layout is always NHWC
    tokens     positions of a sequence: 77 text tokens, or height * width of a feature map
    dim        width of a token's vector
    heads      attention heads; `head_dim` is the width of one of them

Images inside sdjax are float32 in [-1, 1]; at the edge (files, Pillow) they are uint8 in [0, 255].
Latents are always *already multiplied* by the model's scaling factor, so their spread is about 1.
Timesteps are float32 in [0, train_steps): samplers in sigma space visit fractional ones.

A name with an underscore ("_channels") may differ between the arguments and the result of one
function, such as a block that widens its input; one without (batch) must be the same throughout.
"""

from jaxtyping import Array, Bool, Float, Int, Key, UInt8

Images = Float[Array, "batch _height _width _channels"]
"""Float images in [-1, 1], NHWC."""
Pixels = UInt8[Array, "batch height width channels"]
"""Stored images in [0, 255], NHWC."""
Latents = Float[Array, "batch _height _width _channels"]
"""Autoencoder latents times the scaling factor, NHWC."""
FeatureMap = Float[Array, "batch _height _width _channels"]
"""Activations inside a network, NHWC."""
Sequence = Float[Array, "batch _tokens _dim"]
"""A sequence of vectors: text hidden states, or a flattened feature map."""
Vectors = Float[Array, "batch _dim"]
"""One vector per example: an embedding."""
Tokens = Int[Array, "batch tokens"]
"""Token ids."""
Mask = Bool[Array, "batch _tokens"]
"""Which positions of a sequence are seen: True where there is text, False in the padding."""
Labels = Int[Array, " batch"]
"""One whole number per example, such as a noise level: the row of a table."""
Timesteps = Float[Array, " batch"]
"""Diffusion times in [0, train_steps), always float32."""
Scalar = Float[Array, ""]
"""A traced number."""
Keys = Key[Array, " batch"]
"""One PRNG key per image."""
