"""Names on the Hugging Face hub, without the network."""

import json
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import snapshot_download
from safetensors.numpy import save_file
from weights.published import SYSTEMS, TEXT, checkpoint, flat, read, write

from sdjax.pipelines.models import find_model, read_model
from sdjax.weights.folders import write_configs
from sdjax.weights.hub import INDEX, hub_folder, wanted

UNET = "unet/diffusion_pytorch_model"
REPOSITORY = [
    "README.md", "model_index.json", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "pic.png",
    "scheduler/scheduler_config.json", "feature_extractor/preprocessor_config.json",
    "tokenizer/vocab.json", "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json",
    "unet/config.json", f"{UNET}.fp16.safetensors", f"{UNET}.bin", f"{UNET}.non_ema.safetensors",
    f"{UNET}-00001-of-00002.safetensors", f"{UNET}-00002-of-00002.safetensors",
    f"{UNET}.safetensors.index.json", f"{UNET}.fp16-00001-of-00001.safetensors",
    f"{UNET}.safetensors.index.fp16.json", "unet/flax_model.msgpack",
    "vae/config.json", "vae/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json", "text_encoder/pytorch_model.bin", "text_encoder/model.onnx",
    "prior/config.json", "prior/diffusion_pytorch_model.safetensors",
]  # fmt: skip


def test_of_a_repository_only_what_is_read():
    weights = [name for name in wanted(REPOSITORY, "a/b") if not name.endswith("config.json")]
    assert sorted(weights) == [
        "model_index.json",
        "text_encoder/pytorch_model.bin",
        "tokenizer/special_tokens_map.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    settings = {name for name in wanted(REPOSITORY, "a/b") if name.endswith("config.json")}
    assert settings >= {"unet/config.json", "scheduler/scheduler_config.json"}


def test_of_unclip_every_part():
    parts = ("prior", "decoder", "text_proj", "super_res_first", "super_res_last")
    files = [f"{part}/diffusion_pytorch_model.bin" for part in parts]
    assert set(wanted([INDEX, *files, "text_encoder/model.safetensors"], "a/b")) == {
        INDEX,
        *files,
        "text_encoder/model.safetensors",
    }


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "tf_model.h5"], {"model.safetensors"}),
        (["model.fp16.safetensors", "pytorch_model.bin"], {"pytorch_model.bin"}),
        (["open_clip_model.safetensors", "pytorch_model.bin"], {"pytorch_model.bin"}),
        (["v1-4.ckpt", "README.md"], {"v1-4.ckpt"}),
        (
            ["model.safetensors.index.fp16.json", "model.fp16-00001-of-00001.safetensors"]
            + ["model-00001-of-00002.safetensors"],
            {"model.safetensors.index.fp16.json", "model.fp16-00001-of-00001.safetensors"},
        ),
    ],
)
def test_of_one_network_the_best_file(files, chosen):
    assert set(wanted([*files, "config.json"], "a/b")) == chosen | {"config.json"}


def test_repositories_without_a_choice():
    with pytest.raises(FileNotFoundError, match="a/b holds no weights"):
        wanted(["README.md", "flax_model.msgpack"], "a/b")
    with pytest.raises(FileNotFoundError, match="a/b/vae holds no weights"):
        wanted(["model_index.json", "vae/config.json"], "a/b")
    with pytest.raises(ValueError, match=r"several files of weights \(v1.ckpt, v2.ckpt\)"):
        wanted(["v1.ckpt", "v2.ckpt"], "a/b")


COMMIT = "0123abcd" * 5


class Hub:
    """The cache of huggingface_hub, and a hub of which a test says what it holds."""

    def __init__(self, cache, monkeypatch):
        self.cache, self.files, self.asked = cache, {}, []
        self.error = ConnectionError("the network is unreachable")
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)

    def snapshot(self, name):
        return self.cache / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT

    def fill(self, name, folder, leave_out=()):
        """Put a folder into the cache as huggingface_hub does: files are links to blobs."""
        snapshot = self.snapshot(name)
        blobs = snapshot.parents[1] / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        (snapshot.parents[1] / "refs").mkdir(exist_ok=True)
        (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            relative = path.relative_to(folder)
            if relative.as_posix() in leave_out:
                continue
            blob = blobs / relative.as_posix().replace("/", "_")
            blob.write_bytes(path.read_bytes())
            (snapshot / relative).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / relative).symlink_to(blob)

    def model_info(self, name):
        self.asked.append(name)
        if name not in self.files:
            raise self.error
        folder = self.files[name]
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n) for n in names])

    def download(self, name, local_files_only=False, allow_patterns=None):
        snapshot = self.snapshot(name)
        if local_files_only:
            return snapshot_download(name, cache_dir=self.cache, local_files_only=True)
        source = self.files[name]
        unwanted = {p.relative_to(source).as_posix() for p in source.rglob("*")}
        unwanted -= set(allow_patterns)
        there = {p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*")}
        self.fill(name, source, leave_out=there | unwanted)
        return str(snapshot)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    return Hub(tmp_path / "cache", monkeypatch)


@pytest.fixture
def system(tmp_path):
    config = SYSTEMS["sd1-safety"]
    folder = write(config, "diffusers", flat(checkpoint(config, "diffusers")), tmp_path / "sd")
    write_configs(config, folder)
    return folder


@pytest.fixture
def tower(tmp_path):
    (tmp_path / "tower").mkdir()
    save_file(flat(checkpoint(TEXT, "transformers")), tmp_path / "tower" / "model.safetensors")
    write_configs(TEXT, tmp_path / "tower")
    return tmp_path / "tower"


@pytest.mark.parametrize("which", ["system", "tower"])
def test_what_is_cached_needs_no_network(fake, which, request):
    folder = request.getfixturevalue(which)
    fake.fill("owner/model", folder)
    found = find_model("owner/model")
    assert found == fake.snapshot("owner/model")
    assert fake.asked == []
    assert read(found).keys() == read(folder).keys()
    if which == "tower":
        model = read_model("owner/model")
        assert model.config == TEXT
        assert model.name == model.described["source"]["name"] == "owner/model"  # not the commit


@pytest.mark.parametrize(
    "lacking",
    [
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "safety_checker/model.safetensors",
    ],
)
def test_what_is_cached_in_part_is_completed(fake, system, lacking):
    fake.fill("owner/model", system, leave_out=[lacking])
    with pytest.raises(FileNotFoundError, match="network is unreachable"):
        hub_folder("owner/model")
    fake.files["owner/model"] = system
    folder = hub_folder("owner/model")
    assert (folder / lacking).is_file()
    assert fake.asked == ["owner/model"] * 2


def test_weights_without_their_settings_are_completed(fake, tower):
    fake.fill("owner/model", tower, leave_out=["config.json"])
    fake.files["owner/model"] = tower
    assert (hub_folder("owner/model") / "config.json").is_file()
    assert fake.asked == ["owner/model"]


def test_a_missing_shard_is_fetched(fake, tower):
    tensors = flat(checkpoint(TEXT, "transformers"))
    (tower / "model.safetensors").unlink()
    shards = {}
    for i in (1, 2):
        part = {name: array for j, (name, array) in enumerate(tensors.items()) if j % 2 == i - 1}
        name = f"model-{i:05}-of-00002.safetensors"
        save_file(part, tower / name)
        shards |= dict.fromkeys(part, name)
    (tower / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    fake.fill("owner/model", tower, leave_out=["model-00002-of-00002.safetensors"])
    fake.files["owner/model"] = tower
    hub_folder("owner/model")
    assert fake.asked == ["owner/model"]
    got = read_model("owner/model").params["text"]["norm_final"]["scale"]
    np.testing.assert_array_equal(got, tensors["text_model.final_layer_norm.weight"])


def test_a_new_model_is_downloaded_without_the_rest(fake, system):
    for name in ("README.md", "sd.ckpt", "unet/diffusion_pytorch_model.fp16.safetensors"):
        (system / name).write_bytes(b"x")
    fake.files["owner/model"] = system
    folder = hub_folder("owner/model")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert "unet/diffusion_pytorch_model.safetensors" in found
    assert not found & {"README.md", "sd.ckpt", "unet/diffusion_pytorch_model.fp16.safetensors"}
    assert read_model("owner/model").config == SYSTEMS["sd1-safety"]


@pytest.mark.parametrize("error", [ConnectionError("offline"), RuntimeError("401: gated repo")])
def test_a_model_that_cannot_be_had(fake, error):
    fake.error = error
    with pytest.raises(FileNotFoundError, match=f"no model 'a/b' .*{error}.*hf auth login.*path"):
        hub_folder("a/b")


def test_a_name_that_can_be_none(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("the network was asked"))
    for name in ("no-such-folder", "a/b/c", "/etc/nothing"):
        with pytest.raises(FileNotFoundError, match='nor a name on the hub like "owner/model"'):
            find_model(name)
