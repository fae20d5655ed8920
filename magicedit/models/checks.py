"""Checks of a model folder before anything of it is built: files, ranges, sizes and digests.

A folder may come from anywhere. Building its networks from a configuration that lies takes all memory or
hours; the headers of its weights, which account for every byte, bound what a true one can ask for. Imports no
torch.
"""

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from magicedit.errors import ModelError
from magicedit.files import opened, read_json, remembered_sha256, shown
from magicedit.vocabulary import quoted

PARTS = "parts.json"  # SHA-256 of the files of a finished model
READ = (".json", ".safetensors", ".txt", ".model")  # the ends of files that models are loaded from
LARGEST_JSON = 20_000_000  # bytes; tokenizers' are the largest
LARGEST_INDEX = 1_000_000  # bytes of an index or a configuration
LARGEST_HEADER = 2_000_000  # bytes of a weights file's header
MOST_TENSORS = 5_000  # of a component; the largest networks of diffusers have about 2,500
LARGEST_SIDE = 4096  # pixels of a crop
SMALLEST_BOUND = 4096  # numbers of a configuration up to here are allowed to any network
MOST_TIMESTEPS = 10_000
DTYPE_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2}
DTYPE_BYTES |= {"U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}

# Ranges of the settings that an index holds, by name, in every family; training refuses others at its start
RANGES: dict[str, tuple[type, float, float]] = {
    "resolution": (int, 16, LARGEST_SIDE),
    "patch_size": (int, 1, 64),
    "default_steps": (int, 1, 1000),
    "distilled_steps": (int, 0, 1000),
    "default_guidance_scale": (float, 0, 1000),
    "default_noise_level": (float, 0, 1),
}
_TEXTS = {"prediction": 100, "prompt": 10_000, "action_units": 100_000}  # characters
_SWITCHES = ("concat_identity", "relative")
# Of configurations: what would load other formats, or code from elsewhere
_REFUSED_KEYS = ("quantization_config", "auto_map", "attn_implementation", "_attn_implementation")
_COUNTS = ("layers", "blocks")  # in names of numbers that say how many modules there are


def check_index(file: Path, index: Any) -> None:
    """Raises ModelError where a pipeline's index has values that no pipeline can have."""
    if not isinstance(index, dict):
        raise ModelError(f"{shown(file)} must hold an object; save the pipeline again")
    named = index.get("_class_name")
    pair = isinstance(named, list) and len(named) == 2 and all(isinstance(part, str) for part in named)
    if named is not None and not isinstance(named, str) and not pair:
        raise _wrong(file, "_class_name", "a name or a list of file and name", named)
    for name, (kind, low, high) in RANGES.items():
        value = index.get(name, low)
        if not _is_number(value, kind) or not low <= value <= high:
            what = "an integer" if kind is int else "a number"
            raise _wrong(file, name, f"{what} from {low:g} to {high:g}", value)
    for name, longest in _TEXTS.items():
        value = index.get(name, "")
        if not isinstance(value, str) or len(value) > longest:
            raise _wrong(file, name, f"a text of at most {longest:,} characters", value)
    for name in _SWITCHES:
        if not isinstance(index.get(name, False), bool):
            raise _wrong(file, name, "true or false", index[name])
    for name, value in index.items():
        if len(name) > 100:  # of a component, which is a folder
            raise ModelError(f"{shown(file)} names {shown(name)}, which is too long; save the pipeline again")
        if isinstance(value, list) and any(isinstance(part, str) and len(part) > 200 for part in value):
            raise _wrong(file, name, "short names", value)
    _check_plain(file, index, 2**31)


def _is_number(value: object, kind: type) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole or (kind is float and isinstance(value, float) and math.isfinite(value))


def _wrong(file: Path, name: str, expected: str, value: object) -> ModelError:
    got = quoted(value)
    return ModelError(f"{shown(file)}: {name} must be {expected}, got {got}; save the pipeline again")


def check_files(folder: Path) -> None:
    """Raises ModelError where a component's folder holds a pipe, a device or a link to one, which a library
    would read for ever."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ModelError(f"{shown(folder)} cannot be read ({error.strerror})") from error
    for name in names:
        try:
            mode = (folder / name).stat().st_mode
        except OSError as error:
            raise ModelError(f"{shown(folder / name)} cannot be read ({error.strerror})") from error
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ModelError(f"{shown(folder / name)} is not a file; remove it from the model's folder")


def check_component(folder: Path) -> int:
    """Returns the bytes of a component's weights. ModelError where its files cannot be what they say."""
    tensors: dict[str, tuple[int, ...]] = {}
    size = 0
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= read_header(file)
        size += file.stat().st_size
    for file in sorted(folder.glob("*.json")):
        if file.name.endswith(".index.json"):
            _check_shards(file)
        elif file.name == "config.json":
            _check_config(file, read_json(file, ModelError, limit=LARGEST_INDEX), tensors)
        elif file.name == "scheduler_config.json":
            _check_scheduler(file, read_json(file, ModelError, limit=LARGEST_INDEX))
        else:
            content = read_json(file, ModelError, limit=LARGEST_JSON)
            if file.name == "tokenizer_config.json":
                _check_tokenizer(file, content)
    return size


def read_header(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file by name, from its header, which must account for every byte
    of it. Raises ModelError otherwise."""
    with opened(file, ModelError) as stream:
        whole = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(LARGEST_HEADER, whole - 8):
            raise ModelError(
                f"{shown(file)} is not a whole safetensors file: its header has {length:,} bytes, the file "
                f"{whole:,}; save the pipeline again"
            )
        text = stream.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        spans = sorted(
            _span(*(entry[key] for key in ("dtype", "shape", "data_offsets"))) for entry in header.values()
        )
        ends = [0, *(end for _, end in spans)]
        if [begin for begin, _ in spans] != ends[:-1] or ends[-1] != whole - 8 - length:
            raise ValueError("its tensors do not cover the file")
        return {name: tuple(entry["shape"]) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error)[:200]
        raise ModelError(
            f"{shown(file)} is not a whole safetensors file ({reason}); save the pipeline again"
        ) from error


def parameters_of(component: Path) -> int:
    """Number of values in the weights of a component's folder, by their headers. Errors as `read_header`."""
    files = sorted(component.glob("*.safetensors"))
    return sum(math.prod(shape) for file in files for shape in read_header(file).values())


def _span(dtype: str, shape: list[int], offsets: list[int]) -> tuple[int, int]:
    begin, end = offsets
    if not all(_is_number(side, int) and side >= 1 for side in shape):
        raise ValueError(f"a tensor has the shape {str(shape)[:100]}")
    if math.prod(shape) * DTYPE_BYTES[dtype] != end - begin:
        raise ValueError(f"a tensor of the shape {str(shape)[:100]} has {end - begin} bytes")
    return begin, end


def _check_shards(file: Path) -> None:
    index = read_json(file, ModelError, limit=LARGEST_JSON)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict):
        raise _wrong(file, "weight_map", "a table of tensors and files", shards)
    for shard in set(map(str, shards.values())):
        if (
            Path(shard).name != shard
            or not shard.endswith(".safetensors")
            or not (file.parent / shard).is_file()
        ):
            raise _wrong(file, "weight_map", "files of this folder", shard)


def _check_config(file: Path, config: Any, tensors: Mapping[str, tuple[int, ...]]) -> None:
    """Compares a network's configuration with its weights: no number can be much larger than the largest side
    of a tensor, and there are no more layers than tensors."""
    if not isinstance(config, dict):
        raise ModelError(f"{shown(file)} must hold an object; save the pipeline again")
    for key in _REFUSED_KEYS:
        if config.get(key) is not None:
            raise ModelError(f"{shown(file)} has {key}, which is not supported; save plain weights")
    if len(tensors) > MOST_TENSORS:
        raise ModelError(f"{shown(file.parent)} has {len(tensors):,} tensors, more than {MOST_TENSORS:,}")
    largest = max((side for shape in tensors.values() for side in shape), default=0)
    _check_plain(file, config, max(SMALLEST_BOUND, 4 * largest), ", by the size of its weights")
    modules = 1
    for name, value in config.items():
        numbers = [number for _, number in _numbers(value) if isinstance(number, int)]
        if min(numbers, default=0) < 0 and not name.endswith("_token_id"):
            raise _wrong(file, name, "at least 0", value)
        if any(word in name for word in _COUNTS) and numbers and "channels" not in name:
            modules *= max(1, *numbers)
            if modules > len(tensors):
                raise _wrong(file, name, f"a number of layers of {len(tensors)} tensors", value)
        if name == "downsample_padding" and value != 1:  # else the levels' sizes differ
            raise _wrong(file, name, "1", value)
        if name.endswith("patch_size") and any(number < 1 for number in numbers):
            raise _wrong(file, name, "at least 1", value)


def _check_scheduler(file: Path, config: Any) -> None:
    if not isinstance(config, dict):
        raise ModelError(f"{shown(file)} must hold an object; save the pipeline again")
    steps = config.get("num_train_timesteps", 1000)
    if not _is_number(steps, int) or not 1 <= steps <= MOST_TIMESTEPS:
        raise _wrong(file, "num_train_timesteps", f"an integer from 1 to {MOST_TIMESTEPS:,}", steps)
    _check_plain(file, config, 1_000_000)


def _check_tokenizer(file: Path, config: Any) -> None:
    if not isinstance(config, dict) or config.get("auto_map") is not None:
        raise ModelError(f"{shown(file)} must hold an object without auto_map; save the pipeline again")
    length = config.get("model_max_length", 77)
    unlimited = isinstance(length, int | float) and length >= 10**20  # what transformers writes for none
    if not unlimited and (not _is_number(length, int) or not 1 <= length <= SMALLEST_BOUND):
        raise _wrong(file, "model_max_length", f"an integer from 1 to {SMALLEST_BOUND}", length)


def _check_plain(file: Path, content: Any, largest: int, why: str = "") -> None:
    """Raises ModelError for a number that is not finite, or an integer larger than `largest`."""
    for name, number in _numbers(content):
        whole = isinstance(number, int)
        if abs(number) > largest if whole else not math.isfinite(number):
            raise _wrong(file, name, f"a finite number up to {largest:,}{why}", number)


def _numbers(content: Any) -> Iterator[tuple[str, float]]:
    """Yields (name, number) of all numbers, however deep."""
    waiting = [("", content)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(name, part) for part in value]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def check_memory(size: int, name: str) -> None:
    """Raises ModelError where weights of `size` bytes cannot fit into this machine's memory."""
    import psutil

    total = psutil.virtual_memory().total
    if size > total:
        raise ModelError(
            f"{name} has {size / 2**30:.0f} GiB of weights, this machine {total / 2**30:.0f} GiB"
        )


def check_parts(folder: Path) -> None:
    """Raises ModelError where a file that `parts.json` lists, and that is read, is missing or another one.

    A folder without it is not checked.
    """
    file = folder / PARTS
    if not os.path.lexists(file):
        return
    content = read_json(file, ModelError, limit=LARGEST_JSON)
    listed = content.get("sha256") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise _wrong(file, "sha256", "a table of files and digests", listed)
    for name, digest in listed.items():
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
            raise _wrong(file, "sha256", "files of this folder", name)
        if not name.endswith(READ):
            continue  # code is neither run nor downloaded
        try:
            found = remembered_sha256(folder / name)
        except FileNotFoundError as error:
            raise ModelError(
                f"{shown(folder)} lacks {shown(name)}, which its {PARTS} lists; copy it again"
            ) from error
        except OSError as error:
            reason = error.strerror or error
            raise ModelError(
                f"{shown(folder / name)} cannot be read ({reason}); copy the model again"
            ) from error
        if found != digest:
            raise ModelError(
                f"{shown(folder / name)} is not the file that {PARTS} lists: it is damaged or of another "
                f"model; copy the model again, or delete {PARTS} if you changed it yourself"
            )
