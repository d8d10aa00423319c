"""The transformer block of CLIP, the UNet and DPT, and its use on a feature map."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.nn.attention import Attention, Cache
from sdjax.nn.layers import GroupNorm, activation, exact_gelu, layer_norm
from sdjax.nn.merging import Merging, match
from sdjax.shapes import FeatureMap, Mask, Sequence

LAYER_NORM_EPSILON = 1e-5
"""Of every layer norm in CLIP and the UNet (Flax's default, 1e-6, is not it)."""


STRIP = 1024
"""Positions, of all images, that a CPU sends through a feed-forward network at once."""


class FeedForward(nn.Module):
    """Two linear layers; "geglu" multiplies one half by the other's GELU (arXiv 2002.05202).

    On a CPU many positions go through in strips, so that what is between the layers, eight times
    as wide as the input, stays in the caches.
    """

    hidden: int
    kind: str  # "geglu", "gelu" or "quick_gelu"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Sequence) -> Sequence:
        width = 2 * self.hidden if self.kind == "geglu" else self.hidden
        expand = nn.Dense(width, dtype=self.dtype, name="expand")
        contract = nn.Dense(x.shape[-1], dtype=self.dtype, name="contract")

        def activate(h: Sequence) -> Sequence:
            if self.kind != "geglu":
                return activation(self.kind)(h)
            content, gate = jnp.split(h, 2, axis=-1)
            return content * exact_gelu(gate)

        batch, tokens, dim = x.shape
        rows = STRIP // batch
        if self.is_initializing() or not rows or tokens % rows or tokens < 4 * rows:
            return contract(activate(expand(x)))
        (first, first_weights), (last, last_weights) = expand.unbind(), contract.unbind()

        def whole(x: Sequence) -> Sequence:
            return last.apply(last_weights, activate(first.apply(first_weights, x)))  # pyright: ignore

        def strips(x: Sequence) -> Sequence:
            each = x.reshape(batch, -1, rows, dim).swapaxes(0, 1)
            return jax.lax.map(whole, each).swapaxes(0, 1).reshape(x.shape)

        return jax.lax.platform_dependent(x, cpu=strips, default=whole)


class TransformerBlock(nn.Module):
    """Pre-norm block: self-attention, cross-attention where a context is given, feed-forward.

    With `cross_only` the first attention reads the context too; it is then called that,
    "first_attention", and not "self_attention".
    """

    heads: int
    head_dim: int
    mlp_dim: int
    feed_forward: str
    attention_bias: bool
    epsilon: float  # of the layer norms
    causal: bool = False
    cross_only: bool = False
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0  # of what is added, where a "dropout" key is given

    def __call__(
        self,
        x: Sequence,
        context: Sequence | None = None,
        mask: Mask | None = None,
        merging: Merging | None = None,
    ) -> Sequence:
        """`mask` says which positions are seen of the context, or of `x` where there is none.

        With `merging` the self-attention is among the merged tokens; the rest is of each.
        """
        return self._run(x, context, mask, None, merging)[0]

    def extend(self, x: Sequence, cache: Cache, mask: Mask | None) -> tuple[Sequence, Cache]:
        """The next positions of a causal sequence: see `Attention.extend`."""
        x, extended = self._run(x, None, mask, cache, None)
        assert extended is not None
        return x, extended

    @nn.compact
    def _run(
        self,
        x: Sequence,
        context: Sequence | None,
        mask: Mask | None,
        cache: Cache | None,
        merging: Merging | None,
    ) -> tuple[Sequence, Cache | None]:
        def norm(name: str) -> nn.LayerNorm:
            return layer_norm(self.epsilon, name=name, dtype=self.dtype)

        def attention(name: str, causal: bool) -> Attention:
            return Attention(
                self.heads, self.head_dim, self.attention_bias, causal, self.dtype, name=name
            )

        def drop(h: Sequence) -> Sequence:
            return nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(h)

        if self.cross_only:
            x = x + drop(attention("first_attention", False)(norm("norm_first")(x), context, mask))
        elif cache is not None:
            attend = attention("self_attention", self.causal)
            h, cache = attend.extend(norm("norm_self")(x), cache, mask)
            x = x + drop(h)
        elif merging is not None:
            h = attention("self_attention", self.causal)(merging.merge(norm("norm_self")(x)))
            x = x + drop(merging.unmerge(h))
        else:
            own = mask if context is None else None
            x = x + drop(attention("self_attention", self.causal)(norm("norm_self")(x), None, own))
        if context is not None:
            x = x + drop(attention("cross_attention", False)(norm("norm_cross")(x), context, mask))
        mlp = FeedForward(self.mlp_dim, self.feed_forward, self.dtype, name="mlp")
        return x + drop(mlp(norm("norm_mlp")(x))), cache


class AttentionBlock(nn.Module):
    """Attention of the positions of a feature map to each other, and to a context if one is given.

    That of the autoencoder, of ADM (arXiv 2105.05233, section 3) and of GLIDE (arXiv 2112.10741,
    section 4). The last projection starts at zero.
    """

    heads: int
    groups: int
    epsilon: float  # of the group norm
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: FeatureMap, context: Sequence | None = None, mask: Mask | None = None
    ) -> FeatureMap:
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, self.epsilon, self.dtype, name="norm")(x)
        h = h.reshape(batch, height * width, channels)
        attention = Attention(
            self.heads,
            channels // self.heads,
            bias=True,
            dtype=self.dtype,
            joint=context is not None,
            zero=True,
            name="attention",
        )
        return x + attention(h, context, mask).reshape(x.shape)


class SpatialTransformer(nn.Module):
    """A transformer block over the positions of a feature map (arXiv 2112.10752, section 3.3)."""

    heads: int
    groups: int
    cross_only: bool
    dtype: DTypeLike = jnp.float32
    merge: float = 0.0  # share of the positions that the self-attention sees as one with others

    @nn.compact
    def __call__(
        self, x: FeatureMap, context: Sequence | None, mask: Mask | None = None
    ) -> FeatureMap:
        batch, height, width, channels = x.shape
        # 1e-6 here and 1e-5 in the UNet's ResBlocks: so the published models were trained.
        h = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x)
        h = h.reshape(batch, height * width, channels)
        h = nn.Dense(channels, dtype=self.dtype, name="project_in")(h)
        merging = match(h, height, width, self.merge) if self.merge else None
        h = TransformerBlock(
            self.heads,
            channels // self.heads,
            4 * channels,
            "geglu",
            attention_bias=False,
            epsilon=LAYER_NORM_EPSILON,
            cross_only=self.cross_only,
            dtype=self.dtype,
            name="block",
        )(h, context, mask, merging)
        h = nn.Dense(
            channels, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="project_out"
        )(h)
        return x + h.reshape(x.shape)
