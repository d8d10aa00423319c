import pytest
import tiny_pipeline
from tiny_pipeline import CAT, DOG


@pytest.fixture(scope="session")
def pipe():
    return tiny_pipeline.make_pipeline()


@pytest.fixture(scope="session")
def four(pipe):
    """Two images of each of two prompts: every other test draws fewer, and compares."""
    return pipe([CAT, DOG], n=2, seed=7)
