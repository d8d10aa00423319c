"""The judge is trained on real drawings, and on none that is held out."""

from dataclasses import replace

import numpy as np
import pytest

from sdjax import presets
from sdjax.data import emoji
from sdjax.evaluate_judge import load_judge
from sdjax.training.judge import judge_task
from sdjax.training.loop import train
from sdjax.training.state import Recipe

RECIPE = Recipe(steps=2, batch=4, learning_rate=1e-3, warmup=1)
TINY = replace(presets.JUDGE, channels=(8, 8, 8), embedding_dim=8, shades=3)


def test_a_judge_is_trained_and_loaded(tmp_path):
    train(judge_task(TINY, RECIPE), RECIPE, tmp_path / "run", quiet=True)
    judge = load_judge(tmp_path / "run" / "model")
    assert judge.config == TINY  # the preset counts what the data hold
    assert judge.styles == emoji.STYLES and list(judge.concepts) == sorted(judge.concepts)
    found = judge.read(emoji.load("test").images[:3])
    assert found.concepts.shape == (3, len(judge.concepts)) and found.styles.shape == (3, 6)


def test_no_step_shows_a_held_out_drawing():
    recipe = replace(RECIPE, batch=512)
    task = judge_task(TINY, recipe)
    hidden = {picture.tobytes() for picture in emoji.load("test").images}
    data = emoji.load("train")
    hidden -= {picture.tobytes() for picture in data.images}  # some are the same in two styles
    assert len(hidden) > 300
    for step in range(11):  # an epoch
        assert hidden.isdisjoint(picture.tobytes() for picture in task.batch(step)["pixels"])


def test_labels_say_what_the_pictures_are():
    task = judge_task(TINY, replace(RECIPE, batch=64))
    batch, data = task.batch(5), emoji.load("train")
    names = sorted(set(data.concepts))
    rows = (batch[name] for name in ("pixels", "concept", "style"))
    for pixels, concept, style in zip(*rows, strict=True):
        same = [
            i for i, name in enumerate(data.concepts)
            if name == names[concept] and data.styles[i] == emoji.STYLES[style]
        ]  # fmt: skip
        assert len(same) == 1 and np.array_equal(data.images[same[0]], pixels)


@pytest.mark.parametrize("missing", ["nowhere", "."])
def test_what_is_no_judge_is_refused(missing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no model folder|no model\.json"):
        load_judge(missing)
