"""Pushing a pipeline folder to a model hub."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import huggingface_hub
from huggingface_hub import CommitOperationAdd, errors

from magicedit.errors import ModelError, OutputError
from magicedit.files import is_address, read_json, write_text
from magicedit.models.checks import PARTS, read_header
from magicedit.models.folder import ADAPTERS_INDEX, PIPELINE_CLASS, ModelFolder, is_pickle

SETTINGS = "train_config.json"  # what `train.py` writes beside a model


def check_pipeline_folder(folder: str | Path) -> tuple[str, ...]:
    """Checks that a pipeline folder can be published, and returns the names of its components.

    Every component that `model_index.json` names must be there, networks as readable safetensors files, and
    no file anywhere below `folder` may be a pickle, since opening one can run code. Raises ModelError
    otherwise; names the files.
    """
    found = ModelFolder.local(folder)
    components = found.components
    pickles = sorted(path for path in found.path.rglob("*") if is_pickle(path))
    if pickles:
        names = ", ".join(str(path.relative_to(found.path)) for path in pickles)
        raise ModelError(
            f"{folder} holds files that may run code when opened, and are not published: {names}. Save "
            "weights with save_pretrained (safetensors) and move other files out of the folder"
        )

    found.check()
    for name in components:
        for file in sorted(found.component(name).glob("*.safetensors")):
            if not read_header(file):
                raise ModelError(f"{file} holds no tensors; save the pipeline again")
    return components


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
    uploaded; hidden files and other sub-folders, such as training checkpoints, are not. For our pipelines
    without `pipeline.py`, such as embedded models, the package's own file is uploaded.

    Args:
        folder: a folder, or the name of an embedded model where there is no folder of that name.
        repo_id: "owner/name", or "name" for the token's owner.
        private: whether a new repository is private. An existing one keeps its visibility; if it is public
            and `private` is set, nothing is uploaded.
        gated: "auto" gives people the weights once they answer the card's questions (see `cards.GATE`),
            "manual" once the owner approves each of them; set before the upload. None: unchanged.
        card: new content of README.md; written to the folder once the hub accepts the name, but not into the
            package.
        token: with write permission; default: that of `hf auth login` or `HF_TOKEN`.
        endpoint: the hub's address; default: `HF_ENDPOINT` or the public hub.

    Returns:
        the address of the model's page.

    Raises:
        ModelError: where the folder is not fit to be published (see `check_pipeline_folder`).
        OutputError: where there is no token, the hub refuses, or it cannot be reached.
    """
    if gated not in (None, "auto", "manual"):
        raise OutputError(f'gated must be "auto", "manual" or None, got {gated!r}')
    check_pipeline_folder(folder)
    contents = _contents(ModelFolder.local(folder))
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
                f"{url} exists and is public, but private=True was requested; make it private on the hub's "
                "page, or choose another name"
            )
        if gated is not None:
            api.update_repo_settings(url.repo_id, gated=gated)
        if card is not None:
            contents["README.md"] = card.encode()
            if (found := ModelFolder.local(folder)).origin != "embedded":
                write_text(found.path / "README.md", card)
        additions = [CommitOperationAdd(name, content) for name, content in sorted(contents.items())]
        api.create_commit(url.repo_id, additions, commit_message=commit_message)
    return str(url)


def _contents(found: ModelFolder) -> dict[str, Path | bytes]:
    """Returns the published content of a folder, by path in the repository."""
    folders = {"": found.path} | {f"{name}/": found.component(name) for name in found.components}
    contents: dict[str, Path | bytes] = {
        f"{prefix}{path.relative_to(folder).as_posix()}": path
        for prefix, folder in folders.items()
        for path in (folder.rglob("*") if prefix else folder.iterdir())
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    if found.is_adapters:
        _name_base(found, contents)
    elif found.pipeline_class() == PIPELINE_CLASS and "pipeline.py" not in contents:
        from magicedit.pipelines import pipeline_magicedit  # imports torch

        code = pipeline_magicedit.self_contained(Path(pipeline_magicedit.__file__))
        contents["pipeline.py"] = code.encode()
    if isinstance(settings := contents.get(SETTINGS), Path):
        public = _without_folders(read_json(settings, ModelError))
        if isinstance(public, dict) and is_address(public.get("train_data_dir")):
            public["train_data_dir"] = "shards"  # the address may hold a password
        contents[SETTINGS] = json.dumps(public, indent=1).encode()
    return contents


def _name_base(found: ModelFolder, contents: dict[str, Path | bytes]) -> None:
    """Names the base of adapters without its place, and lists the digest of that index."""
    base = dataclasses.asdict(found.base)
    base |= {field: Path(base[field]).name for field in ("model", "base_model") if _is_place(base[field])}
    index = json.dumps(found.index | {"base": base}, indent=2, sort_keys=True).encode()
    contents[ADAPTERS_INDEX] = index
    if isinstance(listed := contents.get(PARTS), Path):
        parts = read_json(listed, ModelError)
        parts["sha256"][ADAPTERS_INDEX] = hashlib.sha256(index).hexdigest()
        contents[PARTS] = json.dumps(parts, indent=1).encode()


def _is_place(setting: object) -> bool:
    paths = (PurePosixPath, PureWindowsPath)
    return isinstance(setting, str) and any(path(setting).is_absolute() for path in paths)


def _without_folders(settings: Any) -> Any:
    """Returns the settings of a training with names in place of absolute paths, which tell of a machine."""
    if isinstance(settings, dict):
        return {name: _without_folders(value) for name, value in settings.items()}
    if isinstance(settings, list):
        return [_without_folders(value) for value in settings]
    for path in (PurePosixPath, PureWindowsPath):
        if isinstance(settings, str) and path(settings).is_absolute():
            return path(settings).name
    return settings


@contextmanager
def _explained(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turns errors of the hub connection into an OutputError that says what to do."""
    try:
        yield
    except OutputError:
        raise
    except errors.HFValidationError as error:
        raise OutputError(f'repo_id must be "owner/name" or "name", got {repo_id!r}: {error}') from error
    except errors.OfflineModeIsEnabled as error:
        raise OutputError(
            f"pushing {repo_id} needs the network, but HF_HUB_OFFLINE is set; unset it and push again"
        ) from error
    except (errors.HTTPError, OSError, ValueError, RuntimeError) as error:
        # uploads of large files run in threads of the client, which wraps their errors
        cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
        if isinstance(cause, errors.HfHubHTTPError):
            raise OutputError(_refusal(cause, repo_id, endpoint)) from error
        if isinstance(cause, errors.HTTPError):
            raise OutputError(
                f"the hub at {endpoint} cannot be reached ({type(cause).__name__}: {cause}); check the "
                f"network and HF_ENDPOINT, then push {repo_id} again: what has arrived is not sent twice"
            ) from error
        raise OutputError(f"pushing {repo_id} failed: {cause}") from error


def _refusal(error: errors.HfHubHTTPError, repo_id: str, endpoint: str) -> str:
    status = error.response.status_code
    said = (error.server_message or str(error)).strip().replace("\n", " ")
    if status == 401:
        problem = f"the hub at {endpoint} does not accept the access token"
        remedy = "create one with write permission in its settings and log in with `hf auth login`"
    elif status == 403:
        problem = f"the access token may not write to {repo_id}"
        remedy = "use one with write permission for that owner"
    elif isinstance(error, errors.RepositoryNotFoundError):
        problem = f"{repo_id} cannot be found with this access token"
        remedy = "check the name and the token's owner"
    else:
        return f"the hub at {endpoint} refused {repo_id} with status {status}: {said}"
    return f"{problem} ({said}); {remedy}"
