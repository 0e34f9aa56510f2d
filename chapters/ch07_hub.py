"""The hub: a model's name, ORG/NAME, stands for a folder that others have published.

    HuggingFaceTB/SmolLM2-135M   ->   a folder on this disk, downloaded the first time it is asked for

The hub, huggingface.co, keeps a folder for each model, and the `huggingface_hub` library brings it here. Of such
a folder only what is read is fetched: the same weights often lie there in three formats.

Nothing here is needed for models of one's own. A folder is never looked for on the network, and what has been
downloaded once is not asked for again, so the same command works on a train. Where there is no network, the
answer comes within seconds and says how to bring the folder here.
"""

import json
import re
from pathlib import Path

from chapters.ch07_families import config_from_hf
from corpora.readers import PATIENCE, answer_in_time

# The small files of a model, which say what it is; and the large ones, fetched once the small ones are understood.
TEXTS = [
    "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
]
NUMBERS = ["model.safetensors", "model-*.safetensors"]


def model_folder(name: str | Path) -> Path:
    """Return the folder that a name stands for: itself, or the download of ORG/NAME from the hub.

    Raises ValueError for a name that is neither, or a model that is not there, not open, or of a family not
    known here; ConnectionError where it is not on this disk and the hub cannot be reached.
    """
    # 1. Take a folder as it is. Where its parent folder is here, a slip of the pen must not reach the network.
    folder, text = Path(name), Path(name).as_posix()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text, re.ASCII) or folder.parent.is_dir():
        raise ValueError(f"{text} is no folder here: give a model folder, or the name of a published model, ORG/NAME")

    # 2. Look among what has been downloaded. The library notes what belongs to a model, so half of one is noticed.
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(text, allow_patterns=TEXTS + NUMBERS, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        _ask_hub(text)
    except errors.HFValidationError as error:
        raise ValueError(f"{text!r} is no name of a model: {_first_line(error)}") from None

    # 3. Fetch the small files, and refuse a model that cannot be run before its gigabytes are on their way.
    try:
        folder = Path(snapshot_download(text, allow_patterns=TEXTS))
        config_from_hf(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        return Path(snapshot_download(text, allow_patterns=TEXTS + NUMBERS))

    # 4. Say in one line what went wrong: what was read, or what was fetched.
    except ValueError as error:
        raise ValueError(f"the model {text!r} cannot be opened: {error}") from error
    except errors.GatedRepoError:
        raise ValueError(f"{text!r} wants consent: give it on the model's page, then `hf auth login` here") from None
    except Exception as error:
        raise ConnectionError(
            f"the download of {text!r} broke off ({_first_line(error)}): the same command goes on where it stopped"
        ) from error


def _ask_hub(name: str) -> None:
    """Return once the hub has said that it has this model; raise the error to show where it has not.

    Not even this small question is left to the library alone: it would try five times, and wait without end.
    """
    # 1. Ask, but do not wait for long.
    from huggingface_hub import HfApi, errors

    try:
        answer_in_time(lambda: HfApi().model_info(name, timeout=PATIENCE), PATIENCE)

    # 2. Tell a model that is not there from a hub that is not: the reader mends the one by spelling, the other
    # by a cable.
    except errors.RepositoryNotFoundError:
        raise ValueError(
            f"the hub shows no model {name!r}: check the name, and log in with `hf auth login` if it is not open to all"
        ) from None
    except Exception as error:
        raise ConnectionError(
            f"{name!r} is not on this disk and the hub cannot be reached ({_first_line(error)}): where there is a "
            f"network, type `hf download {name} --local-dir FOLDER`, bring FOLDER here and name it in place of {name}"
        ) from error


def _first_line(error: Exception) -> str:
    """Return an error's name and the first line of what it says, for a message of one line.

    The library explains itself at length, and a reader wants to know what to do next.
    """
    return " ".join([type(error).__name__, *str(error).splitlines()[:1]])
