"""A whole model, part by part: in order, stopped and continued, and with its expected hours."""

from dataclasses import replace
from pathlib import Path

import jax
import pytest
import toy_training as toy

from sdjax.pipelines.load import load
from sdjax.pipelines.models import BUNDLED
from sdjax.training import systems
from sdjax.training.loop import RECIPE_FILE, open_run
from sdjax.training.parts import RECIPES
from sdjax.training.systems import SYSTEMS, System, expected_hours, model_of, train_system
from sdjax.weights.files import MODEL_FILE, load_model, save_model

STEPS = 6
TOYS = {part: toy.recipe(STEPS) for part in RECIPES}


def a_system(made, before=lambda part, step: None):
    """Mini's parts, each the toy; `made` collects their names."""

    def make(part, recipe, out):
        made.append(part)
        if part == "latent-diffusion":  # what it needs is there
            assert (model_of(out, "clip") / MODEL_FILE).exists()
            assert (model_of(out, "autoencoder") / MODEL_FILE).exists()
        return toy.make_task(recipe.steps, before=lambda step: before(part, step))

    def finish(out):
        save_model(out / "model", {}, {"kind": "toy", "parts": list(made)})

    return System(SYSTEMS["mini"].parts, make, finish)


def run(out, system, said=None, **options):
    say = (lambda text: None) if said is None else said.append
    return train_system("mini", out, recipes=TOYS, system=system, say=say, quiet=True, **options)


def test_parts_are_trained_in_order_and_the_model_is_one(tmp_path):
    made, said = [], []
    model = run(tmp_path / "run", a_system(made), said)
    assert made == list(SYSTEMS["mini"].parts)
    assert model == tmp_path / "run" / "model" and (model / MODEL_FILE).exists()
    hours = expected_hours("mini")
    assert (
        said[0] == f"mini: about {sum(hours.values()):.1f} hours on two CPU cores, if none is done"
    )
    assert said[1:] == [
        f"{i} of 6, {part}: about {time} hours" for i, (part, time) in enumerate(hours.items(), 1)
    ]


def test_what_goes_on_from_another_training_is_told_so(tmp_path):
    starts = {}

    def make(part, recipe, out):
        starts[part] = recipe.start
        return toy.make_task(recipe.steps)

    system = replace(a_system([]), make=make, starts=SYSTEMS["mini"].starts)
    run(tmp_path / "run", system)
    for part in ("latent-diffusion", "latent-decoder"):
        before = str(model_of(tmp_path / "run", part))
        assert starts.pop(f"{part}-2") == before
        recipe = open_run(tmp_path / "run" / f"{part}-2", resume=True)
        assert recipe is not None and recipe.start == before
    others = [part for part in SYSTEMS["mini"].parts if not part.endswith("-2")]
    assert starts == dict.fromkeys(others)


def test_a_run_that_was_moved_goes_on(tmp_path):
    def stop(part, step):
        if (part, step) == ("latent-diffusion-2", 4):
            raise KeyboardInterrupt

    starts = SYSTEMS["mini"].starts
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", replace(a_system([], stop), starts=starts), save_every=2)
    (tmp_path / "run").rename(tmp_path / "moved")
    made = []
    run(tmp_path / "moved", replace(a_system(made), starts=starts), resume=True)
    assert made == ["latent-diffusion-2", "latent-decoder", "latent-decoder-2"]


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path):
    made, said, steps = [], [], []

    def stop(part, step):
        if (part, step) == ("autoencoder", 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", a_system([], stop), save_every=2)
    assert not (tmp_path / "run" / "model").exists()
    system = a_system(made, lambda part, step: steps.append((part, step)))
    run(tmp_path / "run", system, said, resume=True)
    assert made == list(SYSTEMS["mini"].parts)[1:]
    assert steps[0] == ("autoencoder", 4) and steps[2] == ("latent-diffusion", 0)
    assert said[1] == "1 of 6, clip: done before"
    assert (tmp_path / "run" / "model" / MODEL_FILE).exists()


def test_a_finished_run_is_finished_again_for_nothing(tmp_path):
    run(tmp_path / "run", a_system([]))
    made = []
    run(tmp_path / "run", a_system(made), resume=True)
    assert made == []


def test_a_run_is_neither_overwritten_nor_made_up(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run in .* to resume"):
        run(tmp_path / "run", a_system([]), resume=True)
    run(tmp_path / "run", a_system([]))
    with pytest.raises(ValueError, match="already holds a run: pass --resume"):
        run(tmp_path / "run", a_system([]))


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_part_has_a_recipe_and_hours(name):
    hours = expected_hours(name)
    assert list(hours) == list(SYSTEMS[name].parts)
    assert set(hours) <= set(RECIPES) and min(hours.values()) > 0


def test_mini_is_what_its_last_trainings_wrote_under_the_name_of_the_run(tmp_path):
    components, described = load_model(BUNDLED / "mini")
    whole = folder = tmp_path
    unets = {"latent-diffusion": {"steps": 7}, "latent-diffusion-2": {"steps": 8}}
    for part, told in unets.items():
        unet = jax.tree.map(lambda x, by=told["steps"]: x + by, components["unet"])
        training = {**described["training"], "latent-diffusion": told}
        whole = model_of(tmp_path / "mine", part)
        whole.parent.mkdir(parents=True)
        save_model(
            whole, {**components, "unet": unet}, described | {"training": training}, "source"
        )
    decoders = {"latent-decoder": {"steps": 2}, "latent-decoder-2": {"steps": 3}}
    for part, told in decoders.items():
        better = jax.tree.map(lambda x, by=told["steps"]: x + by, components["autoencoder"])
        last = {"kind": "autoencoder", "config": described["config"]["autoencoder"]}
        folder = model_of(tmp_path / "mine", part)
        folder.parent.mkdir()
        save_model(folder, {"autoencoder": better}, last | {"training": told}, "float16")
    SYSTEMS["mini"].finish(tmp_path / "mine")
    pipe = load(tmp_path / "mine" / "model")
    assert pipe.name == "mine"
    training = load_model(tmp_path / "mine" / "model")[1]["training"]
    assert training == {**described["training"], **unets, **decoders}
    for file in (BUNDLED / "mini").glob("*.safetensors"):
        source = folder if file.stem == "autoencoder" else whole
        written = (tmp_path / "mine" / "model" / file.name).read_bytes()
        assert written == (source / file.name).read_bytes()


def test_dalle2_mini_is_assembled_from_its_parts(tmp_path, monkeypatch):
    told = {}

    def assemble(folder, name, clip, *parts, **rest):
        told.update(folder=folder, name=name, clip=clip, parts=parts, **rest)

    monkeypatch.setattr(systems, "assemble", assemble)
    SYSTEMS["dalle2-mini"].finish(tmp_path)
    assert told["folder"] == tmp_path / "model" and told["clip"] == "mini"
    decoder, upsamplers, *priors = told["parts"]
    named = [path.parent.name for path in [decoder, *upsamplers, *priors]]
    assert named == list(SYSTEMS["dalle2-mini"].parts)
    assert replace(told["settings"], steps=1).upsampler_steps == (12, 8)


def test_each_part_is_made_with_the_folders_before_it(tmp_path, monkeypatch):
    asked = []

    def make_task(*all_of_it):
        asked.append(all_of_it)
        return toy.make_task(STEPS)

    monkeypatch.setattr(systems, "make_task", make_task)
    SYSTEMS["mini"].make("latent-diffusion", RECIPES["latent-diffusion"], tmp_path)
    SYSTEMS["dalle2-mini"].make("decoder", RECIPES["decoder"], tmp_path)
    assert asked[0][3:] == (tmp_path / "clip" / "model", tmp_path / "autoencoder" / "model")
    assert asked[1][3:] == (Path("mini"),)
    assert not (tmp_path / "clip" / RECIPE_FILE).exists()
