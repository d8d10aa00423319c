"""replay.py on hand-made golden files: it passes what is right, and nothing else."""

import copy
import gzip
import json

import numpy as np
import pytest
import replay
from golden_networks import network, run_text
from golden_rule import GOLDEN, golden

TEXT = next(
    case for case in golden("tiny_modules_diffusers_hf")["cases"] if "hidden_act" in case["config"]
)
LATENT = [
    case
    for case in golden("scheduler_trajectories")["cases"]
    if case["scheduler"] in ("DDIMScheduler", "DDPMScheduler") and len(case["config"]) > 8
]


@pytest.fixture
def run(tmp_path, capsys):
    """Replay a file of this content: (exit status, lines on standard output, standard error)."""

    def run(content, name="golden.json", arguments=()):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        status = replay.main([str(path), *arguments])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err

    return run


def changed(case, **fields):
    return {**copy.deepcopy(case), **fields}


def row(prompt, ids):
    padded = [49406, *ids, 49407] + [0] * (75 - len(ids))
    return {"prompt": prompt, "openai_77_pad0": padded, "n_valid_incl_sot_eot": len(ids) + 2}


def test_cases_in_any_order_with_any_names(run):
    content = {
        "cases": [
            changed(LATENT[1], id="b"),
            changed(TEXT, id="what?"),
            changed(LATENT[0], id="b"),
        ]
    }
    status, lines, _ = run(content)
    assert status == 0 and lines[-1] == "3 passed, 0 failed"
    assert [line.split()[0] for line in lines[:-1]] == ["pass"] * 3
    assert [line.split()[2] for line in lines[:-1]] == ["b", "what?", "b"]
    assert 0 < float(lines[1].split()[1]) < 2e-4


def test_a_packed_file_is_known_by_its_content(run):
    content = gzip.compress(json.dumps({"rows": [row("a", [320])]}).encode())
    assert run(content, "golden.json")[0] == 0


def test_a_wrong_number_fails_and_only_its_case(run):
    wrong = changed(TEXT)
    wrong["outputs"]["text_embeds"]["data"][3] += 1e-3
    status, lines, _ = run({"cases": [LATENT[0], wrong, LATENT[1]]})
    assert status == 1 and lines[-1] == "2 passed, 1 failed"
    assert lines[1].startswith("FAIL   1.0e-03") and "text_embeds: 1 of" in lines[1]
    assert run({"cases": [wrong]}, arguments=["--tolerance", "2e-3"])[0] == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda case: case["x_after_step"][-1].__setitem__(0, 1.0),
        lambda case: case["x_after_step"].pop(),
        lambda case: case["x_after_step"][0].__setitem__(0, float("nan")),
        lambda case: case["config"].__setitem__("prediction_type", "v_prediction"),
    ],
)
def test_a_wrong_trajectory_fails(run, spoil):
    case = changed(LATENT[0])
    spoil(case)
    status, lines, _ = run({"cases": [case]})
    assert status == 1 and lines[-1] == "0 passed, 1 failed"


def test_wrong_ids_and_wrong_operations_fail(run):
    assert run({"rows": [row("a", [321])]})[0] == 1
    ops = golden("ops")
    name = "quick_gelu"
    good = {"meta": ops["meta"], "ops": {name: ops["ops"][name]}}
    assert run(good)[0] == 0
    bad = copy.deepcopy(good)
    bad["ops"][name]["data"][0] += 1e-3
    assert run(bad)[0] == 1


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (changed(TEXT, layout="paddle"), "a network with these keys"),
        (changed(TEXT, config={**TEXT["config"], "rope": True}), "rope is True"),
        (changed(LATENT[0], scheduler="FlowMatchScheduler"), "the sampler FlowMatchScheduler"),
        ({"id": "?", "answer": 42}, "a case with the fields id, answer"),
        (
            changed(TEXT, outputs={"mood": {"shape": [1], "data": [0.5]}}),
            "the output mood",
        ),
    ],
)
def test_what_sdjax_lacks_is_a_failure(run, case, words):
    status, lines, _ = run({"cases": [case]})
    assert status == 1 and lines[-1] == "0 passed, 1 failed"
    assert lines[0].startswith("FAIL") and words in lines[0]
    assert "not supported by sdjax yet: " in lines[0]


def test_a_case_whose_tensors_make_no_model_fails_alone(run):
    broken = changed(TEXT)
    del broken["state_dict_shapes"]["text_model.final_layer_norm.bias"]
    status, lines, _ = run({"cases": [broken, LATENT[0]]})
    assert status == 1 and lines[-1] == "1 passed, 1 failed"
    assert "do not make this model" in lines[0]


def without(case, field):
    return {key: value for key, value in case.items() if key != field}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1, 2]",
        b"\x1f\x8bnot really",
        gzip.compress(json.dumps({"rows": [row("a", [320])]}).encode(), mtime=0)[:-12],
        b"{}",
        {"cases": []},
        {"answers": [3]},
    ],
)
def test_a_damaged_file_is_one_line(run, content):
    status, lines, error = run(content)
    assert status == 2 and lines == []
    assert error.startswith("replay: ") and error.count("\n") == 1 and "golden.json" in error


@pytest.mark.parametrize(
    "content",
    [
        {"cases": [3]},
        {"cases": [without(TEXT, "id")]},
        {"cases": [without(TEXT, "config")]},
        {"cases": [changed(TEXT, outputs={"text_embeds": {"shape": [2, 3], "data": [1.0]}})]},
        {"cases": [without(LATENT[0], "x_after_step")]},
        {"ops": {"silu": {"data": [1.0]}}},
        {"ops": {"silu": 3}},
        {"rows": ["a"]},
        {"schedules": {"sd": 3}},
        {"crc32": {"a": None}},
    ],
)
def test_a_damaged_case_fails_alone(run, content):
    good = row("a", [320])
    content = {**content, "rows": [*content.get("rows", []), good]}
    status, lines, error = run(content)
    assert status == 1 and error == ""
    assert lines[-1] == "1 passed, 1 failed"
    assert sum(line.startswith("FAIL") for line in lines) == 1


@pytest.mark.parametrize("other", [{"answers": [1]}, {"answers": {"a": 1}}, {"ops": [1]}])
def test_a_section_that_nothing_replays_fails(run, other):
    status, lines, _ = run({"rows": [row("a", [320])], "meta": {}, "note": "a remark", **other})
    assert status == 1 and lines[-1] == "1 passed, 1 failed"
    assert lines[1].startswith("FAIL") and next(iter(other)) in lines[1]


def test_a_missing_file_and_no_file(tmp_path, capsys):
    assert replay.main([str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        replay.main([])
    assert stop.value.code == 2


def test_shipped_small_files(capsys):
    """Numbers of cases that pass; a change here is a change of what sdjax can do."""
    expected = {
        "meta_check.json": (9, 0),
        "clip_tokens.json": (25, 0),
        "glide_tokens.json": (5, 0),
        "ops.json": (31, 0),
        "ldm_sampler_trajectories.json": (7, 0),
        "openai_gaussian_diffusion_trajectories.json": (6, 0),
        "scheduler_trajectories.json.gz": (104, 0),
        "schedule_tables.json.gz": (512, 0),
    }
    for name, (passed, failed) in expected.items():
        replay.main([str(GOLDEN / name)])
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1] == f"{passed} passed, {failed} failed", name
        failures = [line for line in lines[:-1] if line.startswith("FAIL")]
        assert all("not supported by sdjax yet: " in line for line in failures), name


def test_other_sizes_than_the_shipped_ones(run):
    """A case of our own making, of another width, vocabulary and batch."""
    case = changed(TEXT)
    old, new = case["config"]["vocab_size"], 70
    case["config"] |= {"vocab_size": new, "projection_dim": 12, "eos_token_id": 69}
    for key, shape in case["state_dict_shapes"].items():
        if shape[0] == old:
            shape[0] = new
        if key == "text_projection.weight":
            shape[0] = 12
    case["inputs"] = {"input_ids": [[60, 3, 69, 0, 0, 0, 0, 0, 0]]}
    reader = replay._network_case({**case, "outputs": {}})
    found = network(reader)
    outputs = run_text(found.config, found.params(reader.tensors()), reader)
    case["outputs"] = {
        name: {"shape": list(outputs[name].shape), "data": np.ravel(outputs[name]).tolist()}
        for name in ("text_embeds", "last_hidden_state")
    }
    assert case["outputs"]["text_embeds"]["shape"] == [1, 12]
    assert run({"cases": [case]})[1][-1] == "1 passed, 0 failed"
