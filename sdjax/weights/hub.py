"""Models by their names on the Hugging Face hub, from its cache or over the network."""

import glob
import json
import re
from collections.abc import Iterable
from pathlib import Path

from sdjax.weights.layouts import FOLDERS, UNCLIP_ONLY
from sdjax.weights.readers import MODEL_FILE, choose, open_checkpoint, shards_of

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
"""What a name on the hub looks like: "owner/model"."""

INDEX = "model_index.json"
"""Of a folder of diffusers; it names the parts."""
SETTINGS = re.compile(r"([^/]+/)?(config|\w+_config|special_tokens_map|model_index)\.json")
"""What is needed besides weights."""


LONE_SETTINGS = frozenset({"config.json", "open_clip_config.json"})
"""Of one network, by transformers and diffusers or by OpenCLIP."""


def hub_folder(name: str) -> Path:
    """The folder of a model on the hub; downloaded if it is not in the cache yet.

    Of the weights only what sdjax would read is downloaded: one precision, safetensors before
    pickles, no copies for other frameworks. What is in the cache is taken as it is, without asking
    the hub for something newer.

    Raises:
        FileNotFoundError: the hub has no such model, asks for a login, or cannot be reached.
        ValueError: there are several files of weights, or the name cannot be one.
    """
    # Imported here because few commands ask the hub.
    from huggingface_hub import HfApi, snapshot_download

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except Exception:  # not in the cache; the classes differ between versions
        folder = None
    if folder is not None and _is_complete(folder):
        return folder
    try:
        files = [file.rfilename for file in HfApi().model_info(name).siblings or ()]
    except Exception as error:
        raise _unreachable(name, error) from error
    patterns = [glob.escape(file) for file in wanted(files, name)]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        raise _unreachable(name, error) from error


def wanted(files: Iterable[str], repository: str) -> list[str]:
    """Those of a repository's files that sdjax reads; `repository` is told in errors.

    Raises:
        FileNotFoundError: none of them are weights.
        ValueError: there are several files of weights, none better than the others.
    """
    files = list(files)
    places = [""]
    if INDEX in files:
        places = _read({place for place in FOLDERS.values() for f in files if f.startswith(place)})
    found = [file for file in files if SETTINGS.fullmatch(file)]
    for place in places:
        inside = [file.removeprefix(place) for file in files if file.startswith(place)]
        inside = [file for file in inside if "/" not in file]
        best = choose(inside, f"{repository}/{place}".rstrip("/"))
        found += [place + file for file in (best, *shards_of(best, inside))]
    return found


def _is_complete(folder: Path) -> bool:
    """Does a folder in the cache have all that is read? Others may have put only some of it."""
    try:
        if not (folder / INDEX).is_file():
            open_checkpoint(folder)
            names = [entry.name for entry in folder.iterdir()]
            # Without them a network that is alike would be asked for; a file with a name of its
            # own has none.
            named = MODEL_FILE.fullmatch(choose(names, str(folder)))
            return named is None or not LONE_SETTINGS.isdisjoint(names)
        parts = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        there = [name for name, value in parts.items() if value not in (None, [None, None])]
        places = _read({f"{name}/" for name in there})
        for name in there:
            if f"{name}/" in places:
                open_checkpoint(folder / name)
                (folder / name / "config.json").stat()
            elif name.endswith("scheduler"):
                (folder / name / "scheduler_config.json").stat()
    except FileNotFoundError:
        return False
    return True


def _read(there: set[str]) -> list[str]:
    """Which of the folders that are `there` are read."""
    without = UNCLIP_ONLY if FOLDERS["unet"] in there else ()
    return [place for place in FOLDERS.values() if place in there and place not in without]


def _unreachable(name: str, error: Exception) -> FileNotFoundError:
    reason = (str(error).strip() or "no reason given").splitlines()[0]
    return FileNotFoundError(
        f"no file or folder {name}; and as a name on the hub, no model {name!r} in the cache of "
        "huggingface_hub, and the hub does not give it "
        f"({type(error).__name__}: {reason}): check the name and the network; where a licence must "
        "be accepted, do so on the model's page and log in with 'hf auth login'; or give the path "
        "of a file or folder"
    )
