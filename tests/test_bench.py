"""`sdjax bench`, with peers that are small programs of the test's own."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks import setup, table, worker

from sdjax.bench import peers, run
from sdjax.bench.cases import Sizes, find_system, text_case
from sdjax.bench.exchange import random_params
from sdjax.bench.ours import Drawn
from sdjax.bench.report import seconds
from sdjax.bench.run import check, distance
from sdjax.cli import main
from sdjax.weights.layouts import component_shapes

HONEST = """
import json, sys
from pathlib import Path
import numpy as np
import jax
from sdjax import presets
from sdjax.nn.functional import apply
from sdjax.pipelines.models import read_model
from sdjax.text.clip_text import ClipText

def load(folder, dtype, options):
    global params, tokens
    # The system's own tower, read as the checkpoint that was handed over.
    params = read_model(folder, family=presets.MINI_CLIP.text).params["text"]
    tokens = np.load(folder / "inputs.npz")["tokens"]
    return sum(leaf.size for leaf in jax.tree.leaves(params))

def output():
    end = np.full(len(tokens), tokens.shape[1] - 1, np.int32)
    return apply(ClipText(presets.MINI_CLIP.text), params, tokens, end).hidden
"""
CONSTANT = """
import json, sys
from pathlib import Path
import numpy as np

def load(folder, dtype, options):
    if dtype == "bfloat16":
        raise ValueError("no bfloat16 here")
    return PARAMETERS

def output():
    return np.zeros((2, 24, 192), np.float32)
"""
ANSWER = """
for line in sys.stdin:
    r = json.loads(line)
    match r["do"]:
        case "load":
            try:
                n = load(Path(r["folder"]), r["dtype"], r["options"])
                a = {"protocol": r["protocol"] + NEWER, "versions": {"made": "up"}, "parameters": n}
            except ValueError as error:
                a = {"error": str(error)}
        case "first":
            a = {"seconds": 3.0}
        case "run":
            a = {"seconds": 0.5 * r["calls"]}
        case "save":
            np.save(r["file"], output())
            a = {}
        case "product":
            a = {"gflops": 1e6}
        case "forget":
            a = {}
        case "memory":
            a = {"bytes": 2**30}
    print(json.dumps(a), flush=True)
"""
PARAMETERS = 2_475_456
"""Of mini's text tower."""


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Files go to the test's folder; a product of small matrices is peak enough; no repeats."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "set in conftest.py")
    monkeypatch.setattr(run, "SAMPLE", 0.0)
    monkeypatch.setattr(run, "PRODUCT_SIZE", 64)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(temporary.iterdir()), "something temporary was left"


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """Makes the folder of a peer whose worker is this program."""

    def make(program: str, name: str = "diffusers", newer: int = 0) -> str:
        folder = tmp_path / "environments"
        python = folder / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        path = ":".join(p for p in sys.path if p)
        python.write_text(f'#!/bin/sh\nPYTHONPATH="{path}" exec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        head = f"NEWER, PARAMETERS = {newer}, {PARAMETERS}\n"
        (folder / "worker.py").write_text(head + program + ANSWER)
        return str(folder)

    return make


def text(*options: str) -> list[str]:
    return ["bench", "text", "--preset", "mini", "--pairs", "1", *options]


def test_both_sides_compute_the_same_from_what_is_handed_over(environment, capsys):
    folder = environment(HONEST)
    assert main(text("--vs", "diffusers", "--dir", folder, "--json", "found.json")) == 0
    found = json.loads(Path("found.json").read_text())
    (result,) = found["results"]
    (peer,) = result["peers"]
    assert peer["difference"] < 1e-5
    assert (peer["name"], peer["dtype"], peer["median"]) == ("diffusers", "float32", 0.5)
    assert peer["parameters"] == result["parameters"] == PARAMETERS
    ours = result["sdjax"]
    assert len(ours["seconds"]) == len(peer["seconds"]) == len(peer["sdjax_seconds"]) == 1
    assert peer["ratio"] == pytest.approx(ours["median"] / 0.5)
    assert peer["ratio_range"] == [pytest.approx(peer["ratio"])] * 2  # of one pair
    assert set(ours["first"]) == {"trace", "lower", "compile", "call", "cached"}
    assert (result["what"], result["batch"], result["tokens"]) == ("text", 2, 24)
    assert result["gflop"] == pytest.approx(2 * 24 * 2 * 1_800_000 / 1e9, rel=0.1)
    assert peer["gflops"] == pytest.approx(result["gflop"] / 0.5)
    assert result["product_gflops"] == {"float32": 1e6}  # the faster side's
    assert found["machine"]["cores"] >= 1 and found["machine"]["versions"]["jax"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(found["machine"]["processor"])
    assert "diffusers's made up" in lines[0]
    assert "text of mini: batch 2, tokens 24, 2,475,456 parameters" in lines[2]
    assert lines[3].split() == (
        "median ratio GFLOP/s of peak first call temporary memory difference".split()
    )
    assert lines[5].split()[:4] == ["diffusers", "float32", "500.0", "ms"]
    assert "1,024 MiB" in lines[5]
    assert "with its compilations on disk" in lines[-1]


def test_alone_it_is_timed_alone(capsys):
    assert main(text()) == 0
    out = capsys.readouterr().out
    assert "sdjax float32" in out and "diffusers" not in out


def test_outputs_that_differ_are_an_error_after_the_table(environment, capsys):
    assert main(text("--vs", "diffusers", "--dir", environment(CONSTANT))) == 2
    said = capsys.readouterr()
    assert "diffusers float32" in said.out
    assert "standard deviations of the output, more than 0.001" in said.err


def test_bfloat16_is_beside_float32_and_words_of_a_peer_come_through(environment, capsys):
    options = ["--vs", "diffusers", "--dtype", "bfloat16", "--dir", environment(CONSTANT)]
    assert main(text(*options)) == 2
    said = capsys.readouterr().err
    assert "the first call of diffusers, float32" in said
    assert said.endswith("diffusers cannot load: no bfloat16 here\n")


def test_a_worker_of_another_version_or_that_ends_is_told(environment, capsys, tmp_path):
    folder = environment(CONSTANT, newer=1)
    assert main(text("--vs", "diffusers", "--dir", folder)) == 2
    assert "setup.py diffusers` again" in capsys.readouterr().err
    (Path(folder) / "worker.py").write_text("raise SystemExit('no torch here')")
    assert main(text("--vs", "diffusers", "--dir", folder)) == 2
    assert "diffusers ended at 'load': no torch here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "sd9"], "no system 'sd9': choose among sd1, "),
        (["--preset", "karlo"], "karlo is no Stable Diffusion"),
        (["--preset", "mini", "--pairs", "0"], "--pairs must be at least 1, got 0"),
        (["--preset", "mini", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["--preset", "mini", "--size", "9"], "--size must be a multiple of 16"),
        (["--steps", "3"], "--steps is nothing for unet"),
        (["text", "--size", "64"], "--size is nothing for text"),
        (["train", "--preset", "sd15"], "only mini is trained here, not sd15"),
        (["train", "--dtype", "bfloat16"], "training is in float32"),
        (["pipeline", "--preset", "mini"], "mini does not draw from CLIP's words alone"),
        (["--vs", "torch"], "no peer 'torch': choose among diffusers, diffusers-flax"),
        (["--json", "nowhere/x.json"], "there is no folder nowhere"),
    ],
)
def test_bad_input_is_one_line(options, message, capsys):
    assert main(["bench", *options]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("sdjax bench: ") and message in last


def test_a_missing_environment_is_told_with_its_remedy(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["bench", "--vs", "diffusers"]) == 2
    error = capsys.readouterr().err
    assert "`python tests/benchmarks/setup.py diffusers`" in error
    assert str(tmp_path / "sdjax" / "bench" / "diffusers") in error
    assert main(["bench", "--vs", "diffusers-flax", "--dir", "here"]) == 2
    assert "setup.py diffusers-flax --dir here`" in capsys.readouterr().err


def test_a_step_of_training_is_a_case_with_the_recipe_s_batch():
    unet, autoencoder = run.train_cases("mini", Sizes())
    assert (unet.name, unet.parameters, unet.facts["batch"]) == ("train unet", 7_489_448, 48)
    assert unet.inputs["mean"].shape == (48, 8, 8, 24)
    assert unet.inputs["alpha_bars"].shape == (1000,)
    assert (autoencoder.facts["batch"], autoencoder.parameters) == (8, 4_436_584)
    # Patches are folded outside the network that the others build: the weights are the same.
    assert autoencoder.model.image_channels == 48 and autoencoder.model.patch == 1


def test_people_s_names_of_models_are_known():
    assert find_system("sd15") == find_system("sd1")
    assert find_system("sd21-v").image_size == 768


def test_no_random_weight_leaves_a_layer_idle():
    case = text_case("mini", Sizes())
    weights = [leaf for tree in case.components.values() for leaf in _leaves(tree)]
    assert all(np.abs(leaf).mean() > 0.01 and leaf.dtype == np.float32 for leaf in weights)
    shapes = component_shapes(find_system("mini").unet)["unet"]
    last = random_params(shapes, 0)["conv_out"]["kernel"]
    assert np.var(last) * np.prod(last.shape[:-1]) == pytest.approx(1, rel=0.1)


def _leaves(tree):
    for value in tree.values():
        yield from _leaves(value) if isinstance(value, dict) else [value]


def test_a_distance_is_in_deviations_and_forgives_the_slack():
    ours = np.array([-1.0, 1.0], np.float32)
    assert distance(ours, ours + np.float32(0.5)) == pytest.approx(0.5)
    assert distance(ours, ours + np.float32(0.5), slack=0.5) == 0
    with pytest.raises(ValueError, match="our output is"):
        distance(ours, ours[None])


def test_different_numbers_of_parameters_are_refused():
    peer = {"name": "diffusers", "dtype": "float32", "parameters": 2, "difference": None}
    result = {"what": "train unet", "dtype": "float32", "parameters": 1, "peers": [peer]}
    with pytest.raises(ValueError, match="1 and 2 parameters"):
        check(result)
    check(result | {"parameters": 2})


def test_times_have_the_unit_that_suits_them():
    assert (seconds(2.345), seconds(0.0123)) == ("2.35 s", "12.3 ms")


def test_the_worker_and_its_setup_agree_with_the_package():
    assert worker.PROTOCOL == peers.PROTOCOL
    assert set(worker.SIDES) == set(setup.PINNED) == set(peers.PEERS)
    here = Path(setup.__file__).parent
    assert (here / peers.WORKER).is_file()
    assert all((here / f"{side}.py").is_file() for side in worker.SIDES.values())


def test_the_readme_holds_the_table_of_what_was_measured():
    rows = table.table()
    readme = Path(__file__).parents[1] / "README.md"
    assert rows in readme.read_text(encoding="utf-8"), "put it there: tests/benchmarks/table.py"
    assert {path.stem for path in table.RESULTS.glob("*.json")} == set(table.COMMANDS)
    for row in rows.splitlines()[2:]:
        _, _, ours, beside, ratio, *_ = (cell.split() for cell in row.split("|"))
        assert ours[1] == beside[-1]  # the unit
        assert float(ours[0]) / float(beside[-2]) == pytest.approx(float(ratio[0]), abs=0.002), row


def test_results_that_are_kept_were_checked_and_are_of_one_machine():
    machines = []
    for name in table.COMMANDS:
        found = json.loads((table.RESULTS / f"{name}.json").read_text())
        machines.append(found["machine"])
        for result in found["results"]:
            check(result)
            assert result["pairs"] == 5
    assert all(machine == machines[0] for machine in machines)


def test_who_is_first_alternates():
    order = []

    class Ours(Drawn):
        def __init__(self):
            pass

        def run(self, calls):
            order.append("sdjax")
            return 2.0

    class Peer(peers.Peer):
        def __init__(self):
            pass

        def ask(self, do, **_):
            order.extend(["peer"] if do == "run" else [])
            return {"seconds": 4.0}

    rival = run.Rival(Peer(), "float32", {})
    mine = run._in_turn(Ours(), [rival], pairs=3, calls=2)
    assert order == ["sdjax", "peer", "peer", "sdjax", "sdjax", "peer"]
    assert rival.result["sdjax_seconds"] == mine == [1.0] * 3
    assert rival.result["seconds"] == [2.0] * 3
