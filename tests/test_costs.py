"""The counts of `sdjax models NAME`: operations by hand, the published systems by known numbers."""

import jax
import jax.numpy as jnp
import pytest

from sdjax import presets, presets_unclip
from sdjax.cli import main
from sdjax.costs import cost, operations, stages, system, table


def counted(fn, *shapes):
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return operations(jax.make_jaxpr(fn)(*inputs).jaxpr)


def test_a_product_counts_two_for_each_multiplication():
    assert counted(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (3, 4, 5), (3, 5, 6)) == (
        2 * 3 * 4 * 5 * 6
    )


@pytest.mark.parametrize(("groups", "inputs"), [(1, 6), (2, 3)])
def test_a_convolution_counts_its_kernel_at_every_output(groups, inputs):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (2, 2),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    outputs = 2 * 4 * 4 * 10
    assert counted(convolve, (2, 8, 8, 6), (3, 3, inputs, 10)) == 2 * outputs * 9 * inputs


def test_a_loop_counts_as_often_as_it_runs():
    def powers(a):
        inner = jax.checkpoint(lambda x: x @ a)
        return jax.lax.scan(lambda x, _: (inner(x), None), a, length=7)[0]

    assert counted(jax.jit(powers), (4, 4)) == 7 * 2 * 4**3


def test_the_unet_of_stable_diffusion_1_takes_803_billion_operations():
    """The known number, 401.6 multiply-accumulates (1.6 TFLOP for a guided step)."""
    text, unet, _ = stages(presets.SD1)
    inputs = unet.inputs
    params = jax.eval_shape(unet.module.init, jax.random.key(0), *inputs)
    traced = jax.make_jaxpr(unet.module.apply)(params, *inputs)
    assert operations(traced.jaxpr) == pytest.approx(803e9, rel=1e-3)
    assert text.inputs[0].shape == (1, 77)


def test_karlo_has_its_conditioning_and_a_last_step_of_its_own():
    names = [stage.name for stage in stages(presets_unclip.KARLO)]
    assert names[2:4] == ["decoder's conditioning", "decoder"]
    assert names[4:] == ["upsampler to 256", "upsampler to 256, last step"]


def test_bfloat16_weights_take_half_the_bytes():
    text = stages(system("mini"))[0]
    half, full = cost(text, jnp.bfloat16), cost(text, jnp.float32)
    assert half.parameters == full.parameters == 2_475_456
    assert (half.weight_bytes, full.weight_bytes) == (2 * half.parameters, 4 * half.parameters)
    assert half.operations == full.operations > 2 * 24 * 1_800_000
    assert "2,475,456" in table([half])


def test_the_command_prints_a_row_for_each_network(capsys):
    assert main(["models", "mini"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split("  ")[0] for row in rows] == ["network", "CLIP's text", "unet", "decoder"]


def test_an_unknown_system_is_told_the_known_ones(capsys):
    assert main(["models", "sd9"]) != 0
    assert "sd1" in capsys.readouterr().err


def test_the_whole_of_dalle_2_compiles_at_its_sizes_without_weights():
    """64, 256 and 1024 pixels, in bfloat16; the parameters beside those of the paper's table 3."""
    costs = {found.stage: found for found in map(cost, stages(system("dalle2")))}
    counts = {name: round(found.parameters / 1e9, 2) for name, found in costs.items()}
    assert counts == {
        "CLIP's text": 0.35,
        "prior": 1.33,  # 1B
        "autoregressive prior": 0.81,  # 1B, with a text transformer of its own
        "decoder's text": 1.32,  # with the next two 3.5B
        "decoder's conditioning": 0.01,
        "decoder": 2.24,
        "upsampler to 256": 0.73,  # 700M
        "upsampler to 1024": 0.28,  # 300M
    }
    assert costs["upsampler to 1024"].operations > 10 * costs["decoder"].operations
    assert all(found.temporary_bytes < 12 * 2**30 for found in costs.values())
