"""Pushing a pipeline folder to a model hub."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open

from magicedit.errors import ModelError, OutputError

PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})


def check_pipeline_folder(folder: str | Path) -> tuple[str, ...]:
    """Names of the components of a pipeline folder that is fit to be published.

    Every component that `model_index.json` names must be there, networks as readable safetensors files, and
    no file anywhere below `folder` may be a pickle, since opening one can run code.

    Raises:
        ModelError: where that is not so; names the files.
    """
    folder = Path(folder)
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{folder} is not a pipeline folder: it has no model_index.json. Name the folder that "
            "save_pretrained or the training wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder}/model_index.json cannot be read ({error}); save the pipeline again"
        ) from error
    if not isinstance(index, dict):
        raise ModelError(f"{folder}/model_index.json must hold an object; save the pipeline again")

    pickles = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICKLE_SUFFIXES)
    if pickles:
        names = ", ".join(str(path.relative_to(folder)) for path in pickles)
        raise ModelError(
            f"{folder} holds files that may run code when opened, and are not published: {names}. Save "
            "weights with save_pretrained (safetensors) and move other files out of the folder"
        )

    # a component is [library, class]; one that the pipeline does without is [null, null]
    components = tuple(
        name
        for name, value in sorted(index.items())
        if not name.startswith("_") and isinstance(value, list) and len(value) == 2 and value[1] is not None
    )
    if not components:
        raise ModelError(f"{folder}/model_index.json names no components; save the pipeline again")
    for name in components:
        path = folder / name
        if not path.is_dir():
            raise ModelError(f"{folder} has no folder {name}, which its model_index.json names")
        weights = sorted(path.glob("*.safetensors"))
        if (path / "config.json").is_file() and not weights:  # a network; schedulers and tokenizers have none
            raise ModelError(
                f"{path} has a configuration but no safetensors weights; save the pipeline again"
            )
        for file in weights:
            _check_safetensors(file)
    return components


def _check_safetensors(file: Path) -> None:
    """The header is enough: it lists the tensors and must account for every byte of the file."""
    try:
        with safe_open(file, framework="np") as tensors:
            empty = not list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} is not a whole safetensors file ({error}); save the pipeline again"
        ) from error
    if empty:
        raise ModelError(f"{file} holds no tensors; save the pipeline again")


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    gated: str | None = None,
    card: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    commit_message: str = "Upload an expression editor",
) -> str:
    """Publishes a pipeline folder, creating the repository where there is none.

    The components that `model_index.json` names and the files beside it (`pipeline.py`, `README.md`) are
    sent; hidden files and other sub-folders, such as training checkpoints, stay.

    Args:
        repo_id: "owner/name", or "name" for the token's owner.
        private: of a repository that is created. One that exists keeps its visibility, and if it is public
            where `private` is asked for, nothing is sent.
        gated: "auto" lets people have the weights once they have answered what the card asks (see
            `cards.GATE`), "manual" once the owner has let each of them; set before anything is sent. None:
            as the repository is.
        card: what README.md is to say from now on; written to the folder when the hub has taken the name.
        token: with write permission; default: that of `hf auth login` or `HF_TOKEN`.
        endpoint: the hub's address; default: `HF_ENDPOINT` or the public hub.

    Returns:
        the address of the model's page.

    Raises:
        ModelError: where the folder is not fit to be published (see `check_pipeline_folder`).
        OutputError: where there is no token, the hub refuses, or it cannot be reached.
    """
    folder = Path(folder)
    if gated not in (None, "auto", "manual"):
        raise OutputError(f'gated must be "auto", "manual" or None, got {gated!r}')
    components = check_pipeline_folder(folder)
    beside = ["README.md"] if card is not None else []
    beside += [path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    token = token or huggingface_hub.get_token()
    if token is None:
        raise OutputError(
            f"pushing to {repo_id} needs an access token and none was found; log in with `hf auth login`, "
            "set HF_TOKEN, or pass token="
        )

    api = huggingface_hub.HfApi(endpoint=endpoint, token=token)
    with _explained(repo_id, api.endpoint):
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(url.repo_id).private:
            raise OutputError(
                f"{url} exists and is public, but private=True was asked for; make it private on the hub's "
                "page, or choose another name"
            )
        if gated is not None:
            api.update_repo_settings(url.repo_id, gated=gated)
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            commit_message=commit_message,
            allow_patterns=[*map(_literal, beside), *(f"{_literal(name)}/*" for name in components)],
            ignore_patterns=[".*", "*/.*"],
        )
    return str(url)


def _literal(name: str) -> str:
    """A file name as a pattern that matches it alone."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


@contextmanager
def _explained(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turns what can go wrong between us and the hub into an OutputError that says what to do."""
    try:
        yield
    except OutputError:
        raise
    except HFValidationError as error:
        raise OutputError(f'repo_id must be "owner/name" or "name", got {repo_id!r}: {error}') from error
    except OfflineModeIsEnabled as error:
        raise OutputError(
            f"pushing {repo_id} needs the network, but HF_HUB_OFFLINE is set; unset it and push again"
        ) from error
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        # uploads of large files run in threads of the client, which wraps what went wrong there
        cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
        if isinstance(cause, HfHubHTTPError):
            raise OutputError(_refusal(cause, repo_id, endpoint)) from error
        if isinstance(cause, HTTPError):
            raise OutputError(
                f"the hub at {endpoint} cannot be reached ({type(cause).__name__}: {cause}); check the "
                f"network and HF_ENDPOINT, then push {repo_id} again: what has arrived is not sent twice"
            ) from error
        raise OutputError(f"pushing {repo_id} failed: {cause}") from error


def _refusal(error: HfHubHTTPError, repo_id: str, endpoint: str) -> str:
    status = error.response.status_code
    said = (error.server_message or str(error)).strip().replace("\n", " ")
    if status == 401:
        return (
            f"the hub at {endpoint} does not accept the access token ({said}); create one with write "
            "permission in its settings and log in with `hf auth login`"
        )
    if status == 403:
        return (
            f"the access token may not write to {repo_id} ({said}); use one with write permission for "
            "that owner"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{repo_id} cannot be found with this access token ({said}); check the name and the token's owner"
        )
    return f"the hub at {endpoint} refused {repo_id} with status {status}: {said}"
