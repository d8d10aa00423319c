"""Models by their names on the Hugging Face hub, from its cache or over the network."""

import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError


REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
"""What a name on the hub looks like: "owner/model"."""

SETTINGS = ("model_index.json", "*config.json", "tokenizer/special_tokens_map.json")
"""What is needed besides weights."""


def hub_folder(name: str) -> Path:
    """The folder of a model on the hub; downloaded if it is not in the cache yet.

    Of the weights only what sdjax would read is downloaded: one precision, safetensors before
    pickles, no copies for other frameworks.

    Raises:
        FileNotFoundError: the hub has no such model, or it cannot be reached.
    """
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        if list(wanted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))):
            return folder
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    try:
        files = list(wanted(HfApi().list_repo_files(name)))
        return Path(snapshot_download(name, allow_patterns=[*SETTINGS, *files]))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise FileNotFoundError(
            f"no model {name!r} in the cache of huggingface_hub, and it could not be had from the "
            f"hub ({type(error).__name__}): check the name and the network, or give the path of a "
            "file or folder"
        ) from error
